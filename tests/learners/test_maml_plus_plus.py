"""MAML++'s learned rates against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

import metajax

MODES = [metajax.unrolled(), metajax.mixed(), metajax.first_order()]


def squared(params, batch):
    return jnp.sum((params - batch) ** 2) / 2


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
def test_gradient_of_the_rates_of_two_steps(mode, x64):
    """For L = |θ − c|² / 2 on both sets, with e = θ − s: θ_2 − s = (1 − α_1)(1 − α_0) e.

    With r = θ_2 − q: ∂L/∂α_0 = −(1 − α_1) r·e, ∂L/∂α_1 = −(1 − α_0) r·e, and
    ∂L/∂θ = (1 − α_1)(1 − α_0) r. Where inner gradients are constants, θ_2 moves with θ and with
    −α_0 · e and −α_1 · (1 − α_0) e, whose factors stay.
    """
    theta, support, query = jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0]), jnp.array([0.0, 3.0])
    rates = np.array([0.1, 0.3])
    learner = metajax.maml_plus_plus(squared, learning_rate=0.5, steps=2, mode=mode)
    meta_params = metajax.MAMLPlusPlusParams(theta, jnp.log(rates))
    gradient, _ = metajax.meta_gradient(learner)(
        meta_params, metajax.Episode(support[None], query[None])
    )
    error = np.asarray(theta - support)
    left = 1 - rates
    residual = support + left.prod() * error - query
    first_order = mode.name == "first_order"
    by_rate = -np.array([1.0 if first_order else left[1], left[0]]) * (residual @ error)
    np.testing.assert_allclose(gradient.log_rates, by_rate * rates, rtol=1e-12)
    factor = 1.0 if first_order else left.prod()
    np.testing.assert_allclose(gradient.params, factor * residual, rtol=1e-12)


def test_equals_maml_where_all_rates_are_one_rate():
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    loss_fn = lambda p, batch: jnp.sum((p["a"] * p["b"] - batch) ** 2)
    learner = metajax.maml_plus_plus(loss_fn, learning_rate=0.01, steps=3)
    adapted, _ = learner.adapt(learner.init(params), jnp.ones(2))
    by_hand = params
    for _ in range(3):
        product = by_hand["a"] * by_hand["b"] - 1
        by_hand = {
            "a": by_hand["a"] - 0.01 * 2 * product * by_hand["b"],
            "b": by_hand["b"] - 0.01 * 2 * jnp.sum(product * by_hand["a"]),
        }
    np.testing.assert_allclose(adapted.params["a"], by_hand["a"], rtol=1e-5)
    np.testing.assert_allclose(adapted.params["b"], by_hand["b"], rtol=1e-5)


def test_rates_without_steps_of_their_own_serve_any_number_of_steps():
    build = lambda steps, per_step: metajax.maml_plus_plus(
        squared, learning_rate=0.5, steps=steps, rates_per_step=per_step
    )
    shared = build(1, False).init(jnp.array([1.0]))
    adapted, _ = build(3, False).adapt(shared, jnp.zeros(1))
    np.testing.assert_allclose(adapted.params, [0.125], rtol=1e-6)
    each = build(1, True).init(jnp.array([1.0]))
    with pytest.raises(ValueError, match=r"steps is 3, but log_rates has shape \(1,\)"):
        build(3, True).adapt(each, jnp.zeros(1))


def test_rates_exist_for_the_leaves_that_adapt_alone():
    learner = metajax.maml_plus_plus(
        lambda p, b: p["a"] * p["b"], learning_rate=0.5, steps=2, trainable=lambda path: path == "a"
    )
    meta_params = learner.init({"a": jnp.ones(()), "b": jnp.ones(3)})
    assert meta_params.log_rates["b"] is None
    np.testing.assert_allclose(meta_params.log_rates["a"], np.log([0.5, 0.5]), rtol=1e-6)


def test_each_step_has_its_own_version_of_a_leaf_and_the_query_the_last(x64):
    """For L = |θ + b − c|² / 2 with a shift b_k of step k, by hand: θ_{k+1} = θ_k − α (θ_k + b_k −
    s), and the query's loss has b_2."""
    loss_fn = lambda p, batch: jnp.sum((p["theta"] + p["shift"] - batch) ** 2) / 2
    learner = metajax.maml_plus_plus(
        loss_fn, learning_rate=0.25, steps=2, per_step=lambda path: path == "shift"
    )
    start = learner.init({"theta": jnp.array(1.0), "shift": jnp.array(0.5)})
    np.testing.assert_array_equal(start.params["shift"], [0.5, 0.5, 0.5])
    assert start.log_rates["shift"] is None
    shifts = jnp.array([0.5, -1.0, 2.0])
    meta_params = start._replace(params={"theta": jnp.array(1.0), "shift": shifts})
    support, query = 3.0, -1.0
    first = 1 - 0.25 * (1 + 0.5 - support)
    second = first - 0.25 * (first - 1.0 - support)

    seen = lambda adapted: learner.loss(adapted, metajax.Episode(support, query))[0]
    adapted, info = learner.adapt(meta_params, support, observe=seen)
    np.testing.assert_allclose(adapted.params["theta"], second, rtol=1e-12)
    np.testing.assert_allclose(adapted.params["shift"], 2.0, rtol=1e-12)
    by_step = [(1 + 0.5 + 1) ** 2 / 2, (first - 1.0 + 1) ** 2 / 2, (second + 2.0 + 1) ** 2 / 2]
    np.testing.assert_allclose(info.observed, by_step, rtol=1e-12)

    episodes = metajax.Episode(jnp.array([support]), jnp.array([query]))
    gradient, _ = metajax.meta_gradient(learner)(meta_params, episodes)
    residual = second + 2.0 - query
    # ∂θ_2 / ∂(θ, b_0, b_1): (1 − α)², −α (1 − α), −α
    np.testing.assert_allclose(gradient.params["theta"], 0.75**2 * residual, rtol=1e-12)
    np.testing.assert_allclose(
        gradient.params["shift"], residual * np.array([-0.25 * 0.75, -0.25, 1.0]), rtol=1e-12
    )


def test_versions_for_another_number_of_steps_are_named():
    build = lambda steps: metajax.maml_plus_plus(
        lambda p, batch: jnp.sum(p["theta"] + p["shift"] - batch) ** 2,
        learning_rate=0.25,
        steps=steps,
        rates_per_step=False,
        per_step=lambda path: path == "shift",
    )
    meta_params = build(2).init({"theta": jnp.array(1.0), "shift": jnp.array(0.5)})
    with pytest.raises(ValueError, match=r"steps is 3, but params\['shift'\] has shape \(3,\)"):
        build(3).adapt(meta_params, 1.0)
