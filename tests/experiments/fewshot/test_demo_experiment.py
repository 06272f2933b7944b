"""One tiny run of the demo."""

import json

import pytest

from experiments import common
from experiments.fewshot import demo


@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch, capsys, small_data, small_network):
    monkeypatch.setattr(demo, "glyphs", small_data)
    out = tmp_path / "run"
    demo.main(["--steps", "2", "--test-episodes", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    for name in ("training.png", "inner_steps.png", "episode.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text() in printed
    assert "make omniglot" in printed
    rows = json.loads((out / "result.json").read_text())["rows"]
    assert [row["query"] for row in rows] == [1, 15]
    assert [line["step"] for line in common.read_metrics(out / "metrics.jsonl")] == [2]
