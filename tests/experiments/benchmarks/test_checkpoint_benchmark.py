"""The benchmark of checkpoints: what it divides by what, and that its long run goes on."""

import json

import pytest

from experiments.benchmarks import checkpoints


@pytest.mark.slow
def test_shares_are_of_the_time_from_checkpoint_to_checkpoint(tmp_path):
    config = checkpoints.Config(checkpoints=1, dispatches=1)
    found = checkpoints.overhead(checkpoints.regression(), config, tmp_path)
    assert found["interval"] == 10_000
    between = found["interval"] * found["step_ms"]
    assert found["share"] == pytest.approx(found["checkpoint_ms"] / between)
    assert found["share_with_best"] > found["share"]
    assert found["bytes"] > 3 * 4 * 1761  # parameters, and Adam's two moments of each


def test_the_long_run_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoints, "few_shot", checkpoints.regression)  # quick to set up
    checkpoints.prepare(tmp_path / "long")
    with pytest.raises(SystemExit):
        checkpoints.go_on(tmp_path / "long")
    step, entered, first = capsys.readouterr().out.split()
    assert int(step) == 60_000
    assert float(first) >= float(entered)
    lines = (tmp_path / "long" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines[-2:]] == [59_900, 60_000]


@pytest.mark.slow
def test_the_report_has_a_line_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "prepare", lambda folder: None)
    monkeypatch.setattr(checkpoints, "resume_seconds", lambda folder: (6.0, 0.25))
    config = checkpoints.Config(checkpoints=1, dispatches=1, resumes=1, out=tmp_path)
    table = checkpoints.run(config, {"sinusoid": checkpoints.regression})
    assert "goes on 6.0 s after" in table
    assert "| sinusoid |" in table
    assert {path.name for path in tmp_path.iterdir()} == {
        f"checkpoints.{suffix}" for suffix in ("json", "md", "png")
    }
