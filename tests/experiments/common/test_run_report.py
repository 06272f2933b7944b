"""The table and the numbers behind it."""

import json
import subprocess

import numpy as np
import pytest

from experiments import common
from experiments.common import report as report_module
from experiments.common.plots import Curve


@pytest.fixture
def report():
    rows = [
        common.Row("5-way 1-shot", "paper's", 98.812, 0.351, "98.7 ± 0.4", 1000, 3, 1),
        common.Row("5-way 1-shot", "honest", 97.4, 0.2, None, 1000, 3, 15),
    ]
    return common.Report(
        title="MAML",
        metric="accuracy in %",
        source="Finn et al. 2017",
        schedule="ours",
        training={"steps": 12000},
        rows=rows,
        seconds={"training": 3725.0, "evaluation": 61.0},
        command="python -m experiments.fewshot.omniglot.train",
        environment=common.environment(),
        curves=[Curve("a", np.array([20.0, 98.8]), np.array([1.0, 0.4]))],
    )


def test_table_puts_the_papers_number_beside_ours(report):
    lines = common.format_table(report).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0][3] == "paper (Finn et al. 2017)"
    assert cells[2] == ["5-way 1-shot", "paper's", "98.81 ± 0.35", "98.7 ± 0.4", "1000", "3", "1"]
    assert cells[3][2:4] == ["97.40 ± 0.20", "–"]
    text = "\n".join(lines)
    assert "Schedule: ours" in text
    assert "training 1 h 02 min, evaluation 1 min 01 s" in text
    assert "jax 0." in text


def test_table_without_published_numbers_has_no_column_for_them(report):
    rows = [row._replace(paper=None, mean=0.25, ci95=0.0312) for row in report.rows]
    text = common.format_table(report._replace(rows=rows))
    assert "paper (" not in text
    assert "0.250 ± 0.031" in text


def test_files(report, tmp_path):
    table = common.write_report(tmp_path, report)
    assert (tmp_path / "table.md").read_text() == table
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["rows"][0]["mean"] == 98.812
    assert result["curves"] == [{"label": "a", "mean": [20.0, 98.8], "ci95": [1.0, 0.4]}]
    assert result["environment"]["cores"] >= 1


def test_no_git_is_no_failure(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(report_module.subprocess, "run", missing)
    assert common.environment()["commit"] is None


def test_outside_a_checkout_there_is_no_commit(monkeypatch):
    def fails(command, **kwargs):
        raise subprocess.CalledProcessError(128, command)

    monkeypatch.setattr(report_module.subprocess, "run", fails)
    assert common.environment()["commit"] is None
