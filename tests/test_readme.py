"""The README's programs run as they are written."""

import json
import pathlib
import re

import pytest

from experiments.benchmarks import report

README = pathlib.Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_adaptation(capsys):
    exec(PROGRAMS[0], {})
    assert capsys.readouterr().out.count(".") == 5


def test_own_data_and_own_modules(capsys):
    names = {}
    exec(PROGRAMS[1], names)
    assert names["scores"].mean["accuracy"] > 0.8
    assert "±" in capsys.readouterr().out
    exec(PROGRAMS[2], names)
    assert float(names["metrics"]["accuracy"][-100:].mean()) > 0.8


@pytest.mark.parametrize("program", PROGRAMS[1:])
def test_they_are_short(program):
    """From the module to the scores, without imports and data, in under 20 lines."""
    body = program[program.index("class ") :]
    assert len([line for line in body.splitlines() if line.strip()]) < 20


def test_the_benchmark_table_is_that_of_the_committed_result():
    result = README.parent / "docs" / "results" / "bench" / "meta_step.json"
    table = report.headline(json.loads(result.read_text(encoding="utf-8")))
    assert table in README.read_text(encoding="utf-8")
