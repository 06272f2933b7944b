"""check_gradient: right and wrong derivatives, kinks, casts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax

PARAMS = {"layer": {"w": jnp.array([[0.3, -0.2], [0.1, 0.4]])}, "b": jnp.array(0.5)}
BATCH = jnp.array([1.0, -2.0])


def loss_fn(params, x):
    hidden = jax.nn.relu(params["layer"]["w"] @ x)
    return jnp.sum(jnp.sin(hidden)) + params["b"] ** 3, {"hidden": hidden}


@jax.custom_jvp
def cube(x):
    return x**3


cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 2 * primals[0] ** 2 * tangents[0]))


def test_a_right_gradient():
    slopes = metajax.check_gradient(loss_fn, PARAMS, BATCH, elements=4)
    assert all(slope.agrees for slope in slopes)
    assert {slope.leaf for slope in slopes} == {"layer/w", "b"}
    expected = jax.grad(lambda p: loss_fn(p, BATCH)[0])(PARAMS)["layer"]["w"]
    for row, column in np.ndindex(2, 2):
        (slope,) = (s for s in slopes if s.along == f"element ({row}, {column})")
        assert slope.gradient == pytest.approx(float(expected[row, column]), rel=1e-5)
        assert slope.difference == pytest.approx(slope.gradient, rel=1e-6, abs=1e-7)
    assert not jax.config.jax_enable_x64
    assert PARAMS["b"].dtype == jnp.float32


def test_a_wrong_derivative_is_named_with_both_numbers():
    wrong = lambda params, x: loss_fn(params, x)[0] - params["b"] ** 3 + cube(params["b"])
    with pytest.raises(metajax.CheckError) as error:
        metajax.check_gradient(wrong, PARAMS, BATCH)
    message = str(error.value)
    assert message.startswith("leaf 'b', along")
    assert "0.5, differs from the finite difference, 0.75" in message.replace("0.750000000", "0.75")


def test_a_gradient_of_ones_own():
    exact = lambda params, x: jax.grad(lambda p: loss_fn(p, x)[0])(params)
    metajax.check_gradient(loss_fn, PARAMS, BATCH, gradient=exact)
    half = lambda params, x: jax.tree.map(lambda g: g / 2, exact(params, x))
    with pytest.raises(metajax.CheckError, match=r"leaf 'b'.*comparisons differ"):
        metajax.check_gradient(loss_fn, PARAMS, BATCH, gradient=half)


def test_a_loss_that_stays_in_float32():
    with pytest.raises(metajax.ArgumentError, match="loss_fn returns float32"):
        metajax.check_gradient(lambda p, x: p.astype(jnp.float32).sum(), jnp.ones(3))
    through = lambda p, x: jnp.sum(p.astype(jnp.float32).astype(p.dtype) ** 2)
    with pytest.raises(metajax.CheckError, match="casts float64 to float32 on its way"):
        metajax.check_gradient(through, jnp.array([0.1, 0.7]))


@pytest.mark.parametrize(
    ("loss", "params", "message"),
    [
        (lambda p, x: p.sum(), jnp.array([1]), "params has no floating-point leaf"),
        (lambda p, x: jnp.abs(p).sum(), jnp.array([1j]), "leaf '' is complex"),
        (lambda p, x: p, jnp.ones(2), r"loss_fn must return a scalar, got shape \(2,\)"),
        (lambda p, x: jnp.log(-p), jnp.array(1.0), "loss_fn is nan at these parameters"),
    ],
)
def test_what_cannot_be_checked_is_named(loss, params, message):
    with pytest.raises(metajax.ArgumentError, match=message):
        metajax.check_gradient(loss, params)


def test_integers_stay_as_they_are():
    params = {"table": jnp.array([2, 0]), "w": jnp.array([1.0, 2.0, 3.0])}
    slopes = metajax.check_gradient(lambda p, x: jnp.sum(p["w"][p["table"]] ** 2), params)
    assert {slope.leaf for slope in slopes} == {"w"}
