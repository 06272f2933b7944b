"""Winograd's form beside XLA's own convolution: every size, batch and order of derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metajax.models import Conv
from metajax.models.kernels import winograd


def reference(inputs, kernel):
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arguments(height, width, *, channels=3, features=2, batch=()):
    keys = jax.random.split(jax.random.key(height * 10 + width))
    inputs = jax.random.normal(keys[0], (*batch, 2, height, width, channels))
    return inputs, jax.random.normal(keys[1], (*batch, 3, 3, channels, features))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 7)])
def test_values(x64, size):
    inputs, kernel = arguments(*size)
    np.testing.assert_allclose(
        winograd.convolve(inputs, kernel), reference(inputs, kernel), atol=1e-12
    )


def test_float32_is_accurate():
    """The transforms only add, subtract and halve."""
    inputs, kernel = arguments(14, 14, channels=64, features=64)
    exact = reference(inputs, kernel)
    error = winograd.convolve(inputs, kernel) - exact
    assert float(jnp.linalg.norm(error) / jnp.linalg.norm(exact)) < 2e-6


@pytest.mark.parametrize(("examples", "parts"), [(6, 3), (7, 7), (13, 1)])
def test_examples_in_parts(x64, monkeypatch, examples, parts):
    """Values and gradients; three parts are enough, and thirteen would be too many."""
    keys = jax.random.split(jax.random.key(examples))
    inputs = jax.random.normal(keys[0], (examples, 6, 5, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 2))
    one = 8 * 16 * 9 * 3  # bytes of an example's tiles
    monkeypatch.setattr(winograd, "TILE_BYTES", one * examples // 3)
    assert winograd._parts(inputs, 2) == parts

    def outcomes(convolve):
        loss = lambda x, k: jnp.sum(jnp.sin(convolve(x, k)))
        return convolve(inputs, kernel), jax.grad(loss, argnums=(0, 1))(inputs, kernel)

    for own, other in zip(
        *map(jax.tree.leaves, map(outcomes, (winograd.convolve, reference))), strict=True
    ):
        np.testing.assert_allclose(own, other, atol=1e-11)


def test_derivatives_of_both_modes_and_orders(x64):
    check_grads(winograd.convolve, arguments(3, 4), order=3, modes=["fwd", "rev"], rtol=1e-5)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (3, 2)])
def test_batches_of_either_argument(x64, axes):
    """Values and second derivatives, inside and outside of vmap."""
    inputs, kernel = arguments(4, 3)
    stack = lambda x, axis: x if axis is None else jnp.stack([x, 2 * x, jnp.cos(x)], axis=axis)
    inputs, kernel = map(stack, (inputs, kernel), axes)

    def outcomes(convolve):
        loss = lambda x, k: jnp.sum(jnp.sin(convolve(x, k)))
        hessian_product = lambda x, k: jax.grad(
            lambda *a: sum(jnp.sum(jnp.sin(g)) for g in jax.grad(loss, argnums=(0, 1))(*a)),
            argnums=(0, 1),
        )(x, k)
        outside = jax.grad(lambda *a: jnp.sum(jax.vmap(loss, axes)(*a) ** 2), argnums=(0, 1))
        twice = jax.vmap(jax.vmap(convolve, axes), (None, 0))
        many = jnp.stack([kernel, -kernel])
        return (
            jax.vmap(hessian_product, axes)(inputs, kernel),
            outside(inputs, kernel),
            twice(inputs, many),
            jax.grad(lambda k: jnp.sum(jnp.sin(twice(inputs, k))))(many),
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9),
        outcomes(winograd.convolve),
        outcomes(reference),
    )


def test_a_convolution_of_many_channels_takes_it_on_a_cpu():
    def text(channels, **options):
        module = Conv(16, **options)
        images = jnp.zeros((1, 6, 6, channels))
        return str(jax.make_jaxpr(lambda: module.init(jax.random.key(0), images))())

    assert "metajax_convolve" in text(16)
    for channels, options in ((3, {}), (16, {"strides": 2}), (16, {"dtype": jnp.bfloat16})):
        assert "metajax_convolve" not in text(channels, **options)
