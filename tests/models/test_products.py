"""Products and all their derivatives, in float32 and bfloat16, beside plain ones in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models._products import product, take_rows

M, K, N = 3, 4, 5
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 0.03}


def arrays(dtype, *shapes):
    generator = np.random.default_rng(0)
    return [jnp.array(generator.normal(size=shape), dtype) for shape in shapes]


def close(found, wanted, dtype):
    assert found.dtype == dtype
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(
        np.array(found, np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale
    )


def wide(*values):
    return [np.array(value, np.float64) for value in values]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_gradients(dtype, transposed):
    shape = (N, K) if transposed else (K, N)
    x, w, bar = arrays(dtype, (M, K), shape, (M, N))
    multiply = lambda x, w: product(x, w, transposed=transposed)
    found, pull = jax.vjp(multiply, x, w)
    x_bar, w_bar = pull(bar)
    x64, w64, bar64 = wide(x, w, bar)
    matrix = w64.T if transposed else w64
    close(found, x64 @ matrix, dtype)
    close(x_bar, bar64 @ matrix.T, dtype)
    close(w_bar, bar64.T @ x64 if transposed else x64.T @ bar64, dtype)
    close(jax.jvp(multiply, (x, w), (2 * x, w))[1], 3 * x64 @ matrix, dtype)
    result = product(x, w, jnp.float32, transposed=transposed)
    np.testing.assert_allclose(result, x64 @ matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_second_derivatives_in_bfloat16(transposed):
    """``f = sum((x W)³)``: of the gradient of W, the derivative along a direction V."""
    x, w, v = arrays(jnp.bfloat16, (M, K), *[(N, K) if transposed else (K, N)] * 2)
    cubes = lambda w: (product(x, w, jnp.float32, transposed=transposed) ** 3).sum()
    x64, w64, v64 = (a.T if transposed and a.shape[0] == N else a for a in wide(x, w, v))
    wanted = x64.T @ (6 * (x64 @ w64) * (x64 @ v64))
    wanted = wanted.T if transposed else wanted
    gradient = jax.grad(cubes)
    forward = jax.jvp(gradient, (w,), (v,))[1]
    along = lambda w: jnp.vdot(gradient(w).astype(jnp.float32), v.astype(jnp.float32))
    close(forward, wanted, jnp.bfloat16)
    close(jax.grad(along)(w), wanted, jnp.bfloat16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 0), (0, 1)])
def test_batches_of_batches_are_products_one_by_one(transposed, axes):
    shapes = [(M, K), (N, K) if transposed else (K, N)]
    sizes = [
        shape if axis is None else (*shape[:axis], 2, *shape[axis:])
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    x, w, bar = arrays(jnp.bfloat16, *((6, *size) for size in sizes), (6, 2, M, N))

    def one(x, w, bar):
        result, pull = jax.vjp(lambda x, w: product(x, w, transposed=transposed), x, w)
        return result, *pull(bar)

    found = jax.vmap(jax.vmap(one, in_axes=(*axes, 0)))(x, w, bar)
    for i, j in itertools.product(range(6), range(2)):
        each = [
            leaf[i] if axis is None else jnp.take(leaf[i], j, axis=axis)
            for leaf, axis in zip((x, w), axes, strict=True)
        ]
        for ours, wanted in zip(found, one(each[0], each[1], bar[i, j]), strict=True):
            np.testing.assert_allclose(
                ours[i, j].astype(jnp.float32), wanted.astype(jnp.float32), rtol=0.02, atol=0.02
            )


def test_one_matrix_for_all_is_not_copied():
    x, w = arrays(jnp.bfloat16, (7, M, K), (K, N))
    for multiply, arguments in (
        (lambda x: product(x, w), x),
        (lambda x: product(x, w.T, transposed=True), x),
        (lambda x: product(w.T, x, transposed=True), x),
    ):
        assert f"7,{K},{N}]" not in str(jax.make_jaxpr(jax.vmap(multiply))(arguments))
        assert f"7,{N},{K}]" not in str(jax.make_jaxpr(jax.vmap(multiply))(arguments))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_of_a_table_and_their_derivatives(dtype):
    table, bar = arrays(dtype, (N, K), (2, 3, K))
    index = jnp.array([[4, 0, 4], [1, N, 2]])
    rows, pull = jax.vjp(lambda table: take_rows(table, index), table)
    assert rows.dtype == dtype
    assert np.isnan(rows[1, 1]).all()
    inside = index < N
    assert rows[inside].tolist() == table[index[inside]].tolist()
    wanted = np.zeros((N, K))
    np.add.at(wanted, np.array(index[inside]), np.array(bar[inside], np.float64))
    close(pull(bar)[0], wanted, dtype)
    assert (
        jax.jvp(lambda table: take_rows(table, index), (table,), (table,))[1][inside]
        == rows[inside]
    ).all()
