"""Keys and values of the tokens so far, and attention to them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.losses import lowest
from metajax.models.transformer_config import TransformerConfig


class Cache(NamedTuple):
    """Keys and values of the tokens so far, in slots that fill from the left.

    Attributes:
        keys: for each block ``[batch, kv heads, slots, head_dim]``, already rotated.
        values: the same shapes.
        segments: ``[batch, slots]``, each slot's segment; 0 where it holds nothing.
        filled: how many slots are taken, an int32 scalar.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    segments: jax.Array
    filled: jax.Array


def empty_cache(config: TransformerConfig, batch: int, slots: int) -> Cache:
    """A cache with nothing in it.

    Example:
        >>> config = TransformerConfig(vocab_size=8, width=8, n_layers=2, n_heads=2, scan=False)
        >>> empty_cache(config, 3, 16).keys[1].shape
        (3, 2, 16, 4)
    """
    shape = (batch, config.n_kv_heads, slots, config.head_dim)
    blank = lambda: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.n_layers))
    segments = jnp.zeros((batch, slots), jnp.int32)
    return Cache(blank(), blank(), segments, jnp.zeros((), jnp.int32))


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention to a cache's slots, whose heads come before them: three times as fast on a CPU for
    a single query, since each head's keys are one matrix.

    Args:
        query: ``[batch, length, heads, d]``.
        keys: ``[batch, kv heads, slots, d]``, and values alike.
        values: as keys.
        mask: ``[batch, 1, length, slots]``.

    Returns:
        ``[batch, length, heads, d]``.

    Example:
        >>> attend(
        ...     jnp.ones((1, 1, 4, 2)), *2 * [jnp.ones((1, 2, 3, 2))], jnp.ones((1, 1, 1, 3), bool)
        ... ).shape
        (1, 1, 4, 2)
    """
    batch, length, heads, width = query.shape
    kind = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, width)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys, preferred_element_type=kind)
    scores = jnp.where(mask[:, :, None], scores / math.sqrt(width), lowest(kind))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    mixed = jnp.einsum("bkgts,bksd->btkgd", weights, values)
    return mixed.reshape(batch, length, heads, width)
