"""Positions, rotations, windows, and attention to a cache of keys and values."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.errors import ArgumentError
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


def layer_kinds(config: TransformerConfig, keys: int) -> list[tuple[int, Rotary]]:
    """Each layer's window, 0 where it hides none of so many keys, and its rotary positions.

    Example:
        >>> sizes = dict(vocab_size=8, width=8, n_layers=2, n_heads=2)
        >>> config = TransformerConfig(**sizes, windows=(4, 0))
        >>> [[window for window, _ in layer_kinds(config, keys)] for keys in (4, 5)]
        [[0, 0], [4, 0]]
    """
    windows = config.windows or (0,) * config.n_layers
    local = config.local_rotary or config.rotary
    return [
        (window if window < keys else 0, local if window else config.rotary) for window in windows
    ]


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, in slots that fill from the left.

    Attributes:
        keys: for each block ``[batch, kv heads, slots, head_dim]``, already rotated.
        values: the same shapes.
        segment_ids: ``[batch, slots]``; 0 where a slot is empty.
        filled: how many slots are taken, an int32 scalar.
        positions: ``[batch, slots]``, of each token in its segment; None where no layer has a
            window of fewer slots.
        prefix: for each block keys and values ``[kv heads, tokens, head_dim]`` of tokens that stand
            before those of every row, at the positions from 0 on; None if there are none.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    segment_ids: jax.Array
    filled: jax.Array
    positions: jax.Array | None = None
    prefix: tuple[tuple[jax.Array, jax.Array], ...] | None = None

    @classmethod
    def empty(
        cls, config: TransformerConfig, batch: int, slots: int, prefix: "KVCache | None" = None
    ) -> "KVCache":
        """A cache without tokens, after those of ``prefix``, a full cache of one row, in every row.

        Example:
            >>> config = TransformerConfig(vocab_size=8, width=8, n_layers=2, n_heads=2, scan=False)
            >>> KVCache.empty(config, 3, 16).keys[1].shape
            (3, 2, 16, 4)
        """
        shape = (batch, config.n_kv_heads, slots, config.head_dim)
        zeros = lambda: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.n_layers))
        segment_ids = jnp.zeros((batch, slots), jnp.int32)
        before = None
        if prefix is not None:
            pairs = zip(prefix.keys, prefix.values, strict=True)
            before = tuple((keys[0], values[0]) for keys, values in pairs)
        cache = cls(zeros(), zeros(), segment_ids, jnp.zeros((), jnp.int32), None, before)
        narrow = any(window for window, _ in layer_kinds(config, slots + cache.prefix_length))
        return cache._replace(positions=jnp.zeros_like(segment_ids) if narrow else None)

    @property
    def prefix_length(self) -> int:
        """How many tokens ``prefix`` has."""
        return 0 if self.prefix is None else self.prefix[0][0].shape[1]

    def layer(self, number: int) -> tuple[Any, Any]:
        """Keys and values of a block's slots, and those of its prefix."""
        prefix = None if self.prefix is None else self.prefix[number]
        return (self.keys[number], self.values[number]), prefix


class Shared(NamedTuple):
    """What layers of one kind share: those of one window and one kind of rotary positions.

    Attributes:
        rotations: of ``rotations``; None without rotary positions.
        mask: ``[batch, 1, queries, keys]``; the first keys are those of the cache's prefix.
        start: the first slot of the cache to write to; 0 without one.
    """

    rotations: tuple[jax.Array, jax.Array] | None
    mask: jax.Array
    start: Any


