"""The command ``metajax``: what it lists and runs."""

import subprocess
import sys

import pytest

from experiments.__main__ import MAKEFILE, main, studies


def test_every_study_of_the_makefile_is_listed_without_the_words_of_make(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metajax"])
    main()
    printed = capsys.readouterr().out
    names = {"demo", "omniglot", "cifar-fs", "evolve-pretrained", "shakespeare", "soak"}
    assert names <= {line.split()[0] for line in printed.splitlines() if line.startswith("  ")}
    assert "=" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_a_target_of_the_makefile_passes_its_own_options():
    found = studies(MAKEFILE.read_text(encoding="utf-8"))
    assert found["fc100"].module == "experiments.fewshot.cifar.table"
    assert found["fc100"].options == ("--cells", "fc100-1shot,fc100-5shot")
    assert "bench" not in found  # two modules
    assert "test" not in found


def test_what_is_no_study_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metajax", "demmo"])
    with pytest.raises(SystemExit, match="there is no study 'demmo'"):
        main()


@pytest.mark.slow
def test_a_study_runs_by_name_and_shows_its_own_help():
    """In a process of its own, and into a pipe that is closed early."""
    command = [sys.executable, "-m", "metajax", "sinusoid", "--help"]
    done = subprocess.run(
        command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("usage: python -m experiments.fewshot.sinusoid ")
    assert "--debug" in done.stdout
    piped = " ".join(command) + " | head -1"
    done = subprocess.run(
        piped, shell=True, cwd=MAKEFILE.parent, capture_output=True, text=True, timeout=120
    )
    assert "rror" not in done.stderr
