"""The training that ``experiments.benchmarks.soak`` kills, and how it shows what it is doing."""

import hashlib
import json
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from metajax.data import sinusoid_sampler
from metajax.files import write_atomically

PHASES = ("starting", "training", "validation", "checkpoint", "metrics")


class Marks:
    """What a training is doing, in memory that outlives it: a file mapped by both processes.

    Args:
        path: the file; made where there is none.
    """

    _LAYOUT = struct.Struct(f"<Bi{len(PHASES)}I")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self._LAYOUT.pack(0, -1, *[0] * len(PHASES)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def read(self) -> tuple[str, int, dict[str, int]]:
        """The phase, the step that was resumed from (-1: none), and how often each phase began."""
        phase, resumed, *counts = self._LAYOUT.unpack_from(self._memory)
        return PHASES[phase], resumed, dict(zip(PHASES, counts, strict=True))

    def during(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, marked as a phase."""

        def marked(*arguments: Any, **options: Any) -> Any:
            before = self._memory[0]
            index = PHASES.index(phase)
            offset = 5 + 4 * index
            (count,) = struct.unpack_from("<I", self._memory, offset)
            self._memory[0] = index
            struct.pack_into("<I", self._memory, offset, count + 1)
            try:
                return call(*arguments, **options)
            finally:
                self._memory[0] = before

        return marked

    def resumed(self, step: int) -> None:
        """Notes the step that a training goes on from."""
        struct.pack_into("<i", self._memory, 1, step)


def train(folder: Path, steps: int, marks_file: Path, log: Path) -> None:
    """A training in a process of its own; what it ended with goes into ``outcome.json``."""
    sys.stderr = sys.stdout = log.open("a", buffering=1)
    # Most of a short process would be compilation. The undisturbed training fills the cache.
    jax.config.update("jax_compilation_cache_dir", str(folder.with_name("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    marks = Marks(marks_file)
    # The library doesn't know that it is watched.
    common.Checkpoints.save = marks.during("checkpoint", common.Checkpoints.save)
    common.MetricsLog.append = marks.during("metrics", common.MetricsLog.append)
    restore = common.Checkpoints.restore

    def watched(self: common.Checkpoints, template: Any) -> Any:
        found = restore(self, template)
        if found is not None and self.folder.name == "checkpoints":
            marks.resumed(found[1])
        return found

    common.Checkpoints.restore = watched

    config = common.RunConfig(
        steps=steps,
        out=folder,
        resume=(folder / "config.json").exists(),
        log_every=10,
        checkpoint_every=30,
    )
    run = common.open_run("soak", config)
    apply = lambda params, inputs: jnp.tanh(inputs * params["in"] + params["b"]) @ params["out"]
    params = {"in": jnp.ones(8), "b": jnp.linspace(-1, 1, 8), "out": jnp.full((8, 1), 0.1)}
    learner = metajax.maml(metajax.losses.mean_squared_error(apply), optax.sgd(0.01), steps=1)
    sample = sinusoid_sampler(5, 5)
    trainer = metajax.meta_trainer(learner, optax.adam(1e-2), sample, meta_batch=2)

    score = metajax.evaluator(learner, sample, episodes=20)

    def validate(params: Any) -> dict[str, float]:
        return {"loss": float(score(params, jax.random.key(7)).mean["loss"])}

    fitted = common.fit(
        run,
        trainer._replace(run=marks.during("training", trainer.run)),
        trainer.init(params, jax.random.key(0)),
        steps=steps,
        validate=marks.during("validation", validate),
        validate_every=20,
    )
    outcome = {
        "state": digests(fitted.state),
        "best": digests(common.best_params(run, params)),
        "metrics": [without_times(line) for line in fitted.metrics],
        "environment": common.environment(),
    }
    write_atomically(folder / "outcome.json", json.dumps(outcome))


def digests(tree: Any) -> dict[str, str]:
    """SHA-256 of every leaf's bytes, by path."""

    def plain(leaf: Any) -> bytes:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return {
        jax.tree_util.keystr(path): hashlib.sha256(plain(leaf)).hexdigest()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what differs from run to run.

    >>> without_times({"step": 10, "loss": 0.5, "seconds": 1.2})
    {'step': 10, 'loss': 0.5}
    """
    return {name: value for name, value in line.items() if name != "seconds"}
