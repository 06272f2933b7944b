"""A user's own Flax modules, Linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import metajax
from metajax.data import episode_sampler, from_arrays


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


def build(kind):
    if kind == "linen":
        return metajax.from_linen(LinenNet(), jax.random.key(0), jnp.zeros((1, 4)))
    return metajax.from_nnx(NNXNet(nnx.Rngs(0)))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_own_arrays_and_own_module_are_meta_trained(kind):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 10)
    inputs = (rng.normal(size=(12, 4))[labels] + 0.1 * rng.normal(size=(120, 4))).astype(np.float32)
    sample = episode_sampler(from_arrays(inputs, labels), n_way=3, k_shot=2, query=2)
    params, apply = build(kind)
    learner = metajax.maml(metajax.losses.cross_entropy(apply), optax.sgd(0.5), steps=2)
    trainer = metajax.meta_trainer(learner, optax.adam(3e-3), sample, meta_batch=4)
    state, _ = trainer.run(trainer.init(params, jax.random.key(1)), 100)
    before, after = (
        metajax.evaluate(learner, p, sample, jax.random.key(2), episodes=50).mean["accuracy"]
        for p in (params, state.params)
    )
    assert after > max(0.9, before)


def test_nnx_apply_is_the_modules_call():
    module = NNXNet(nnx.Rngs(0))
    params, apply = metajax.from_nnx(module)
    inputs = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_allclose(apply(params, inputs), module(inputs), rtol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    assert not np.allclose(apply(moved, inputs), module(inputs))
    np.testing.assert_allclose(apply(params, inputs), module(inputs), rtol=1e-6)


def test_linen_with_more_collections_keeps_them():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train)(x)

    params, apply = metajax.from_linen(Net(), jax.random.key(0), jnp.zeros((2, 3)))
    assert set(params) == {"params", "batch_stats"}
    _, changed = apply(params, jnp.ones((2, 3)), train=True, mutable=["batch_stats"])
    assert float(changed["batch_stats"]["BatchNorm_0"]["mean"][0]) > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metajax.from_linen(3, jax.random.key(0)), TypeError, "flax.linen.Module, got int"),
        (lambda: metajax.from_nnx(LinenNet()), TypeError, "flax.nnx.Module, got LinenNet"),
        (lambda: metajax.from_nnx(nnx.Dropout(0.1, rngs=nnx.Rngs(0))), ValueError, "no nnx.Param"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
