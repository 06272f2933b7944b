"""Meta-Curvature's matrices, written out."""

import jax.numpy as jnp
import numpy as np

import metajax


def test_the_gradient_is_multiplied_along_every_axis(x64):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(2, 3, 4, 5)))
    target = jnp.asarray(rng.normal(size=kernel.shape))
    learner = metajax.meta_curvature(
        lambda p, batch: jnp.sum((p["kernel"] - batch) ** 2) / 2 + p["bias"] @ p["bias"] / 2,
        learning_rate=0.1,
        steps=1,
    )
    start = learner.init({"kernel": kernel, "bias": jnp.arange(3.0)})
    shapes = [matrix.shape for matrix in start.curvature["kernel"]]
    assert shapes == [(6, 6), (4, 4), (5, 5)]
    a, b, c, d = (rng.normal(size=(n, n)) for n in (6, 4, 5, 3))
    curvature = {"kernel": (a, b, c), "bias": (d,)}
    adapted, _ = learner.adapt(start._replace(curvature=curvature), target)
    gradient = np.asarray(kernel - target).reshape(6, 4, 5)
    expected = np.einsum("pq,qij,ik->pkj", a, gradient, b.T)
    expected = np.einsum("pkj,lj->pkl", expected, c).reshape(kernel.shape)
    np.testing.assert_allclose(adapted.params["kernel"], kernel - 0.1 * expected, rtol=1e-12)
    np.testing.assert_allclose(
        adapted.params["bias"], np.arange(3.0) - 0.1 * d @ np.arange(3.0), rtol=1e-12
    )


def test_it_starts_as_gradient_descent():
    loss_fn = lambda p, batch: jnp.sum((p - batch) ** 2)
    learner = metajax.meta_curvature(loss_fn, learning_rate=0.25, steps=2)
    adapted, _ = learner.adapt(learner.init(jnp.zeros((2, 2))), jnp.ones((2, 2)))
    np.testing.assert_allclose(adapted.params, 0.75 * np.ones((2, 2)))
