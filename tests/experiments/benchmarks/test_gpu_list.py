"""The list of what a GPU has to measure: its commands are accepted, and it goes on."""

import importlib
import shlex
import subprocess
from pathlib import Path

import pytest

from experiments import common

SCRIPT = Path(__file__).parents[3] / "experiments" / "benchmarks" / "gpu.sh"
CONFIGS = {
    "experiments.fewshot.omniglot": "experiments.fewshot.omniglot.train",
    "experiments.evolution.pretrained": "experiments.evolution.pretrained.config",
    "experiments.evolution.stories": "experiments.evolution.stories.config",
}


@pytest.fixture
def call(tmp_path):
    """Runs the list with a Python that only notes its commands; ``fail`` names a module."""
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f"printf '%q ' \"$@\" >>{tmp_path}/commands; echo >>{tmp_path}/commands\n"
        '[[ "$2" != "${FAIL:-}" ]]\n'
    )
    python.chmod(0o755)

    def run(*parts, **environment):
        (tmp_path / "commands").write_text("")
        variables = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(tmp_path / "out")}
        done = subprocess.run(
            ["bash", SCRIPT, *parts],
            env=variables | {"TINY": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = (tmp_path / "commands").read_text().splitlines()
        return done, [shlex.split(line)[1:] for line in lines]

    return run


@pytest.mark.parametrize("tiny", ["1", ""])
def test_every_command_is_accepted(call, tmp_path, tiny):
    checkpoint = tmp_path / "checkpoint"
    done, commands = call(TINY=tiny, CHECKPOINT=str(checkpoint), LIMIT="10000")
    assert done.returncode == 0, done.stderr
    commands = [command for command in commands if command[0].startswith("experiments.")]
    assert len(commands) == 12
    for module, *arguments in commands:
        found = importlib.import_module(CONFIGS.get(module, module))
        preset = getattr(found, "preset", None)
        options = {} if preset is None else {"preset": preset}
        assert common.parse(found.Config, arguments, "", **options)


def test_what_is_done_is_passed_over_and_what_failed_goes_on(call, tmp_path):
    first = "experiments.fewshot.omniglot"
    done, commands = call("omniglot-paper", "tune", FAIL=first)
    assert done.returncode == 1
    assert [command[0] for command in commands] == [first, "experiments.benchmarks.tune"]
    (tmp_path / "out" / "omniglot-paper").mkdir()
    (tmp_path / "out" / "omniglot-paper" / "config.json").write_text("{}")
    done, commands = call("omniglot-paper", "tune")
    assert done.returncode == 0
    assert [command[0] for command in commands] == [first]
    assert "--resume" in commands[0]
    assert "tune: done before" in done.stdout


def test_without_time_nothing_is_started(call):
    done, commands = call(LIMIT="10")
    assert (done.returncode, commands) == (1, [])
    assert "the same command goes on" in done.stdout