def shared_by_kind(
    config: TransformerConfig, segment_ids: jax.Array, positions: jax.Array, cache: KVCache | None
) -> tuple[list[Shared], list[int], KVCache | None]:
    """What each kind of layers shares, and which kind each layer is of.

    Args:
        config: the model's.
        segment_ids: ``[batch, length]``, int32.
        positions: ``[batch, length]``.
        cache: the tokens before.

    Returns:
        ``(shared, kinds, cache)``: for each kind; for each layer its index among them; the cache
        with the new tokens' ids and positions.

    Raises:
        ArgumentError: the cache was made for a model without windows.

    Example:
        >>> sizes = dict(vocab_size=8, width=8, n_layers=3, n_heads=2)
        >>> ids, positions = jnp.ones((1, 3), jnp.int32), jnp.arange(3)[None]
        >>> config = TransformerConfig(**sizes, windows=(2, 2, 0))
        >>> shared, kinds, _ = shared_by_kind(config, ids, positions, None)
        >>> kinds, [kind.mask[0, 0, 2].tolist() for kind in shared]
        ([0, 0, 1], [[False, True, True], [True, True, True]])
    """
    start, key_ids, key_positions, before = 0, segment_ids, positions, 0
    if cache is not None:
        start, key_positions, before = cache.filled, cache.positions, cache.prefix_length
        key_ids = jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, start))
        if key_positions is not None:
            new = positions.astype(key_positions.dtype)
            key_positions = jax.lax.dynamic_update_slice(key_positions, new, (0, start))
        cache = cache._replace(segment_ids=key_ids, positions=key_positions)
    causal = jnp.arange(key_ids.shape[1]) <= (start + jnp.arange(segment_ids.shape[1]))[:, None]
    same = segment_ids[:, :, None] == key_ids[:, None, :]
    seen = (causal & same & (key_ids != 0)[:, None, :])[:, None]
    if before:
        text = (segment_ids != 0)[:, None, :, None]
        first = jnp.broadcast_to(text, (*seen.shape[:3], before))
        seen = jnp.concatenate([first, seen], axis=-1)
        if key_positions is not None:
            first = jnp.broadcast_to(jnp.arange(before), (len(positions), before))
            key_positions = jnp.concatenate([first, key_positions], axis=1)
    layers = layer_kinds(config, seen.shape[-1])
    kinds, shared = list(dict.fromkeys(layers)), []
    for window, rotary in kinds:
        mask, cos_sin = seen, None
        if window:
            if key_positions is None:
                raise ArgumentError(
                    f"cache has no positions, which a window of {window} tokens needs: make it by "
                    "KVCache.empty with this model's config."
                )
            distance = positions[:, :, None] - key_positions[:, None, :]
            mask = seen & (distance < window)[:, None]
        if config.positions == "rotary":
            cos_sin = rotations(positions, rotary, config.head_dim)
            if cache is not None:
                # Or XLA computes sines and cosines again in every block, for every head.
                cos_sin = jax.lax.optimization_barrier(cos_sin)
        shared.append(Shared(cos_sin, mask, start))
    return shared, [kinds.index(layer) for layer in layers], cache


def attend_to_cache(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    score_width: int,
    prefix: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Attention to the slots of a cache.

    The cache has heads before slots, so that each head's keys are one matrix: three times as fast
    on a CPU for a single query. Those of a prefix are one matrix for all rows together.

    Args:
        query: ``[batch, length, heads, d]``.
        keys: ``[batch, kv heads, slots, d]``.
        values: as keys.
        mask: ``[batch, 1, length, tokens + slots]``.
        score_width: scores are divided by its square root.
        prefix: keys and values ``[kv heads, tokens, d]`` that all rows have before their own.

    Returns:
        ``[batch, length, heads, d]``.

    Example:
        >>> keys = jnp.ones((1, 2, 3, 2))
        >>> mask = jnp.ones((1, 1, 1, 3), bool)
        >>> attend_to_cache(jnp.ones((1, 1, 4, 2)), keys, keys, mask, 2).shape
        (1, 1, 4, 2)
    """
    batch, length, heads, width = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(batch, length, keys.shape[1], -1, width)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys, preferred_element_type=dtype)
    if prefix is not None:
        first = jnp.einsum("btkgd,kpd->bkgtp", grouped, prefix[0], preferred_element_type=dtype)
        scores = jnp.concatenate([first, scores], axis=-1)
    scores = jnp.where(mask[:, :, None], scores / math.sqrt(score_width), lowest(dtype))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    before = 0 if prefix is None else prefix[1].shape[1]
    mixed = jnp.einsum("bkgts,bksd->btkgd", weights[..., before:], values)
    if prefix is not None:
        mixed += jnp.einsum("bkgtp,kpd->btkgd", weights[..., :before], prefix[1])
    return mixed.reshape(batch, length, heads, width)
