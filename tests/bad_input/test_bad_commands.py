"""Bad options on the experiments' command lines."""

import importlib
import subprocess
import sys

import pytest

from experiments import common

COMMANDS = [
    ("fewshot.sinusoid", ["--step", "5"], "--step"),
    ("fewshot.sinusoid", ["--steps", "0"], "steps must be above zero"),
    ("fewshot.sinusoid", ["--steps", "1.5"], "1.5"),
    ("fewshot.sinusoid", ["--inner-rate", "nan"], "inner_rate must be above zero"),
    ("fewshot.sinusoid", ["--inner-rate", "inf"], "inner_rate must be above zero"),
    ("fewshot.sinusoid", ["--test-episodes", "1"], "test_episodes must be at least 2"),
    ("fewshot.sinusoid", ["--seed", "4294967296"], "seed must be between"),
    ("fewshot.sinusoid", ["--resume", "yes"], "yes"),
    ("fewshot.demo", ["--n-way", "1"], "--n-way"),
    ("fewshot.omniglot.train", ["--method", "mamal"], "mamal"),
    ("fewshot.omniglot.train", ["--n-way", "1"], "n_way must be at least 2"),
    ("fewshot.omniglot.train", ["--tasks-per-chunk", "all"], "all"),
    ("fewshot.omniglot.train", ["--tasks-per-chunk", "0"], "tasks_per_chunk must be above zero"),
    ("fewshot.omniglot.train", ["--head-std", "-1"], "head_std must be above zero"),
    ("fewshot.omniglot.metric", ["--train-way", "1"], "train_way must be at least 2"),
    ("fewshot.omniglot.metric", ["--k-shot", "0"], "k_shot must be above zero"),
    ("fewshot.omniglot.table", ["--seeds", "0"], "seeds must be above zero"),
    ("fewshot.omniglot.table", ["--cells", "5w2s"], "cells must be some of"),
    ("bilevel.data_weighting", ["--flipped", "0.5"], "flipped must be from 0 to below 0.5"),
    ("benchmarks.devices", ["--cell", "6-way"], "'6-way' is none of '5-way 1-shot'"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), COMMANDS)
def test_a_wrong_option_is_named_and_ends_with_status_2(
    name, arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"experiments.{name}").main
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    # The message is framed and broken into lines.
    text = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert words in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("fewshot.sinusoid", ["--resume"], "resume: there is no run under"),
        ("fewshot.omniglot", ["--data", "nowhere", "--steps", "1"], "folder='nowhere' has neither"),
    ],
)
def test_a_command_that_cannot_start_says_why_in_one_line(name, arguments, words, tmp_path):
    """As a user calls it: no traceback, a status that isn't 0, and nothing written."""
    run = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "METAJAX_CACHE": str(tmp_path / "c")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("content")
    below = common.open_run("toy", common.RunConfig(steps=1, out=tmp_path / "file" / "below"))
    with pytest.raises(common.RunError, match=r"file.*cannot be.*--out"):
        common.create(below)
    with pytest.raises(common.RunError, match=r"out:.*too long"):
        common.open_run("toy", common.RunConfig(steps=1, out=tmp_path / ("long" * 100)))
