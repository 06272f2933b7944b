"""A fully connected layer with optional low-rank factors beside its matrix."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax.errors import ArgumentError
from metajax.models._products import product


class Dense(nn.Module):
    """``x W + b``; where a collection ``"lora"`` holds factors of ``kernel``, ``+ s (x A) B``.

    The factors are applied to ``x``, not added to W: under ``vmap`` over tasks with factors for
    each, ``x W`` stays one product with the shared matrix. Factors with ``dropout`` see a part of
    ``x`` where there is a random stream ``"dropout"``; ``x W`` sees all of it.

    Attributes:
        features: width of the output.
        use_bias: whether there is a ``b``.
        dtype: dtype of the computation.
        scale: standard deviation of the initial W.

    Example:
        >>> Dense(3).init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
        (2, 3)
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    scale: float = 0.02

    @nn.compact
    def __call__(self, x: jax.Array, output_dtype: Any = None) -> jax.Array:
        """Outputs ``[..., features]`` of inputs ``[..., n]``, in ``output_dtype`` if given.

        Raises:
            ArgumentError: factors don't fit the matrix.
        """
        output_dtype = output_dtype or self.dtype
        x = x.astype(self.dtype)
        kernel = self.param(
            "kernel", nn.initializers.normal(self.scale), (x.shape[-1], self.features)
        )
        # As one matrix: gradients of kernel and factors would be made from transposed copies.
        leading, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        y = product(x, kernel.astype(self.dtype), output_dtype)
        if self.has_variable("lora", "kernel"):
            factors: Any = self.get_variable("lora", "kernel")
            _check_fits(factors, kernel.shape, "/".join((*self.path, "kernel")))
            a, b = (side.astype(self.dtype) for side in (factors.a, factors.b))
            if factors.dropout and self.has_rng("dropout"):
                x = nn.Dropout(factors.dropout, deterministic=False)(x)
            y = y + (factors.scale * product(product(x, a), b)).astype(output_dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(output_dtype)
        return y.reshape(*leading, self.features)


def _check_fits(factors: Any, shape: tuple[int, ...], path: str) -> None:
    """An ArgumentError unless factors are of a matrix, or a stack of them, of this shape."""
    rank = factors.a.shape[-1]
    wanted = [(*shape[:-1], rank), (*shape[:-2], rank, *shape[-1:])]
    if len(shape) < 2 or [factors.a.shape, factors.b.shape] != wanted:
        what = f"of shape {shape}" if shape else "which the model doesn't have"
        raise ArgumentError(
            f"lora: factors of shapes {factors.a.shape} and {factors.b.shape} don't fit {path!r} "
            f"{what}."
        )
