"""The same command gives the same bits, in a process of its own each time."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import determinism, determinism_settings

COMMAND = [sys.executable, "-m", "experiments.benchmarks.determinism"]
SIZE = ["--steps", "6", "--dispatch", "3"]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """What two processes wrote, which ran at the same time."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    root = pathlib.Path(determinism.__file__).parents[2]
    processes = [
        subprocess.Popen(
            [*COMMAND, *SIZE, "--out", str(out)],
            cwd=root,
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
        )
        for out in folders
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return folders, said


@pytest.mark.ci
@pytest.mark.slow
def test_sampling_training_and_evaluation_are_the_same_bits_in_two_processes(twice):
    folders, said = twice
    one, other = (
        json.loads((folder / "determinism-sinusoid-float32.json").read_text()) for folder in folders
    )
    assert one["digests"] == other["digests"]
    assert set(one["digests"]) == {"episode", "loss", "params", "scores"}
    assert said[0] == said[1]
    assert one["digests"]["params"].encode() in said[0]


@pytest.mark.slow
def test_this_process_computes_what_they_did(twice, tmp_path):
    """And a comparison says so; of a run that isn't the same, it says how far."""
    (folder, _), _ = twice
    file = folder / "determinism-sinusoid-float32.npz"
    config = determinism.Config(steps=6, dispatch=3, out=tmp_path, compare=file)
    result = determinism.run(config)
    assert result["differences"] == dict.fromkeys(result["differences"], 0.0)
    with np.load(file) as arrays:
        moved = {name: array * (1 + 1e-3) for name, array in arrays.items()}
        parted = determinism.differences(dict(arrays), moved)
    assert all(gap == pytest.approx(1e-3, rel=1e-2) for gap in parted.values())


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="dispatch must divide steps, 10; got 3"):
        determinism.Config(steps=10, dispatch=3)
    with pytest.raises(ValueError, match="cores must be above zero; got 0"):
        determinism.Config(cores=0)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux")
def test_more_cores_than_there_are_are_refused():
    there = os.sched_getaffinity(0)
    with pytest.raises(ValueError, match=rf"at most the {len(there)} that there are; got 9999"):
        determinism.use_cores(9999)
    assert os.sched_getaffinity(0) == there


@pytest.mark.slow
def test_settings_are_compared_in_processes_of_their_own(tmp_path, monkeypatch):
    absent = determinism_settings.Setting(flags="--xla_cpu_no_such_flag=true")
    monkeypatch.setitem(determinism_settings.SETTINGS, "what XLA doesn't have", absent)
    config = determinism_settings.Config(
        networks=("sinusoid",),
        steps=2,
        settings=("the same again", "what XLA doesn't have"),
        dtypes=("float32",),
        out=tmp_path,
    )
    table = determinism_settings.run(config)
    same, unknown = json.loads((tmp_path / "determinism.json").read_text())["rows"]
    assert same["same bits"] is True
    assert set(same["differences"].values()) == {0.0}
    assert unknown["differences"] is None
    assert "xla_cpu_no_such_flag" in unknown["problem"]
    assert "didn't run" in table
    with pytest.raises(ValueError, match=r"settings must be among .*'more cores'"):
        determinism_settings.Config(settings=("more cores",))
