"""What all tests share."""

import gc
import os
import pathlib
import shutil
import tempfile

import jax
import pytest

SHIPPED = os.environ.get("METAJAX_TEST_XLA") == "shipped"
"""Whether XLA runs with the flags that users have; `make test-shipped` sets it."""

OPTIONS = {
    # Programs that two workers compile, or that are compiled again after they were let go of, are
    # read from a folder of this run.
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
if not SHIPPED:
    # Most of the suite's time is compilation, for programs that then run for milliseconds.
    OPTIONS["jax_disable_most_optimizations"] = True
    # Operations don't say which lines of Python made them: an eighth of the time of compiling.
    OPTIONS["jax_traceback_in_locations_limit"] = 0
    # XLA's older emitters of loops, and one piece of code a program, compile in a quarter of the
    # time. XLA ends a process that names a flag it doesn't know, so only where these are known.
    if jax.__version_info__[:2] == (0, 10):
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()

# Two devices on any machine, before JAX is first used: what shares tasks does so in every test.
jax.config.update("jax_num_cpu_devices", 2)
for option, value in OPTIONS.items():
    jax.config.update(option, value)
    # Processes that tests start do the same: they are compared bit for bit.
    os.environ[option.upper()] = str(value).lower()


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
    if not hasattr(config, "workerinput"):  # the process that starts the workers
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="metajax-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_finish():
    """What was imported stays: the collector needn't walk through it at every tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
