"""Where a run may write."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from toy_trainer import ToyConfig

from experiments import common
from experiments.common import disk
from metajax.files import write_atomically


def start(config, name="toy"):
    run = common.open_run(name, config)
    common.create(run)
    return run


def test_open_writes_nothing(tmp_path):
    common.open_run("toy", ToyConfig(out=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(common.RunError, match=r"not empty.*--resume.*--out"):
        common.open_run("toy", ToyConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(common.RunError, match="not empty"):
        common.open_run("toy", ToyConfig(out=tmp_path / "file"))


def test_unnamed_runs_are_numbered_and_the_newest_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start(ToyConfig(), name="toy-other")
    paths = [start(ToyConfig()).path for _ in range(11)]
    assert paths[0] == Path("runs/toy")
    assert paths[10] == Path("runs/toy-11")
    assert common.open_run("toy", ToyConfig(resume=True)).path == paths[10]


def test_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(common.RunError, match="no run under"):
        common.open_run("toy", ToyConfig(resume=True))
    with pytest.raises(common.RunError, match=r"no config\.json"):
        common.open_run("toy", ToyConfig(resume=True, out=tmp_path))


def test_resume_with_another_config_names_the_fields(tmp_path):
    out = tmp_path / "run"
    start(ToyConfig(out=out, seed=1))
    with pytest.raises(common.RunError) as error:
        common.open_run("toy", ToyConfig(out=out, seed=2, steps=300, resume=True))
    message = str(error.value)
    assert "seed was 1 and is now 2" in message
    assert "steps was 200 and is now 300" in message
    assert "width" not in message


def test_resume_by_another_experiment(tmp_path):
    start(ToyConfig(out=tmp_path / "run"))
    with pytest.raises(common.RunError, match="experiment was 'toy' and is now 'game'"):
        common.open_run("game", ToyConfig(out=tmp_path / "run", resume=True))


def test_what_does_not_change_the_result_may_differ(tmp_path):
    run = start(ToyConfig(out=tmp_path / "run"))
    again = common.open_run("toy", ToyConfig(out=run.path, resume=True, tensorboard=True))
    assert again.path == run.path


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}'])
def test_resume_of_a_damaged_config(tmp_path, content):
    run = start(ToyConfig(out=tmp_path / "run"))
    (run.path / "config.json").write_text(content)
    with pytest.raises(common.RunError, match=r"config\.json"):
        common.open_run("toy", ToyConfig(out=run.path, resume=True))
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


def test_what_a_kill_before_the_config_leaves_is_not_a_run(tmp_path):
    for name in (".lock", ".config.json.123"):
        (tmp_path / name).write_text("")
    run = start(ToyConfig(out=tmp_path))
    assert (run.path / "config.json").exists()


def test_of_two_that_start_in_the_same_folder_the_second_is_refused(tmp_path):
    first, second = (
        common.open_run("toy", ToyConfig(out=tmp_path / "run", seed=seed)) for seed in (1, 2)
    )
    common.create(first)
    with pytest.raises(common.RunError, match="another process has started another run"):
        common.create(second)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["seed"] == 1


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 4711 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_uses_is_refused_until_it_dies(tmp_path):
    run = start(ToyConfig(out=tmp_path / "run"))
    (run.path / ".lock").write_text("")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(common.RunError, match=r"another process is using .*4711 on elsewhere"):
            common.create(run)
    finally:
        holder.kill()
        holder.communicate()
    common.create(run)


@pytest.mark.parametrize("missing", [False, True])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, missing):
    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    if missing:
        monkeypatch.setattr(disk, "fcntl", None)
    else:
        monkeypatch.setattr(disk.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match=r"\.lock cannot be locked"), common.locked(tmp_path):
        pass


def test_of_several_processes_of_one_run_the_first_has_the_lock(tmp_path, monkeypatch):
    with common.locked(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with common.locked(tmp_path):
            pass


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(common.RunError, match=r"file/run.*Not a directory.*--out"):
        start(ToyConfig(out=tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == ""
