"""Losses after every step, their annealing, and warm starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.learners import annealed_weights, multi_step_loss, warm_start


def loss_fn(params, batch):
    return jnp.sum(jnp.cosh(params - batch)) / 5


@pytest.mark.parametrize("mode", [metajax.unrolled(), metajax.mixed()], ids=lambda m: m.name)
def test_the_weighted_loss_s_gradient_against_finite_differences(mode, x64):
    learner = metajax.maml(loss_fn, optax.sgd(0.3), steps=3, mode=mode)
    weights = jnp.array([0.2, 0.3, 0.5])
    rng = np.random.default_rng(0)
    theta, support, query, direction = map(jnp.asarray, rng.normal(size=(4, 3)))

    def total(theta):
        value, phi = 0.0, theta
        for weight in weights:
            phi = phi - 0.3 * jax.grad(loss_fn)(phi, support)
            value += weight * loss_fn(phi, query)
        return value

    episodes = metajax.Episode(support[None], query[None])
    gradient, metrics = metajax.meta_gradient(multi_step_loss(learner, weights))(theta, episodes)
    step = 1e-6
    numeric = (total(theta + step * direction) - total(theta - step * direction)) / (2 * step)
    np.testing.assert_allclose(gradient @ direction, numeric, rtol=1e-7)
    plain = learner.loss(learner.adapt(theta, support)[0], metajax.Episode(support, query))[0]
    np.testing.assert_allclose(metrics["loss"], plain, rtol=1e-12)


def test_all_weight_on_the_last_step_is_the_learner_itself(x64):
    learner = metajax.maml(loss_fn, optax.sgd(0.3), steps=3)
    episodes = metajax.Episode(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    gradients = [
        metajax.meta_gradient(one)(jnp.full(3, 0.5), episodes)[0]
        for one in (learner, multi_step_loss(learner, jnp.array([0.0, 0.0, 1.0])))
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-12)


def test_annealed_weights_go_from_alike_to_the_last_one():
    for step in (0, 30, 60, 1000):
        weights = annealed_weights(step, steps=5, over=60)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
        share = max(1 - step / 60, 0.03) / 5
        np.testing.assert_allclose(weights[:4], share, rtol=1e-6)


def test_the_trainer_s_step_chooses(x64):
    """SGD on θ from 2 towards 0, first with the gradient's factor 1, then with 1 − 2α."""
    square = lambda params, batch: jnp.sum((params - batch) ** 2)
    build = lambda mode: metajax.maml(square, optax.sgd(0.25), steps=1, mode=mode)
    both = warm_start(build(metajax.first_order()), build(metajax.unrolled()), steps=2)
    sample = lambda key: metajax.Episode(jnp.zeros(1), jnp.zeros(1))
    trainer = metajax.meta_trainer(both, optax.sgd(0.1), sample, meta_batch=4)
    state, _ = trainer.run(trainer.init(jnp.full(1, 2.0), jax.random.key(0)), 3)
    # φ = θ / 2; first order 2 φ, second order 2 φ / 2.
    np.testing.assert_allclose(state.params, 2.0 * 0.9**2 * 0.95, rtol=1e-12)


def test_annealing_inside_the_trainer():
    square = lambda params, batch: jnp.sum((params - batch) ** 2)
    learner = metajax.maml(square, optax.sgd(0.25), steps=2)
    trainer = metajax.meta_trainer(
        lambda step: multi_step_loss(learner, annealed_weights(step, steps=2, over=2)),
        optax.sgd(0.1),
        lambda key: metajax.Episode(jnp.zeros(1), jnp.zeros(1)),
        meta_batch=1,
    )
    state, _ = trainer.run(trainer.init(jnp.full(1, 1.0), jax.random.key(0)), 2)
    # The gradients of L after one and two steps are 2 θ / 4 and 2 θ / 16.
    expected = 1.0
    for first in (0.5, 0.25):
        expected *= 1 - 0.1 * 2 * (first / 4 + (1 - first) / 16)
    np.testing.assert_allclose(state.params, [expected], rtol=1e-5)


def test_bad_arguments_are_named():
    learner = metajax.maml(loss_fn, optax.sgd(0.3), steps=3)
    episodes = metajax.Episode(jnp.ones((1, 3)), jnp.zeros((1, 3)))
    wrong = multi_step_loss(learner, jnp.ones(2))
    with pytest.raises(ValueError, match=r"weights must be \[steps\] = \[3\], got shape \(2,\)"):
        metajax.meta_gradient(wrong)(jnp.ones(3), episodes)
    reptile = metajax.reptile(loss_fn, optax.sgd(0.3), steps=3)
    with pytest.raises(ValueError, match="gradient of its own"):
        multi_step_loss(reptile, jnp.ones(3))
    with pytest.raises(ValueError, match="over must be at least 1, got 0"):
        annealed_weights(0, steps=3, over=0)
