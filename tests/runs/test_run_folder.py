"""Where a run may write."""

import json
from pathlib import Path

import pytest
from toy_trainer import ToyConfig

from metajax import runs
from metajax._files import write_atomically


def start(config, name="toy"):
    run = runs.open_run(name, config)
    runs.create(run)
    return run


def test_open_writes_nothing(tmp_path):
    runs.open_run("toy", ToyConfig(out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(runs.RunError, match=r"not empty.*--resume.*--out"):
        runs.open_run("toy", ToyConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(runs.RunError, match="not empty"):
        runs.open_run("toy", ToyConfig(out=tmp_path / "file"))


def test_unnamed_runs_are_numbered_and_the_newest_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start(ToyConfig(), name="toy-other")
    paths = [start(ToyConfig()).path for _ in range(11)]
    assert paths[0] == Path("runs/toy")
    assert paths[10] == Path("runs/toy-11")
    assert runs.open_run("toy", ToyConfig(resume=True)).path == paths[10]


def test_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(runs.RunError, match="no run under"):
        runs.open_run("toy", ToyConfig(resume=True))
    with pytest.raises(runs.RunError, match=r"no config\.json"):
        runs.open_run("toy", ToyConfig(resume=True, out=tmp_path))


def test_resume_with_another_config_names_the_fields(tmp_path):
    out = tmp_path / "run"
    start(ToyConfig(out=out, seed=1))
    with pytest.raises(runs.RunError) as error:
        runs.open_run("toy", ToyConfig(out=out, seed=2, steps=300, resume=True))
    message = str(error.value)
    assert "seed was 1 and is now 2" in message
    assert "steps was 200 and is now 300" in message
    assert "width" not in message


def test_resume_by_another_experiment(tmp_path):
    start(ToyConfig(out=tmp_path / "run"))
    with pytest.raises(runs.RunError, match="experiment was 'toy' and is now 'game'"):
        runs.open_run("game", ToyConfig(out=tmp_path / "run", resume=True))


def test_what_does_not_change_the_result_may_differ(tmp_path):
    run = start(ToyConfig(out=tmp_path / "run"))
    again = runs.open_run("toy", ToyConfig(out=run.path, resume=True, tensorboard=True))
    assert again.path == run.path


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}'])
def test_resume_of_a_damaged_config(tmp_path, content):
    run = start(ToyConfig(out=tmp_path / "run"))
    (run.path / "config.json").write_text(content)
    with pytest.raises(runs.RunError, match=r"config\.json"):
        runs.open_run("toy", ToyConfig(out=run.path, resume=True))
    assert (run.path / "config.json").read_text() == content


def test_config_file(tmp_path):
    run = start(ToyConfig(out=tmp_path / "run", seed=7))
    saved = json.loads((run.path / "config.json").read_text())
    assert saved["experiment"] == "toy"
    assert saved["config"]["seed"] == 7
    assert str(tmp_path) not in json.dumps(saved)


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
