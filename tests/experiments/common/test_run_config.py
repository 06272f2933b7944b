"""The command line."""

import dataclasses
import errno
import logging
import re
import sys
from pathlib import Path
from typing import Literal

import pytest
from toy_trainer import ToyConfig

from experiments import common
from experiments.common.config import identity


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        common.parse(ToyConfig, ["--help"], "What the toy does.")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0
    assert "What the toy does." in text
    for field in dataclasses.fields(ToyConfig):
        assert "--" + field.name.replace("_", "-") in text


def test_identity_and_command_leave_out_what_names_a_machine():
    config = ToyConfig(seed=4, out=Path("somewhere"), resume=True, tensorboard=True)
    assert set(identity(config)) == {"steps", "width", "log_every", "checkpoint_every", "seed"}
    assert common.command("experiments.toy", config) == "python -m experiments.toy --seed 4"


@dataclasses.dataclass(frozen=True)
class Sized(common.RunConfig):
    """A config whose defaults depend on one of its options."""

    size: Literal["small", "large"] = "small"
    """Which."""


def preset(size: Literal["small", "large"] = "small") -> Sized:
    return Sized(size=size, steps={"small": 10, "large": 1000}[size])


@pytest.mark.parametrize(
    ("words", "steps"),
    [([], 10), (["--size", "large"], 1000), (["--steps", "7", "--size=large"], 7)],
)
def test_a_preset_gives_what_the_command_line_leaves_out(words, steps):
    config = common.parse(Sized, words, "", preset=preset)
    assert config.steps == steps
    again = common.command("m", config, preset=preset).split()[3:]
    assert common.parse(Sized, again, "", preset=preset) == config


def test_a_command_names_a_value_that_another_preset_has():
    config = Sized(size="large", steps=10)
    assert common.command("m", config, preset=preset).endswith("-m m --steps 10 --size large")


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit):
        common.parse(Sized, ["--size", "large", "--help"], "Words.", preset=preset)
    assert "default: 1000" in capsys.readouterr().out


def test_guard_shows_no_traceback_for_what_a_user_can_mend():
    def main():
        raise common.RunError("out: not empty")

    with pytest.raises(SystemExit) as stop:
        common.guard(main)
    assert stop.value.code == "error: out: not empty"


def test_guard_shows_no_traceback_for_a_full_disk():
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/training.png")

    with pytest.raises(SystemExit, match=r"No space left on device.*training\.png.*--resume"):
        common.guard(main)


def test_guard_keeps_a_bugs_traceback_in_a_file():
    with pytest.raises(SystemExit) as stop:
        common.guard(lambda: 1 / 0)
    assert stop.value.code.startswith("error: ZeroDivisionError: division by zero\n")
    kept = Path(re.search(r"in (\S+);", stop.value.code)[1])
    assert "in test_guard_keeps" not in stop.value.code
    assert "lambda: 1 / 0" in kept.read_text(encoding="utf-8")
    kept.unlink()


def test_debug_shows_every_traceback(monkeypatch):
    def main():
        assert "--debug" not in sys.argv
        raise common.RunError("out: not empty")

    for failing, error in ((main, common.RunError), (lambda: 1 / 0, ZeroDivisionError)):
        monkeypatch.setattr(sys, "argv", ["study", "--debug"])
        with pytest.raises(error):
            common.guard(failing)


def test_a_bar_fits_80_columns_and_a_log_file(capsys):
    """Not a terminal: each state is a line, none longer, and none without its numbers."""
    name = "cifar-fs-conv4-prototypical-5shot-and-more"
    with common.progress(name, 0, 8000) as bar:
        bar.start_t -= 1000  # seconds
        bar.set_postfix(loss="1.2345")
        bar.update(8000)
    printed = capsys.readouterr().err
    assert "\r" not in printed
    lines = printed.splitlines()
    assert lines
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("cifar-fs-conv4-prot…: 100% 8000/8000 [16:40<00:00")
    assert "loss=1.2345" in lines[-1]


def test_guard_lets_metajax_say_what_it_chose(caplog):
    common.guard(lambda: logging.getLogger("metajax.parallel.chunks").info("picked 4 of 8"))
    assert "picked 4 of 8" in caplog.text
