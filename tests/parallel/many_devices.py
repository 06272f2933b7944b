"""What test_sharding.py runs in a process of eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import toy
from compilations import no_compilation

import metajax
from metajax import lm
from metajax.models import Transformer, TransformerConfig


def error(found, expected):
    """The largest difference of two trees' leaves, relative to the leaf's largest element."""
    pairs = zip(*map(jax.tree.leaves, jax.device_get((found, expected))), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def tasks_are_shared_by_any_number():
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1)
    sample, key = toy.make_sampler(), jax.random.key(3)

    def trained(mesh):
        trainer = metajax.meta_trainer(learner, optax.sgd(0.05), sample, meta_batch=8, mesh=mesh)
        state, metrics = trainer.run(trainer.init(toy.init_params(), key), 100)
        return state.params, metrics["loss"]

    expected = trained(None)
    for count in (1, 2, 4, 8):
        mesh = metajax.task_mesh(8, devices=jax.devices()[:count])
        assert mesh.size == count
        assert error(trained(mesh), expected) <= 1e-6, count


def transformer(mesh, **options):
    """A tiny one's trainer and initial state, and its loss's learner."""
    config = TransformerConfig(vocab_size=16, width=16, n_layers=1, n_heads=2)
    params, apply = metajax.from_linen(
        Transformer(config), jax.random.key(0), jnp.zeros((1, 8), int)
    )
    draw = lm.text_sampler(jnp.arange(200) ** 2 % 16, length=8, batch=2)
    learner, sample = lm.supervised(lm.next_token_loss(apply)), lm.as_episodes(draw)
    if mesh is not None:
        params = metajax.shard_params(params, mesh, **options)
    trainer = metajax.meta_trainer(learner, optax.adamw(1e-3), sample, meta_batch=4, mesh=mesh)
    return trainer, trainer.init(params, jax.random.key(1)), learner, sample


def parameters_are_split_beside_the_tasks():
    mesh = metajax.task_mesh(4, model=2, devices=jax.devices()[:4])
    assert mesh.shape == {"tasks": 2, "model": 2}
    outcomes = []
    for own in (None, mesh):
        trainer, state, learner, sample = transformer(own, min_size=64)
        placed = [leaf.sharding for leaf in jax.tree.leaves(state)]
        state, _ = trainer.step(state)
        with no_compilation():
            state, metrics = trainer.step(state)
        assert [leaf.sharding for leaf in jax.tree.leaves(state)] == placed
        scores = metajax.evaluate(
            learner, state.params, sample, jax.random.key(2), episodes=3, curve=False, mesh=own
        )
        outcomes.append((state.params, state.optimizer_state, metrics, scores.values))
    # Of two steps of Adam with a rate of 1e-3: its first one has the gradient's sign alone.
    assert error(outcomes[1], outcomes[0]) <= 1e-5, error(outcomes[1], outcomes[0])
    moments = state.optimizer_state[0].mu
    for tree in (state.params, moments):
        embedding, norm = tree["embed"]["embedding"], tree["norm"]["scale"]
        assert {part.data.shape for part in embedding.addressable_shards} == {(16, 8)}
        assert len({part.device for part in embedding.addressable_shards}) == 4
        assert norm.sharding.is_fully_replicated


if __name__ == "__main__":
    tasks_are_shared_by_any_number()
    parameters_are_split_beside_the_tasks()
