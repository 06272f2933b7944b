"""The training that ``experiments.benchmarks.soak`` kills, and how it shows what it is doing."""

import hashlib
import json
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.evolution.rounds import follow
from experiments.evolution.strings.tasks import digits
from metajax import evolve as ev
from metajax import lm
from metajax.data import sinusoid_sampler
from metajax.files import write_atomically
from metajax.lm import TokenBatch

Kind = Literal["few-shot", "language", "evolution"]
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


def train(kind: Kind, folder: Path, steps: int, marks_file: Path, log: Path) -> None:
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
    common.create(run)
    ended = {"few-shot": few_shot, "language": language, "evolution": evolution}[kind](run, marks)
    outcome = ended | {"environment": common.environment()}
    write_atomically(folder / "outcome.json", json.dumps(outcome))


def few_shot(run: common.Run, marks: Marks) -> dict[str, Any]:
    """MAML on sinusoids, with validation and best parameters."""
    apply = lambda params, inputs: jnp.tanh(inputs * params["in"] + params["b"]) @ params["out"]
    params = {"in": jnp.ones(8), "b": jnp.linspace(-1, 1, 8), "out": jnp.full((8, 1), 0.1)}
    learner = metajax.maml(metajax.losses.mean_squared_error(apply), optax.sgd(0.01), steps=1)
    sample = sinusoid_sampler(5, 5)
    trainer = metajax.meta_trainer(learner, optax.adam(1e-2), sample, meta_batch=2)
    score = metajax.evaluator(learner, sample, episodes=20)

    def validate(params: Any) -> dict[str, float]:
        return {"loss": float(score(params, jax.random.key(7)).mean["loss"])}

    return fitted(run, marks, trainer, params, validate)


def language(run: common.Run, marks: Marks) -> dict[str, Any]:
    """A table of bigrams on rows of tokens, with validation and best parameters."""
    apply = lambda params, tokens: params["table"][tokens]
    params = {"table": jnp.zeros((13, 13))}
    rows = TokenBatch(np.random.default_rng(0).integers(0, 13, (64, 9)).astype(np.int32))
    loss = lm.next_token_loss(apply)
    trainer = metajax.meta_trainer(
        lm.supervised(loss),
        optax.adamw(1e-2),
        lm.as_episodes(lm.row_sampler(rows, batch=8)),
        meta_batch=2,
    )
    score = jax.jit(lambda params: loss(params, rows)[0])
    return fitted(run, marks, trainer, params, lambda params: {"loss": float(score(params))})


def fitted(
    run: common.Run,
    marks: Marks,
    trainer: metajax.Trainer,
    params: Any,
    validate: Callable[[Any], dict[str, float]],
) -> dict[str, Any]:
    """What a training by ``common.fit`` ends with."""
    found = common.fit(
        run,
        trainer._replace(run=marks.during("training", trainer.run)),
        trainer.init(params, jax.random.key(0)),
        steps=run.config.steps,
        validate=marks.during("validation", validate),
        validate_every=20,
    )
    return {
        "state": digests(found.state),
        "best": digests(common.best_params(run, params)),
        "metrics": [without_times(line) for line in found.metrics],
    }


def evolution(run: common.Run, marks: Marks) -> dict[str, Any]:
    """Self-evolution of a table of bigrams on copied digits, a round where others have 10 steps."""
    problem = digits("copy")
    width = problem.prompt_length(2)

    def solve(params: Any, key: jax.Array, tasks: ev.Tasks) -> ev.Completions:
        # The prompt's own last tokens, and the end: no network, so that a round takes no time.
        number = len(tasks.lengths)
        tokens = np.concatenate([tasks.prompts[:, -2:], np.full((number, 1), problem.end)], axis=1)
        lengths = np.full((number, 1), 3)
        return ev.Completions(tokens[:, None], 0.0 * tokens[:, None], lengths, lengths > 0)

    apply = lambda params, tokens, **_: params["table"][tokens]
    update = ev.fine_tune(
        apply, optax.adam(1e-2), steps=2, mixture=ev.published_mixture(3), rows=8, pool=16,
        row_length=2 * width + 4, micro_batches=1,
    )  # fmt: skip
    loop = ev.EvolveConfig(
        propose=lambda params, key, levels: problem.draw(key, np.full(8, 2)),
        solve=solve,
        verifier=ev.keep_all(),
        update=update._replace(update=marks.during("training", update.update)),
        gate=ev.accept_all(),
        curriculum=ev.Curriculum("one level", ev.Levels(1, 2), lambda levels, rate: levels),
        real=lambda key: ev.real_examples(problem, key, range(1, 3), 16),
        held_out=lambda levels: ev.held_out_tasks(
            problem, jax.random.key(1), known=range(1, 2), frontier=range(2, 3), each=2
        ),
    )
    state = ev.init_state(
        loop, {"table": jnp.zeros((problem.vocab_size, problem.vocab_size))}, jax.random.key(2),
        rounds=max(1, run.config.steps // 10), proposals=8, longest=2 * width,
        vocab_size=problem.vocab_size,
    )  # fmt: skip
    scores = lambda params: {"sum": float(params["table"].sum())}
    found = follow(run, loop, state, scores=marks.during("validation", scores))
    return {
        "state": digests(found.state),
        "best": {},
        "metrics": [without_times(line) for line in found.records],
    }


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
    return {name: value for name, value in line.items() if not name.startswith("seconds")}
