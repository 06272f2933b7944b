"""Positions, rotations, and attention to a cache of keys and values."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.losses import lowest
from metajax.models.transformer_config import Rotary, TransformerConfig


def positions_in_segments(segment_ids: jax.Array) -> jax.Array:
    """Each token's position in its segment, a run of equal ids in ``[batch, length]``.

    Example:
        >>> positions_in_segments(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))
        Array([[0, 1, 0, 1, 2, 0, 1]], dtype=int32)
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


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


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns features i and i + d/2 of each head by its position times frequency i.

    Args:
        x: ``[batch, length, heads, d]``.
        cos_sin: from ``rotations``.

    Returns:
        The same shape and type; computed in float32.

    Example:
        >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> rotate(x, rotations(jnp.array([[2]]), Rotary(), 2)).ravel()  # cos 2, sin 2
        Array([-0.41614684,  0.9092974 ], dtype=float32)

    Source: Su et al. 2021 (arXiv 2104.09864).
    """
    cos, sin = cos_sin
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, in slots that fill from the left.

    Attributes:
        keys: for each block ``[batch, kv heads, slots, head_dim]``, already rotated.
        values: the same shapes.
        segment_ids: ``[batch, slots]``; 0 where a slot is empty.
        filled: how many slots are taken, an int32 scalar.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    segment_ids: jax.Array
    filled: jax.Array

    @classmethod
    def empty(cls, config: TransformerConfig, batch: int, slots: int) -> "KVCache":
        """A cache without tokens.

        Example:
            >>> config = TransformerConfig(vocab_size=8, width=8, n_layers=2, n_heads=2, scan=False)
            >>> KVCache.empty(config, 3, 16).keys[1].shape
            (3, 2, 16, 4)
        """
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        zeros = lambda: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.n_layers))
        segment_ids = jnp.zeros((batch, slots), jnp.int32)
        return cls(zeros(), zeros(), segment_ids, jnp.zeros((), jnp.int32))


def attend_to_cache(
    query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Attention to the slots of a cache.

    The cache has heads before slots, so that each head's keys are one matrix: three times as fast
    on a CPU for a single query.

    Args:
        query: ``[batch, length, heads, d]``.
        keys: ``[batch, kv heads, slots, d]``.
        values: as keys.
        mask: ``[batch, 1, length, slots]``.

    Returns:
        ``[batch, length, heads, d]``.

    Example:
        >>> keys = jnp.ones((1, 2, 3, 2))
        >>> mask = jnp.ones((1, 1, 1, 3), bool)
        >>> attend_to_cache(jnp.ones((1, 1, 4, 2)), keys, keys, mask).shape
        (1, 1, 4, 2)
    """
    batch, length, heads, width = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, width)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys, preferred_element_type=dtype)
    scores = jnp.where(mask[:, :, None], scores / math.sqrt(width), lowest(dtype))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    mixed = jnp.einsum("bkgts,bksd->btkgd", weights, values)
    return mixed.reshape(batch, length, heads, width)
