"""Two processes of two devices generate and evolve as one device does."""

import numpy as np
import pytest
from processes import environment, free_port, run_together
from several_processes_evolve import everything

SCRIPT = "several_processes_evolve.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What each process found, and the error of each where the first one fails."""
    folder = tmp_path_factory.mktemp("two")
    coordinator = f"localhost:{free_port()}"
    started = run_together(
        [[SCRIPT, coordinator, str(index), str(folder)] for index in range(2)],
        [environment(JAX_NUM_CPU_DEVICES="2", NPROC="8")] * 2,
    )
    for process in started:
        assert process.returncode == 0, process.stderr
    found = [dict(np.load(folder / f"{index}.npz")) for index in range(2)]
    return found, [(folder / f"error-{index}").read_text() for index in range(2)]


@pytest.mark.ci
def test_both_find_what_one_process_does(outcome):
    expected = everything()
    parts = {name for name in expected if "['parts']" in name}
    for found in outcome[0]:
        assert found.keys() == expected.keys()
        for name in found.keys() - parts:
            assert found[name].shape == expected[name].shape, name
            np.testing.assert_allclose(
                found[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name
            )
            if found[name].dtype.kind in "iub":
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        # Both Adam's moments of nearly all parameters are held in two parts, as these are.
        whole, split = (found[f"['{of}fine_tune']['parts']"] for of in ("", "split "))
        assert whole.max() == 1
        assert (split == 2).sum() >= 2 * 11


def test_an_error_of_the_first_reaches_the_other(outcome):
    first, second = outcome[1]
    assert first == "ZeroDivisionError: division by zero"
    assert second == "MetajaxError: process 0 failed: ZeroDivisionError: division by zero"
