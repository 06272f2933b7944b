"""What all tests share."""

import jax
import pytest

# Two devices on any machine, before JAX is first used: what shares tasks does so in every test.
jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
