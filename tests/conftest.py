"""What all tests share."""

import gc
import os
import pathlib

import jax
import pytest

# Two devices on any machine, before JAX is first used: what shares tasks does so in every test.
jax.config.update("jax_num_cpu_devices", 2)
# Most of the suite's time is compilation, for programs that then run for milliseconds. Processes
# that tests start do the same: they are compared bit for bit.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
# Nor does an operation say which lines of Python made it: an eighth of the time of compiling.
jax.config.update("jax_traceback_in_locations_limit", 0)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# XLA's older emitters of loops, and one piece of code a program, compile in a quarter of the time.
# XLA ends a process that names a flag it doesn't know, so only where these are known to exist.
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = " ".join(
        [
            "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
            os.environ.get("XLA_FLAGS", ""),
        ]
    )


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


MAPPINGS = 20_000
"""Compiled programs are let go of at so many memory mappings: Linux allows a process 65,530, each
kernel of a program on a CPU takes some, and XLA ends the process where it gets no more."""


class _Mappings:
    """For all tests, the docstrings' too, which this folder's fixtures don't reach."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item, nextitem):
        if nextitem is None or nextitem.path == item.path:
            return
        maps = pathlib.Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
            jax.clear_caches()
            gc.collect()


def pytest_configure(config):
    config.pluginmanager.register(_Mappings())


def pytest_collection_finish():
    """What was imported stays: the collector needn't walk through it at every tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
