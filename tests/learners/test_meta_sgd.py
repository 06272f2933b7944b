"""Meta-SGD's learned rates against their closed form."""

import jax.numpy as jnp
import numpy as np

import metajax


def test_gradient_of_rates_and_initialisation(x64):
    """For θ' = θ − 2α(θ − s), L = Σ(θ' − q)²: ∂L/∂α = −4(θ' − q)(θ − s), ∂L/∂θ = 2(θ' − q)(1 − 2α).

    First order leaves out the factor 1 − 2α.
    """
    theta, alpha = jnp.array([1.0, -2.0]), 0.1
    support, query = jnp.array([0.5, 1.0]), jnp.array([0.0, 3.0])
    for mode in (metajax.unrolled(), metajax.mixed(), metajax.first_order()):
        learner = metajax.meta_sgd(
            lambda params, batch: jnp.sum((params - batch) ** 2),
            learning_rate=alpha,
            steps=1,
            mode=mode,
        )
        episodes = metajax.Episode(support[None], query[None])
        gradient, _ = metajax.meta_gradient(learner)(learner.init(theta), episodes)
        adapted = theta - alpha * 2 * (theta - support)
        outer = 2 * (adapted - query)
        factor = 1.0 if mode.name == "first_order" else 1 - 2 * alpha
        np.testing.assert_allclose(gradient.rates, -outer * 2 * (theta - support), rtol=1e-12)
        np.testing.assert_allclose(gradient.params, outer * factor, rtol=1e-12)


def test_rates_exist_for_the_leaves_that_adapt_alone():
    learner = metajax.meta_sgd(
        lambda p, b: p["a"] * p["b"], learning_rate=0.5, steps=1, trainable=lambda path: path == "a"
    )
    meta_params = learner.init({"a": jnp.ones(2), "b": jnp.ones(3)})
    assert meta_params.rates["b"] is None
    np.testing.assert_array_equal(meta_params.rates["a"], [0.5, 0.5])
