"""Kills lose nothing, and a loss would be noticed."""

import json

import pytest

from experiments import common
from experiments.benchmarks import soak


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer", [pytest.param("few-shot", marks=pytest.mark.ci), "language", "evolution"]
)
def test_a_few_kills_lose_nothing(tmp_path, trainer):
    config = soak.Config(
        trainer=trainer, kills=3, kills_per_run=3, seed=4, steps=60, out=tmp_path / "soak"
    )
    report = soak.soak(config)
    assert report == json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert [run["problems"] for run in report["runs"]] == [[]] * len(report["runs"])
    assert report["recovered"] == len(report["kills"]) == 3
    assert "| all " in (tmp_path / "soak" / "soak.md").read_text()
    with pytest.raises(common.RunError, match="holds another soak"):
        soak.soak(config)


def test_what_differs_is_named():
    same = {"state": {"w": "a"}, "best": {"w": "b"}, "metrics": [{"step": 10}, {"step": 20}]}
    assert soak.differences(same, same) == []
    for part, other in (
        ("state", {"w": "x"}),
        ("best", {"w": "x"}),
        ("metrics", [{"step": 10}]),
        ("metrics", [{"step": 10}, {"step": 10}, {"step": 20}]),
    ):
        (problem,) = soak.differences({**same, part: other}, same)
        assert problem.startswith(part)
