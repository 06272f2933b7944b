"""iMAML against closed forms, and against MAML that has converged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax

rng = np.random.default_rng(0)
CURVATURE = rng.normal(size=(4, 4))
CURVATURE = CURVATURE @ CURVATURE.T / 4 + np.eye(4)


def quadratic(params, batch):
    """½ (θ − c)ᵀ A (θ − c)."""
    error = params - batch
    return 0.5 * error @ CURVATURE @ error


def closed_form(theta, support, query, proximal):
    """φ = (A + λI)⁻¹ (A s + λ θ), and the gradient λ (A + λI)⁻¹ A (φ − q)."""
    system = CURVATURE + proximal * np.eye(4)
    phi = np.linalg.solve(system, CURVATURE @ support + proximal * theta)
    return proximal * np.linalg.solve(system, CURVATURE @ (phi - query))


@pytest.mark.parametrize(
    ("solver", "solver_steps", "proximal"), [("cg", 4, 1.5), ("neumann", 400, 6.0)]
)
def test_the_meta_gradient_of_a_quadratic(solver, solver_steps, proximal, x64):
    theta, support, query = rng.normal(size=(3, 4))
    learner = metajax.imaml(
        quadratic,
        optax.sgd(0.1),
        steps=400,
        proximal=proximal,
        solver=solver,
        solver_steps=solver_steps,
    )
    gradient, metrics = learner.gradient(
        jnp.asarray(theta), metajax.Episode(jnp.asarray(support), jnp.asarray(query))
    )
    np.testing.assert_allclose(gradient, closed_form(theta, support, query, proximal), rtol=1e-8)
    assert metrics["solver_residual"] < 1e-8


def test_a_solver_that_did_not_converge_says_so(x64):
    theta, support, query = map(jnp.asarray, rng.normal(size=(3, 4)))
    learner = metajax.imaml(quadratic, optax.sgd(0.1), steps=5, proximal=0.01, solver_steps=1)
    _, metrics = learner.gradient(theta, metajax.Episode(support, query))
    assert metrics["solver_residual"] > 0.1


def test_leaves_that_do_not_adapt_have_their_implicit_gradient(x64):
    """Against the derivative of the solved inner problem, by finite differences."""
    support, query = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=3))

    def loss_fn(params, batch):
        return jnp.sum((jnp.tanh(params["scale"] * params["theta"]) - batch) ** 2)

    learner = metajax.imaml(
        loss_fn,
        optax.sgd(0.05),
        steps=3000,
        proximal=2.0,
        solver_steps=10,
        trainable=lambda path: path == "theta",
    )
    params = {"theta": jnp.array([0.1, -0.2, 0.3]), "scale": jnp.array(0.7)}
    gradient, _ = learner.gradient(params, metajax.Episode(support, query))
    adapted = jax.jit(lambda params: learner.adapt(params, support)[0])

    def solved(scale):
        return float(loss_fn(adapted(params | {"scale": jnp.asarray(scale)}), query))

    step = 1e-5
    numeric = (solved(0.7 + step) - solved(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(gradient["scale"], numeric, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proximal": 1.0, "damping": -1.0}, "damping must be at least 0 and finite, got -1.0"),
        ({"proximal": 1.0, "solver": "lu"}, "solver must be one of 'cg', 'neumann', got 'lu'"),
        ({"proximal": 1.0, "solver_steps": 0}, "solver_steps must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        metajax.imaml(quadratic, optax.sgd(0.1), steps=1, **options)
