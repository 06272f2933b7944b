"""Compiled programs are kept for the next run, which computes the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from toy_trainer import ToyConfig

from experiments import common
from experiments.common.config import identity

SCRIPT = Path(__file__).with_name("toy_trainer.py")


def test_it_does_not_change_what_a_run_is(monkeypatch, tmp_path):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    assert ToyConfig().compilation_cache == tmp_path / "compiled"
    assert identity(ToyConfig(compilation_cache="none")) == identity(ToyConfig())
    assert common.command("m", ToyConfig(compilation_cache="none")) == "python -m m"


def test_a_cache_that_jax_was_told_of_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
        common.keep_compiled(tmp_path / "other")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "told")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_with_and_without_it_the_bits_are_the_same(tmp_path):
    # Tests have a cache of their own, which would stay.
    env = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    found = {}
    for name, cache in (("first", "kept"), ("second", "kept"), ("without", "none")):
        folder = cache if cache == "none" else str(tmp_path / cache)
        subprocess.run(
            [sys.executable, str(SCRIPT), "--steps", "20", "--out", str(tmp_path / name),
             "--compilation-cache", folder],
            check=True, capture_output=True, env=env,
        )  # fmt: skip
        lines = common.read_metrics(tmp_path / name / "metrics.jsonl")
        found[name] = [line["loss"] for line in lines]
        if name == "first":
            programs = {path.name for path in (tmp_path / "kept").glob("*-cache")}
    assert found["first"] == found["second"] == found["without"]
    assert any("run" in name for name in programs)
    assert {path.name for path in (tmp_path / "kept").glob("*-cache")} == programs
