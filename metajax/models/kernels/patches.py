"""A convolution as patches of the image times a matrix."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["convolve", "extract"]


def convolve(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """The convolution of images ``[examples, height, width, channels]``.

    Args:
        inputs: the images.
        kernel: ``[kernel_height, kernel_width, channels, features]``, of the same type.
        strides: vertical and horizontal stride.
        padding: (low, high) for each of the two dimensions.

    Returns:
        ``[examples, out_height, out_width, features]``.

    Example:
        >>> images, kernel, padding = jnp.ones((1, 3, 3, 2)), jnp.ones((2, 2, 2, 1)), [(0, 0)] * 2
        >>> convolve(images, kernel, (1, 1), padding).ravel()
        Array([8., 8., 8., 8.], dtype=float32)
    """
    columns = extract(inputs, kernel.shape[:2], strides, padding)
    return _product(columns, kernel.reshape(-1, kernel.shape[-1]))


def extract(
    inputs: jax.Array,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """The patches that a convolution sees, side by side.

    Returns:
        ``[examples, out_height, out_width, kernel_height · kernel_width · channels]``, in the order
        of a kernel ``[height, width, channels, features]`` flattened to a matrix.

    Example:
        >>> extract(jnp.ones((1, 4, 4, 2)), (3, 3), (2, 2), [(0, 1), (0, 1)]).shape
        (1, 2, 2, 18)
    """
    padded = jnp.pad(inputs, [(0, 0), *padding, (0, 0)])
    rows = (padded.shape[1] - kernel_size[0]) // strides[0] + 1
    columns = (padded.shape[2] - kernel_size[1]) // strides[1] + 1
    shifted = [
        jax.lax.slice(
            padded,
            (0, i, j, 0),
            (
                padded.shape[0],
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                padded.shape[3],
            ),
            (1, strides[0], strides[1], 1),
        )
        for i, j in itertools.product(range(kernel_size[0]), range(kernel_size[1]))
    ]
    return jnp.concatenate(shifted, axis=-1)


def _product(columns: jax.Array, matrix: jax.Array) -> jax.Array:
    """``columns [..., k] @ matrix [k, features]``, on a CPU in a form with fast derivatives.

    The gradient of the matrix sums over rows. XLA transposes one operand in memory for it, or reads
    it across its rows, which takes 1.4 times as long. If the smaller operand enters transposed,
    that gradient is a plain product. The barrier keeps XLA from undoing the transposition.
    """
    if jax.default_backend() != "cpu":
        return columns @ matrix
    rows = columns.reshape(-1, columns.shape[-1])
    k, features = matrix.shape
    if k >= features:
        transposed = jax.lax.optimization_barrier(matrix.T)
        outputs = jax.lax.dot_general(rows, transposed, (((1,), (1,)), ((), ())))
    else:
        transposed = jax.lax.optimization_barrier(rows.T)
        outputs = jax.lax.dot_general(transposed, matrix, (((0,), (0,)), ((), ())))
    return outputs.reshape(*columns.shape[:-1], features)
