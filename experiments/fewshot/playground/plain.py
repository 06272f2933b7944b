"""A traced function in operations that ONNX has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

Array: TypeAlias = jax.Array


def in_plain_operations(traced: core.ClosedJaxpr) -> Callable[..., list[Array]]:
    """The same function, with what jax2onnx 0.17 can't take in other operations.

    The gradient of a strided slice pads between elements, that of a label's logit adds at an index,
    metajax's Winograd convolution is a primitive of its own, and a product along first axes gets
    operands that don't fit inside a loop.
    """
    return lambda *inputs: _run(traced.jaxpr, traced.consts, inputs)


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Array]:
    values: dict[Any, Any] = {}
    values |= zip(jaxpr.constvars, consts, strict=True)
    values |= zip(jaxpr.invars, inputs, strict=True)
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for equation in jaxpr.eqns:
        results = _operation(
            equation.primitive, [read(atom) for atom in equation.invars], equation.params
        )
        values |= zip(equation.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _operation(
    primitive: core.Primitive, inputs: list[Any], params: Mapping[str, Any]
) -> Sequence[Array]:
    inner = params.get("jaxpr") or params.get("call_jaxpr")
    match primitive.name:
        case "scan":
            return _scan(inputs, params)
        case _ if isinstance(inner, core.ClosedJaxpr):  # of a function that was called
            return _run(inner.jaxpr, inner.consts, inputs)
        case _ if isinstance(inner, core.Jaxpr):
            return _run(inner, [], inputs)
        case "pad":
            return [_pad(inputs, params["padding_config"])]
        case "scatter-add":
            return [_add_at(inputs, params["dimension_numbers"])]
        case "dot_general" if all(np.ndim(each) == 2 for each in inputs):
            return [_product(inputs, params["dimension_numbers"])]
        case "metajax_convolve":
            images, kernel = inputs
            names = ("NHWC", "HWIO", "NHWC")
            return [
                lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=names)
            ]
    results = primitive.bind(*inputs, **params)
    return results if primitive.multiple_results else [results]


def _scan(inputs: list[Any], params: Mapping[str, Any]) -> list[Array]:
    inner, fixed, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry, rows = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]

    def step(carry: list[Array], row: list[Array]) -> tuple[list[Array], list[Array]]:
        results = _run(inner.jaxpr, inner.consts, [*consts, *carry, *row])
        return results[:carried], results[carried:]

    carry, stacked = lax.scan(step, carry, rows, length=params["length"], reverse=params["reverse"])
    return [*carry, *stacked]


def _pad(inputs: Sequence[Array], config: Sequence[tuple[int, int, int]]) -> Array:
    """``lax.pad`` whose padding between elements is padding along an axis of its own."""
    array, value = inputs
    for axis, (_, _, between) in enumerate(config):
        if between:
            after = [(0, 0, 0)] * (array.ndim + 1)
            after[axis + 1] = (0, between, 0)
            shape = list(array.shape)
            shape[axis] *= 1 + between
            array = lax.pad(lax.expand_dims(array, [axis + 1]), value, after)
            array = lax.slice_in_dim(lax.reshape(array, shape), 0, shape[axis] - between, axis=axis)
    return lax.pad(array, value, [(low, high, 0) for low, high, _ in config])


def _product(inputs: Sequence[Array], numbers: Any) -> Array:
    """The product of two matrices, with transpositions as operations of their own."""
    left, right = inputs
    ((along_left,), (along_right,)), _ = numbers
    left = left if along_left == 1 else lax.transpose(left, (1, 0))
    right = right if along_right == 0 else lax.transpose(right, (1, 0))
    return lax.dot(left, right)


def _add_at(inputs: Sequence[Array], numbers: Any) -> Array:
    """``scatter-add`` of one element to each row, as in the gradient of a label's logit."""
    array, indices, updates = inputs
    if array.ndim != 2 or numbers.inserted_window_dims != (1,) or updates.size != len(array):
        raise NotImplementedError(f"another scatter-add: {numbers}")
    column = lax.reshape(indices, (indices.size, 1))  # one for each row, or the same for all
    at = column == jnp.arange(array.shape[1])
    return array + jnp.where(at, lax.reshape(updates, (len(array), 1)), 0)
