"""Two processes on this machine compute what one does, and share a run."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import environment, free_port, own_words, run_together
from several_processes import Config, fit, flat, train

from experiments import common

SCRIPT = "several_processes.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Two processes that SLURM started, as far as JAX can see; the second is told to stop."""
    folder = tmp_path_factory.mktemp("two")
    port = str(free_port())
    words = [SCRIPT, "--distributed", "--results", str(folder), "--out", str(folder / "run")]
    started = run_together(
        [[*words, "--stop-at", "20"]] * 2,
        [
            environment(
                JAX_COORDINATOR_PORT=port,
                SLURM_JOB_ID="7",
                SLURM_STEP_NODELIST="localhost",
                SLURM_NTASKS="2",
                SLURM_PROCID=str(index),
                SLURM_LOCALID=str(index),
            )
            for index in range(2)
        ],
    )
    return folder, started


@pytest.mark.ci
def test_training_and_scores_are_those_of_one_device(outcome):
    folder, started = outcome
    expected = flat({"one": train(None)})
    with jax.enable_x64(True):
        expected |= flat({"double": train(None, jnp.float64)})
    for index in range(2):
        assert (folder / f"{index}.npz").exists(), started[index].stderr
        found = dict(np.load(folder / f"{index}.npz"))
        assert found.pop("['devices']").tolist() == [2, 2]
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            error = np.abs(found[name] - values).max() / np.abs(values).max()
            assert error <= (1e-12 if "double" in name else 1e-6), name
            assert found[name].dtype == values.dtype


def test_each_process_holds_a_part_of_the_parameters(outcome):
    folder, _ = outcome
    for index in range(2):
        assert np.load(folder / f"shard-{index}.npy").tolist() == [[8, 4]]


def test_all_learn_of_different_options_and_of_an_error_of_the_first(outcome):
    folder, _ = outcome
    first, second = (json.loads((folder / f"errors-{i}.json").read_text()) for i in range(2))
    assert first[0].startswith("RunError: distributed: the processes were started with different")
    assert "different options (here: seed). Start all of them with the same" in second[0]
    assert first[1:] == ["ZeroDivisionError: division by zero"]
    assert second[1:] == ["RunError: division by zero"]


def test_a_signal_to_one_stops_both_and_the_first_alone_writes_and_speaks(outcome):
    folder, started = outcome
    assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2
    assert own_words(started[0].stdout) == "trained"
    assert "stopped after step 30" in started[0].stderr
    assert own_words(started[1].stdout) == own_words(started[1].stderr) == ""
    lines = common.read_metrics(folder / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"20", "30"}


def test_a_run_of_two_processes_goes_on_in_one(outcome, tmp_path):
    folder, _ = outcome
    resumed = fit(Config(out=folder / "run", resume=True), None)
    whole = fit(Config(out=tmp_path / "whole"), None)
    assert [line["step"] for line in resumed.metrics] == [10, 20, 30, 40, 50, 60]
    for ours, theirs in zip(
        jax.tree.leaves(flat(resumed.state._replace(key=0))),
        jax.tree.leaves(flat(whole.state._replace(key=0))),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
