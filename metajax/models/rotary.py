"""Rotary positions (Su et al. 2021, arXiv 2104.09864), and how they are scaled to longer texts."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Base and scaling of rotary positions.

    With ``scaling="linear"`` all frequencies are divided by ``factor``. With ``"llama3"`` only low
    ones are: those of wavelengths above ``original_length / low_freq_factor`` are divided, those
    below ``original_length / high_freq_factor`` stay, and between the two one passes smoothly into
    the other, as Llama 3.1 does.

    Raises:
        ArgumentError: a number isn't positive, or ``scaling`` is unknown.

    Example:
        >>> Rotary(theta=100.0).frequencies(4)
        array([1. , 0.1])
    """

    theta: float = 10_000.0
    """The base: frequency i of a head of width d is theta^(-2i/d)."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are changed."""
    factor: float = 1.0
    """By how much longer texts may be."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above ``original_length`` over this are scaled in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below ``original_length`` over this aren't scaled."""
    original_length: int = 8192
    """llama3: the length that the model was trained with first."""

    def __post_init__(self) -> None:
        _checks.one_of("scaling", self.scaling, ("none", "linear", "llama3"))
        for field in dataclasses.fields(self):
            if field.name != "scaling":
                _checks.positive_float(field.name, getattr(self, field.name))
        if self.scaling == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ArgumentError(
                f"low_freq_factor must be below high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}."
            )

    def frequencies(self, head_dim: int) -> np.ndarray:
        """The angle by which each pair of features turns from one place to the next,
        ``[head_dim / 2]``, in radians."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2) / head_dim)
        if self.scaling == "none":
            return frequencies
        if self.scaling == "linear":
            return frequencies / self.factor
        periods = self.original_length * frequencies / (2 * math.pi)  # turns in original_length
        kept = (periods - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


def rotations(positions: jax.Array, rotary: Rotary, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines ``[batch, length, 1, head_dim / 2]`` for ``rotate``, in float32.

    Args:
        positions: ``[batch, length]``.
        rotary: base and scaling.
        head_dim: width of a head.

    Example:
        >>> cos, _ = rotations(jnp.array([[0, 2]]), Rotary(), 2)  # cos 0, cos 2
        >>> cos.ravel()
        Array([ 1.        , -0.41614684], dtype=float32)
    """
    frequencies = jnp.asarray(rotary.frequencies(head_dim), jnp.float32)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns features i and i + d/2 of each head by its position times frequency i.

    Args:
        x: ``[batch, length, heads, d]``.
        turns: from ``rotations``.

    Returns:
        The same shape and type; computed in float32.

    Example:
        >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> rotate(x, rotations(jnp.array([[2]]), Rotary(), 2)).ravel()  # cos 2, sin 2
        Array([-0.41614684,  0.9092974 ], dtype=float32)
    """
    cos, sin = turns
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
