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

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(3), (6, 4))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def build(kind):
    if kind == "linen":
        return metajax.from_linen(LinenNet(), KEY, X)
    return metajax.from_nnx(NNXNet(nnx.Rngs(0)), X)


@pytest.mark.slow
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
    np.testing.assert_allclose(apply(params, X), module(X), rtol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, params)
    assert not np.allclose(apply(moved, X), module(X))
    np.testing.assert_allclose(apply(params, X), module(X), rtol=1e-6)


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return nn.Dropout(0.5, deterministic=deterministic)(nn.Dense(3)(x))


def test_linen_dropout_gets_its_stream_from_the_key():
    module = LinenDropout()
    with pytest.raises(metajax.ArgumentError, match=r"'dropout' .* rngs=\('dropout',\)"):
        metajax.from_linen(module, KEY, X)
    params, apply = metajax.from_linen(module, KEY, X, rngs=("dropout",))
    assert metajax.is_keyed(apply)
    key = jax.random.key(5)
    expected = module.apply({"params": params}, X, rngs={"dropout": jax.random.fold_in(key, 0)})
    np.testing.assert_array_equal(apply(params, X, key), expected)
    assert not np.array_equal(apply(params, X, jax.random.key(6)), expected)
    plain = module.apply({"params": params}, X, deterministic=True)
    np.testing.assert_array_equal(apply(params, X, deterministic=True), plain)
    quiet, apply = metajax.from_linen(module, KEY, X, deterministic=True)
    np.testing.assert_array_equal(apply(quiet, X), plain)


class NNXDropout(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


def test_nnx_dropout_gets_its_stream_from_the_key():
    module = NNXDropout(nnx.Rngs(0, dropout=1))
    with pytest.raises(metajax.ArgumentError, match=r"'dropout' .* rngs=\('dropout',\)"):
        metajax.from_nnx(module, X)
    params, apply = metajax.from_nnx(module, X, rngs=("dropout",))
    key = jax.random.key(5)
    outputs = jax.jit(apply)(params, X, key)
    # The module's first draw from a stream: fold_in(its key, 0).
    drawn = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    keep = jax.random.bernoulli(drawn, 0.5, (6, 3))
    np.testing.assert_allclose(outputs, jnp.where(keep, module.dense(X) / 0.5, 0), rtol=1e-6)
    assert not np.array_equal(apply(params, X, jax.random.key(6)), outputs)
    module.eval()
    params, apply = metajax.from_nnx(module, X)
    np.testing.assert_allclose(apply(params, X), module.dense(X), rtol=1e-6)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


class NNXNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dense = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x))


def linen_norm(**options):
    return metajax.from_linen(LinenNorm(), KEY, X, **options)


def nnx_norm(**options):
    return metajax.from_nnx(NNXNorm(nnx.Rngs(0)), X, **options)


@pytest.mark.parametrize("norm", [linen_norm, nnx_norm])
def test_running_statistics_come_out_and_do_not_adapt(norm):
    with pytest.raises(metajax.ArgumentError, match=r"'batch_stats' .*mutable=\('batch_stats',\)"):
        norm()
    params, apply = norm(mutable=("batch_stats",))
    assert set(params) == {"params", "batch_stats"}
    outputs, changed = apply(params, X)
    assert set(changed) == {"batch_stats"}
    first = jax.tree.leaves(changed)[0]
    np.testing.assert_allclose(first, 0.01 * X.mean(axis=0), rtol=1e-5)
    mean, var = X.mean(axis=0), X.var(axis=0)
    dense = next(part for part in params["params"].values() if "kernel" in part)
    expected = ((X - mean) / jnp.sqrt(var + 1e-5)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)

    loss_fn = metajax.losses.cross_entropy(apply)
    learner = metajax.maml(loss_fn, optax.sgd(0.5), steps=2)
    batch = metajax.Batch(X, jnp.array([0, 1, 2, 0, 1, 2]))
    adapted, _ = learner.adapt(params, batch)
    jax.tree.map(np.testing.assert_array_equal, adapted["batch_stats"], params["batch_stats"])
    assert not np.array_equal(jax.tree.leaves(adapted)[-1], jax.tree.leaves(params)[-1])
    _, metrics = learner.loss(adapted, metajax.Episode(batch, batch))
    carried, metrics = metajax.carry_statistics(params, metrics)
    jax.tree.map(np.testing.assert_array_equal, carried["batch_stats"], changed["batch_stats"])
    assert set(metrics) == {"accuracy"}


def test_an_nnx_module_reads_its_running_statistics():
    module = NNXNorm(nnx.Rngs(0))
    module.eval()
    params, apply = metajax.from_nnx(module, X)
    moved = {**params, "batch_stats": jax.tree.map(lambda leaf: leaf + 1, params["batch_stats"])}
    module.norm.mean[...] = module.norm.mean[...] + 1
    module.norm.var[...] = module.norm.var[...] + 1
    np.testing.assert_allclose(apply(moved, X), module(X), rtol=1e-6)


def test_a_recurrent_module_needs_no_stream():
    """NNX's LSTM draws a key for its first carry, and makes zeros of it."""
    sequence = jnp.ones((2, 5, 4))
    module = nn.RNN(nn.LSTMCell(3))
    params, apply = metajax.from_linen(module, KEY, sequence)
    np.testing.assert_array_equal(
        apply(params, sequence), module.apply({"params": params}, sequence)
    )
    module = nnx.RNN(nnx.LSTMCell(4, 3, rngs=nnx.Rngs(0)))
    params, apply = metajax.from_nnx(module, sequence)
    assert not metajax.is_keyed(apply)
    np.testing.assert_allclose(apply(params, sequence), module(sequence), rtol=1e-6)


def test_linen_with_more_collections_keeps_them():
    params, apply = metajax.from_linen(LinenNorm(), KEY, X, train=False)
    assert set(params) == {"params", "batch_stats"}
    _, changed = apply(params, X + 1, train=True, mutable=["batch_stats"])
    assert float(changed["batch_stats"]["BatchNorm_0"]["mean"][0]) > 0


def test_a_module_without_parameters_is_named():
    with pytest.raises(ValueError, match=r"no nnx.Param"):
        metajax.from_nnx(nnx.Dropout(0.1, rngs=nnx.Rngs(0)))
