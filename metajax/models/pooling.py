"""Max-pooling whose derivatives of any order are cheap."""

import jax
import jax.numpy as jnp

from metajax.errors import ArgumentError


def max_pool(inputs: jax.Array) -> jax.Array:
    """The maximum of every 2×2 window of ``[examples, height, width, channels]``.

    An odd last row or column is left out. The second derivatives and the ``vmap`` of XLA's own
    ``reduce_window`` are slow; these cost no more than the maximum itself. Where two values are
    equal, the first has the derivative.

    Raises:
        ArgumentError: if the inputs aren't images of at least 2×2 pixels.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel()
        Array([ 5.,  7., 13., 15.], dtype=float32)
    """
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < 2:
        raise ArgumentError(
            "inputs of a pooling must be images [examples, height, width, channels] of at least "
            f"2 × 2 pixels, got shape {inputs.shape}: the images are too small for the network."
        )
    examples, height, width, channels = inputs.shape
    rows, columns = height // 2, width // 2
    pairs = inputs[:, : 2 * rows, : 2 * columns].reshape(examples, rows, 2, 2 * columns, channels)
    taller = _larger(pairs[:, :, 0], pairs[:, :, 1])
    pairs = taller.reshape(examples, rows, columns, 2, channels)
    return _larger(pairs[:, :, :, 0], pairs[:, :, :, 1])


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of two; where they are equal, the derivative is that of the first."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals, tangents):
    a, b = primals
    return _larger(a, b), jax.lax.select(a >= b, *tangents)
