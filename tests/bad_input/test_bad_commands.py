"""Bad options: the experiments' command lines, and their configs made in Python."""

import importlib
import subprocess
import sys

import pytest
from table import Row, each, refused

from experiments import common

COMMANDS = [
    ("sinusoid", ["--step", "5"], "--step"),
    ("sinusoid", ["--steps", "0"], "steps must be above zero"),
    ("sinusoid", ["--steps", "-3"], "steps must be above zero"),
    ("sinusoid", ["--steps", "1.5"], "1.5"),
    ("sinusoid", ["--steps", "nan"], "nan"),
    ("sinusoid", ["--steps"], "--steps"),
    ("sinusoid", ["--inner-rate", "nan"], "inner_rate must be a finite number"),
    ("sinusoid", ["--inner-rate", "inf"], "inner_rate must be a finite number"),
    ("sinusoid", ["--inner-rate", "fast"], "fast"),
    ("sinusoid", ["--k-shot", "0"], "k_shot must be above zero"),
    ("sinusoid", ["--test-episodes", "1"], "test_episodes must be at least 2"),
    ("sinusoid", ["--seed", "4294967296"], "seed must be between"),
    ("sinusoid", ["--seed", "true"], "true"),
    ("sinusoid", ["--resume", "yes"], "yes"),
    ("sinusoid", ["train"], "train"),
    ("sinusoid", ["--out", "a\0b"], "out must be"),
    ("sinusoid", ["--checkpoint-every", "0"], "checkpoint_every must be above zero"),
    ("demo", ["--n-way", "1"], "--n-way"),
    ("omniglot", ["--method", "mamal"], "mamal"),
    ("omniglot", ["--n-way", "1"], "n_way must be at least 2"),
    ("omniglot", ["--tasks-per-chunk", "all"], "all"),
    ("omniglot", ["--tasks-per-chunk", "0"], "tasks_per_chunk must be above zero"),
    ("omniglot", ["--head-std", "-1"], "head_std must be above zero"),
    ("omniglot_metric", ["--train-way", "1"], "train_way must be at least 2"),
    ("omniglot_table", ["--seeds", "0", "--steps", "x"], "x"),
    ("data_weighting", ["--flipped", "0.5"], "flipped must be from 0 to below 0.5"),
    ("shakespeare", ["--length", "1"], "length must be at least 2"),
    ("evolve", ["--task", "sort"], "sort"),
    ("evolve", ["--confidence", "2"], "confidence must be above 0 and at most 1"),
    ("evolve_programs", ["--floor", "1.5"], "floor must be in [0, 1]"),
    ("evolve_pretrained", ["--samples", "1"], "samples must be at least 2"),
    ("meta_lora", ["--rank", "two"], "two"),
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
        ("sinusoid", ["--resume"], "resume: there is no run under"),
        ("omniglot", ["--data", "nowhere", "--steps", "1"], "'nowhere' is not a folder"),
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


CONFIGS = [
    Row("steps-text", lambda: common.RunConfig(steps="5"), ("steps must be an integer", "'5'")),
    Row("steps-float", lambda: common.RunConfig(steps=5.0), ("steps must be an integer", "5.0")),
    Row("steps-bool", lambda: common.RunConfig(steps=True), ("steps must be an integer", "True")),
    Row("seed-none", lambda: common.RunConfig(seed=None), ("seed must be an integer", "None")),
    Row("out-text", lambda: common.RunConfig(out="runs/a"), ("out must be", "Path", "'runs/a'")),
    Row("resume-one", lambda: common.RunConfig(resume=1), ("resume must be True or False", "1")),
    Row("log-zero", lambda: common.RunConfig(log_every=0), ("log_every must be above zero", "0")),
    Row("log-nan", lambda: common.RunConfig(log_every=float("nan")), ("log_every", "nan")),
]


@each(CONFIGS)
def test_a_config_is_checked_where_it_is_made(row):
    refused(row.call, row.words)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("content")
    config = common.RunConfig(out=tmp_path / "file" / "below")
    refused(lambda: common.create(common.open_run("toy", config)), ("file", "cannot be", "--out"))
    config = common.RunConfig(out=tmp_path / ("long" * 100))
    refused(lambda: common.open_run("toy", config), ("out:", "too long"))
