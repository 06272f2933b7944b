"""Random keys in the inner loop, against loops written by hand with the same keys."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.learners import multi_step_loss, query_key, warm_start

EXACT = [
    metajax.unrolled(),
    metajax.rematerialised(),
    metajax.mixed(),
    metajax.mixed(checkpoint_levels=1),
]
RATE, STEPS = 0.1, 3


@metajax.keyed
def loss_fn(params, batch, key):
    """A network with dropout."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["w1"])
    hidden = hidden * jax.random.bernoulli(key, 0.6, hidden.shape) / 0.6
    return jnp.mean((hidden @ params["w2"] - targets) ** 2), {"norm": jnp.sum(hidden**2)}


@metajax.keyed
def select(support, index, key):
    rows = jax.random.permutation(key, len(support[0]))[:3]
    return jax.tree.map(lambda leaf: leaf[rows], support)


def batch(seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=5))


def start():
    rng = np.random.default_rng(7)
    return {"w1": jnp.asarray(rng.normal(size=(4, 6))), "w2": jnp.asarray(rng.normal(size=6))}


def by_hand(params, support, key):
    for i in range(STEPS):
        step_key = jax.random.fold_in(key, i)
        part = select(support, i, jax.random.fold_in(step_key, 2**31 - 2))
        gradient = jax.grad(loss_fn, has_aux=True)(params, part, step_key)[0]
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    return params


def outcome_by_hand(params, episode):
    adapted = by_hand(params, episode.support, episode.key)
    query = jax.random.fold_in(episode.key, 2**31 - 1)
    return loss_fn(adapted, episode.query, query)[0]


def assert_close(a, b, rtol=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14), a, b)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("mode", EXACT, ids=lambda mode: mode.name)
def test_dropout_and_minibatches_are_those_of_a_loop_by_hand(x64, mode, kind):
    if kind == "rbg" and mode.name != "mixed":
        return
    learner = metajax.maml(loss_fn, optax.sgd(RATE), steps=STEPS, mode=mode, select=select)
    episode = metajax.Episode(batch(0), batch(1), jax.random.key(3, impl=kind))
    expected = jax.jit(jax.grad(outcome_by_hand))(start(), episode)
    found, metrics = jax.jit(metajax.learners.task_gradient(learner))(start(), episode)
    assert_close(found, expected)
    np.testing.assert_allclose(metrics["loss"], outcome_by_hand(start(), episode), rtol=1e-10)


LEARNERS = {
    "meta_sgd": lambda: metajax.meta_sgd(loss_fn, learning_rate=RATE, steps=STEPS, select=select),
    "maml_plus_plus": lambda: metajax.maml_plus_plus(
        loss_fn, learning_rate=RATE, steps=STEPS, select=select
    ),
    "meta_curvature": lambda: metajax.meta_curvature(
        loss_fn, learning_rate=RATE, steps=STEPS, select=select
    ),
    "reptile": lambda: metajax.reptile(loss_fn, optax.sgd(RATE), steps=STEPS, select=select),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_other_learners_pass_the_keys_on(x64, name):
    learner, key = LEARNERS[name](), jax.random.key(3)
    adapted, _ = jax.jit(learner.adapt)(learner.init(start()), batch(0), key=key)
    expected = by_hand(start(), batch(0), key)
    assert_close(getattr(adapted, "params", adapted), expected)
    if name == "reptile":
        gradient, _ = learner.gradient(start(), metajax.Episode(batch(0), None, key))
        assert_close(gradient, jax.tree.map(jnp.subtract, start(), expected), rtol=1e-7)


def test_changed_outer_losses_pass_the_keys_on(x64):
    learner = metajax.maml(loss_fn, optax.sgd(RATE), steps=STEPS, select=select)
    episode = metajax.Episode(batch(0), batch(1), jax.random.key(3))
    expected = jax.jit(jax.grad(outcome_by_hand))(start(), episode)
    last = multi_step_loss(learner, jnp.array([0.0, 0.0, 1.0]))
    assert_close(last.gradient(start(), episode)[0], expected)
    square = lambda p, b: (jnp.sum(p["w2"] ** 2), {"norm": jnp.zeros(())})
    plain = metajax.maml(square, optax.sgd(RATE), steps=STEPS)
    both = warm_start(plain, learner, steps=2)(2)
    assert both.keyed
    assert_close(jax.jit(both.gradient)(start(), episode)[0], expected)


def test_an_outer_loss_may_be_keyed():
    @metajax.keyed
    def outer_loss(adapted, episode, key):
        return adapted + jax.random.normal(key)

    square = lambda params, batch: (params - batch) ** 2
    learner = metajax.maml(square, optax.sgd(0.25), steps=1, outer_loss=outer_loss)
    episode = metajax.Episode(1.0, None, jax.random.key(2))
    assert learner.keyed
    loss, _ = learner.loss(jnp.array(1.0), episode)
    np.testing.assert_allclose(loss, 1 + jax.random.normal(query_key(episode)), rtol=1e-6)


def test_a_missing_key_is_named():
    options = {"optimizer": optax.sgd(RATE), "steps": 1}
    with pytest.raises(metajax.ArgumentError, match="loss_fn is keyed, so it needs a random key"):
        metajax.adapt(loss_fn, start(), batch(0), **options)
    with pytest.raises(metajax.ArgumentError, match="select is keyed"):
        metajax.adapt(lambda p, b: p["w2"].sum(), start(), batch(0), select=select, **options)


def test_nothing_random_is_computed_for_what_is_not_keyed():
    learner = metajax.maml(lambda p, b: jnp.sum((p - b) ** 2), optax.sgd(RATE), steps=2)
    assert not learner.keyed
    adapt = lambda params, key: learner.adapt(params, params, key=key)[0]
    program = str(jax.make_jaxpr(adapt)(jnp.ones(2), jax.random.key(0)))
    assert "random" not in program
