"""Products of matrices in bfloat16 that a CPU computes as such, closed under differentiation.

XLA has a fast product of bfloat16 on a CPU whose result is float32. It widens both matrices before
one whose result is bfloat16, or that has a matrix transposed by itself, and automatic
differentiation would make products of both kinds. So a product and its transposes are one primitive
here, of three forms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_CONTRACTED = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}
"""Which axis of each matrix is summed over, in ``a b``, ``a bᵀ`` and ``aᵀ b``."""


def product(
    x: jax.Array, matrix: jax.Array, output_dtype: Any = None, *, transposed: bool = False
) -> jax.Array:
    """``x W``, or ``x Wᵀ`` if ``transposed``, of two matrices of one type.

    Args:
        x: ``[rows, n]``.
        matrix: W, ``[n, features]``; ``[features, n]`` if transposed.
        output_dtype: of the result; that of the matrices if None. Sums are float32 at least.

    Returns:
        ``[rows, features]``.

    Example:
        >>> product(jnp.ones((2, 3)), jnp.ones((4, 3)), transposed=True).shape
        (2, 4)
    """
    form, output_dtype = "nt" if transposed else "nn", jnp.dtype(output_dtype or x.dtype)
    if x.dtype == jnp.bfloat16:
        return _product_p.bind(x, matrix, form=form, output_dtype=output_dtype)
    return _compute(x, matrix, form=form, output_dtype=output_dtype)


@jax.custom_jvp
def take_rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows ``[..., n]`` of a table ``[rows, n]``; NaN where the index is none.

    XLA widens a whole table of bfloat16 before it takes rows from it on a CPU, unless they are
    taken as bits.

    Example:
        >>> take_rows(jnp.eye(3, dtype=jnp.bfloat16), jnp.array([2]))
        Array([[0, 0, 1]], dtype=bfloat16)
    """
    if table.dtype != jnp.bfloat16:
        return jnp.take(table, index, axis=0)
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)
    rows = jnp.take(bits, index, axis=0, mode="fill", fill_value=0xFFFF)  # the bits of a NaN
    return jax.lax.bitcast_convert_type(rows, jnp.bfloat16)


@take_rows.defjvp
def _take_rows_jvp(primals, tangents):
    return take_rows(*primals), jnp.take(tangents[0], primals[1], axis=0)


def _compute(a, b, *, form, output_dtype, sums=None):
    leading = range(a.ndim - 2)
    first, second = (len(leading) + axis for axis in _CONTRACTED[form])
    dimensions = (((first,), (second,)), (leading, leading))
    result = jax.lax.dot_general(a, b, dimensions, preferred_element_type=sums or output_dtype)
    return result.astype(output_dtype)


def _compute_on_cpu(a, b, **parameters):
    return _compute(a, b, sums=jnp.float32, **parameters)


def _abstract(a, b, *, form, output_dtype):
    rows = a.shape[-1 if form == "tn" else -2]
    features = b.shape[-2 if form == "nt" else -1]
    return ShapedArray((*a.shape[:-2], rows, features), output_dtype)


def _batch(arguments, axes, *, form, output_dtype):
    a, b = arguments
    bind = lambda a, b: _product_p.bind(a, b, form=form, output_dtype=output_dtype)
    if axes[1] is None and form != "tn":  # one matrix for all: only more rows
        a = jnp.moveaxis(a, axes[0], -3)
        result = bind(a.reshape(*a.shape[:-3], -1, a.shape[-1]), b)
        return result.reshape(*a.shape[:-1], result.shape[-1]), a.ndim - 3
    if axes[0] is None and form == "nt":
        result, axis = _batch((b, a), axes[::-1], form=form, output_dtype=output_dtype)
        return jnp.swapaxes(result, -1, -2), axis
    size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
    a, b = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arguments, axes, strict=True)
    )
    return bind(a, b), 0


_TRANSPOSES = {
    "nn": (lambda bar, b: ("nt", bar, b), lambda bar, a: ("tn", a, bar)),
    "nt": (lambda bar, b: ("nn", bar, b), lambda bar, a: ("tn", bar, a)),
    "tn": (lambda bar, b: ("nt", b, bar), lambda bar, a: ("nn", a, bar)),
}
"""The gradients of ``a`` and of ``b``, each a product of the result's and the other matrix."""


def _gradient(bar, other, form, of):
    form, a, b = _TRANSPOSES[form][of](bar.astype(other.dtype), other)
    return _product_p.bind(a, b, form=form, output_dtype=other.dtype)


_product_p = Primitive("metajax_product")
_product_p.def_impl(jax.jit(_compute_on_cpu, static_argnames=("form", "output_dtype")))
_product_p.def_abstract_eval(_abstract)
mlir.register_lowering(_product_p, mlir.lower_fun(_compute, multiple_results=False))
mlir.register_lowering(
    _product_p, mlir.lower_fun(_compute_on_cpu, multiple_results=False), platform="cpu"
)
batching.primitive_batchers[_product_p] = _batch
ad.defbilinear(
    _product_p,
    lambda bar, a, b, *, form, **_: _gradient(bar, b, form, 0),
    lambda bar, a, b, *, form, **_: _gradient(bar, a, form, 1),
)
