"""What test_several_processes.py runs as two processes, and computes again in one."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy

import metajax
from experiments import common
from experiments.common import processes
from metajax import lm, parallel


@functools.cache
def learner():
    # Not at import: building one uses JAX, which must know of the other processes first.
    return metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=2)


@dataclasses.dataclass(frozen=True)
class Config(common.DistributedConfig):
    """Options of the run that is stopped and resumed."""

    steps: int = 60
    """Meta-steps."""
    log_every: int = 10
    """Meta-steps a dispatch."""
    checkpoint_every: int = 20
    """Meta-steps between checkpoints."""
    stop_at: int = -1
    """The last process sends itself SIGTERM in the dispatch from this step on."""
    results: pathlib.Path | None = None
    """Where each process writes what it computed."""

    may_differ = common.DistributedConfig.may_differ | {"stop_at", "results"}


def train(mesh, dtype=jnp.float32):
    """Parameters and losses of 100 meta-steps, and in float32 further scores."""
    sample, key = toy.make_sampler(dtype), jax.random.key(3)
    trainer = metajax.meta_trainer(learner(), optax.sgd(0.05), sample, meta_batch=6, mesh=mesh)
    state, metrics = trainer.run(trainer.init(toy.init_params(dtype), key), 100)
    # Copies: the next step donates its state.
    params = jax.tree.map(np.array, parallel.to_host(state.params))
    found = {"params": params, "metrics": metrics}
    if dtype == jnp.float64:
        return found
    state, last = trainer.step(state)
    # Seven can't be shared equally.
    drawn = metajax.evaluate(learner(), state.params, sample, key, episodes=7, mesh=mesh)
    given = metajax.evaluate_episodes(
        learner(), state.params, jax.vmap(sample)(jax.random.split(key, 6)), mesh=mesh
    )
    return found | {"last": last, "drawn": drawn.values, "given": given.values}


def split_trainer(mesh):
    """A trainer of bigrams and its initial state; parameters are split where the mesh says so."""
    draw = lm.text_sampler(jnp.arange(64) ** 2 % 8, length=8, batch=4)
    loss_fn = lm.next_token_loss(lambda params, tokens: params["in"][tokens] @ params["out"])
    trainer = metajax.meta_trainer(
        lm.supervised(loss_fn), optax.adam(0.01), lm.as_episodes(draw), meta_batch=4, mesh=mesh
    )
    keys = jax.random.split(jax.random.key(5))
    params = {
        name: jax.random.normal(key, (8, 8)) for name, key in zip(("in", "out"), keys, strict=True)
    }
    if mesh is not None:
        params = metajax.shard_params(params, mesh, min_size=0)
    return trainer, trainer.init(params, jax.random.key(6))


def errors_of_one():
    """What a process is told of another's options, and of another's error."""
    index = jax.process_index()
    found = []
    for work in (
        lambda: processes.check_alike("toy", {"seed": index}),
        lambda: processes.on_first(lambda: 1 / 0),
    ):
        try:
            work()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def fit(config, mesh):
    """A run in its folder."""
    trainer, state = split_trainer(mesh)

    def run(state, steps):
        if int(state.step) == config.stop_at and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return trainer.run(state, steps)

    return common.fit(
        common.open_run("split", config), trainer._replace(run=run), state, steps=config.steps
    )


def flat(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(parallel.to_host(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def main():
    config = common.parse(Config, sys.argv[1:], "Two processes.")
    common.connect(config)
    mesh = metajax.task_mesh(6)
    found = flat({"one": train(mesh), "devices": np.array([mesh.size, jax.process_count()])})
    with jax.enable_x64(True):
        found |= flat({"double": train(mesh, jnp.float64)})
    np.savez(config.results / f"{jax.process_index()}.npz", **found)
    (config.results / f"errors-{jax.process_index()}.json").write_text(json.dumps(errors_of_one()))
    common.show("trained")
    split = metajax.task_mesh(4, model=2)
    own = split_trainer(split)[1].params["in"].addressable_shards
    np.save(config.results / f"shard-{jax.process_index()}.npy", [part.data.shape for part in own])
    fit(config, split)


if __name__ == "__main__":
    common.guard(main)
