"""The metrics file."""

import json
import math
import resource

import pytest

from experiments import common
from experiments.common import metrics


def write(folder, steps):
    with common.MetricsLog(folder) as log:
        for step in steps:
            log.append(step, {"loss": 1.0 / step})


def test_lines_round_trip(tmp_path):
    write(tmp_path, [10, 20])
    assert common.read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "loss": 0.1},
        {"step": 20, "loss": 0.05},
    ]
    assert common.read_metrics(tmp_path / "absent.jsonl") == []


def test_resume_drops_what_is_computed_again(tmp_path):
    write(tmp_path, [10, 20, 30])
    with common.MetricsLog(tmp_path, step=20) as log:
        assert [record["step"] for record in log.records] == [10, 20]
        log.append(30, {"loss": 5.0})
    lines = common.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] == 5.0


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, [10])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "lo')
    with common.MetricsLog(tmp_path, step=10) as log:
        log.append(20, {"loss": 2.0})
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [10, 20]


@pytest.mark.parametrize("line", ["my notes", "[1]", '{"loss": 1}', '{"step": null}'])
def test_a_foreign_line_is_an_error_and_stays(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(common.RunError, match=r"metrics\.jsonl, line 1"):
        common.MetricsLog(tmp_path)
    assert path.read_text() == line + "\n"


def test_what_json_cannot_say_is_null(tmp_path):
    with common.MetricsLog(tmp_path) as log:
        log.append(1, {"ratio": math.nan, "norm": math.inf, "loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "ratio": None,
        "norm": None,
        "loss": 1.0,
    }


def test_tensorboard_is_written_where_asked(tmp_path):
    pytest.importorskip("tensorboardX")
    with common.MetricsLog(tmp_path, tensorboard=True) as log:
        log.append(1, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"loss" in events.read_bytes()


def test_tensorboard_missing_says_how_to_get_it(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(metrics.importlib, "import_module", missing)
    with pytest.raises(common.RunError, match=r"pip install 'metajax\[tensorboard\]'"):
        common.MetricsLog(tmp_path, tensorboard=True)


def test_a_line_that_the_disk_does_not_take_is_an_error_and_those_before_are_kept(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "metrics.jsonl"
    with common.MetricsLog(tmp_path) as log:
        log.append(10, {"loss": 0.5})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, limits[1]))
        try:
            with pytest.raises(common.RunError, match=r"metrics\.jsonl cannot .*File too large"):
                log.append(20, {"loss": 0.25})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert common.read_metrics(path) == [{"step": 10, "loss": 0.5}]
    write(tmp_path, [1])  # goes on over the half line


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_not_there_any_more_is_an_error(tmp_path, replaced):
    path = tmp_path / "metrics.jsonl"
    with common.MetricsLog(tmp_path) as log:
        log.append(10, {"loss": 0.5})
        path.unlink()
        if replaced:
            path.write_text("another's\n")
        with pytest.raises(common.RunError, match="Was the folder removed or replaced"):
            log.append(20, {"loss": 0.25})
    assert not path.exists() or path.read_text() == "another's\n"
