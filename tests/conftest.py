"""What all tests share."""

import os

import jax
import pytest

# Two devices on any machine, before JAX is first used: what shares tasks does so in every test.
jax.config.update("jax_num_cpu_devices", 2)
# Most of the suite's time is compilation, for programs that then run for milliseconds. Processes
# that tests start do the same: they are compared bit for bit.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
