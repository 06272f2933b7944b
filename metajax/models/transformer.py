"""One decoder-only transformer: GPT-2, Llama, Qwen and a position-free form, by configuration."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models.cache import Cache, attend
from metajax.models.dense import Dense, times_rows
from metajax.models.rotary import rotate, rotations
from metajax.models.transformer_config import ACTIVATIONS, TransformerConfig
from metajax.types import Params


def positions_of(segments: jax.Array) -> jax.Array:
    """Each token's place in its segment, of runs of equal segments ``[batch, length]``.

    Example:
        >>> positions_of(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))
        Array([[0, 1, 0, 1, 2, 0, 1]], dtype=int32)
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


class _Step(NamedTuple):
    """What all blocks share: rotations, who sees whom, and where the cache is written."""

    rotations: tuple[jax.Array, jax.Array] | None
    mask: jax.Array  # [batch, 1, queries, keys]
    first: Any


def _norm(config: TransformerConfig, name: str) -> nn.Module:
    options: dict[str, Any] = {"epsilon": config.norm_eps, "dtype": config.dtype, "name": name}
    if config.norm == "rms":
        return nn.RMSNorm(**options)
    return nn.LayerNorm(use_fast_variance=False, **options)


class _Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, step: _Step, stored: Any) -> tuple[jax.Array, Any]:
        config = self.config
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> jax.Array:
            features = Dense(count * config.head_dim, config.qkv_bias, config.dtype, name=name)(x)
            return features.reshape(batch, length, count, config.head_dim)

        query = heads("query", config.n_heads)
        key, value = heads("key", config.n_kv_heads), heads("value", config.n_kv_heads)
        if config.qk_norm:
            query = nn.RMSNorm(config.norm_eps, dtype=config.dtype, name="query_norm")(query)
            key = nn.RMSNorm(config.norm_eps, dtype=config.dtype, name="key_norm")(key)
        if step.rotations is not None:
            query, key = (rotate(side, step.rotations) for side in (query, key))
        if stored is None:
            mixed = jax.nn.dot_product_attention(query, key, value, mask=step.mask)
        else:
            keys, values = (
                jax.lax.dynamic_update_slice(old, jnp.swapaxes(new, 1, 2), (0, 0, step.first, 0))
                for old, new in zip(stored, (key, value), strict=True)
            )
            stored = (keys, values)
            mixed = attend(query, keys, values, step.mask)
        mixed = mixed.reshape(batch, length, -1)
        scale = 0.02 / math.sqrt(2 * config.n_layers)
        return Dense(config.width, config.output_bias, config.dtype, scale, name="output")(
            mixed
        ), stored


class _MLP(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        hidden = Dense(config.mlp_width, config.mlp_bias, config.dtype, name="up")(x)
        if config.activation == "swiglu":
            gate = Dense(config.mlp_width, config.mlp_bias, config.dtype, name="gate")(x)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = ACTIVATIONS[config.activation](hidden)
        scale = 0.02 / math.sqrt(2 * config.n_layers)
        return Dense(config.width, config.mlp_bias, config.dtype, scale, name="down")(hidden)


class _Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, stored: Any, step: _Step) -> tuple[jax.Array, Any]:
        config = self.config
        normed = _norm(config, "attention_norm")(x)
        mixed, stored = _Attention(config, name="attention")(normed, step, stored)
        x = x + mixed
        return x + _MLP(config, name="mlp")(_norm(config, "mlp_norm")(x)), stored


class Transformer(nn.Module):
    """A decoder-only transformer, normalised before each part.

    Parameters: ``embed/embedding`` ``[vocab, width]``, with learned positions
    ``positions/embedding``, the blocks' under ``blocks`` with a leading axis of layers (or without
    ``scan`` under ``block_0``, ...), ``norm``, and ``head/kernel`` where it isn't tied. What a
    collection ``"lora"`` beside ``"params"`` holds is added to the matrices of the same path; see
    ``metajax.lm.lora``.

    Attributes:
        config: what it is made of.

    Example:
        >>> config = TransformerConfig.llama(vocab_size=11, width=8, n_layers=2, n_heads=2)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> logits, _ = Transformer(config).init_with_output(jax.random.key(0), tokens)
        >>> logits.shape
        (1, 3, 11)
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits ``[batch, length, vocab]`` in float32 of the token after each.

        Args:
            tokens: integers ``[batch, length]``.
            segments: ``[batch, length]``: a token sees earlier ones of its own segment, such as a
                document's in a packed sequence. 0 (or False) is padding, left or right. One segment
                if None.
            positions: ``[batch, length]``, each token's place; its place in its segment if None.
            cache: tokens before these. They then go into its next slots, which must be there, and a
                pair ``(logits, cache)`` is returned. ``positions`` must be given.
            last_only: whether to compute the last token's logits alone, ``[batch, 1, vocab]``.

        Raises:
            ArgumentError: tokens aren't integers ``[batch, length]``, or more than ``max_length``;
                segments or positions of another shape; a cache with ``scan``, or without positions.
        """
        config = self.config
        _check(config, tokens, segments, positions, cache)
        own = jnp.ones(tokens.shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
        if positions is None:
            positions = positions_of(own)
        length = tokens.shape[1]
        if cache is None:
            seen, first = own, 0
        else:
            first = cache.filled
            seen = jax.lax.dynamic_update_slice(cache.segments, own, (0, first))
        order = first + jnp.arange(length)
        causal = jnp.arange(seen.shape[1]) <= order[:, None]
        same = (own[:, :, None] == seen[:, None, :]) & (seen != 0)[:, None, :]
        mask = (causal & same)[:, None]
        turns = None
        if config.positions == "rotary":
            turns = rotations(positions, config.rotary, config.head_dim)
            if cache is not None:
                # Or XLA computes sines and cosines again in every block, for every head.
                turns = jax.lax.optimization_barrier(turns)
        step = _Step(turns, mask, first)

        embed = nn.Embed(
            config.vocab_size,
            config.width,
            dtype=config.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed",
        )
        x = embed(tokens)
        if config.positions == "learned":
            x = x + nn.Embed(
                config.max_length,
                config.width,
                dtype=config.dtype,
                embedding_init=nn.initializers.normal(0.02),
                name="positions",
            )(positions)

        block = nn.remat(_Block, prevent_cse=not config.scan) if config.remat else _Block
        stored = []
        if config.scan:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=config.n_layers,
            )
            x, _ = blocks(config, name="blocks")(x, None, step)
        else:
            for layer in range(config.n_layers):
                before = None if cache is None else (cache.keys[layer], cache.values[layer])
                x, after = block(config, name=f"block_{layer}")(x, before, step)
                stored.append(after)

        if last_only:
            x = x[:, -1:]
        x = _norm(config, "norm")(x)
        if config.tied:
            rows = embed.embedding.astype(config.dtype)
            if cache is None:
                logits = jnp.matmul(x, rows.T, preferred_element_type=jnp.float32)
            else:
                logits = times_rows(x, rows, jnp.float32)
        else:
            logits = Dense(config.vocab_size, False, config.dtype, name="head")(x, jnp.float32)
        if cache is None:
            return logits
        keys, values = zip(*stored, strict=True)
        return logits, Cache(keys, values, seen, cache.filled + length)


def _check(config: TransformerConfig, tokens: Any, segments: Any, positions: Any, cache: Any):
    _checks.array("tokens", tokens, "integers [batch, length]")
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ArgumentError(
            f"tokens must be integers [batch, length], got {tokens.dtype}{list(tokens.shape)}."
        )
    if tokens.shape[1] > config.max_length:
        raise ArgumentError(
            f"tokens must be at most max_length={config.max_length} long, got {tokens.shape[1]}."
        )
    for name, value in (("segments", segments), ("positions", positions)):
        if value is not None and _checks.array(name, value).shape != tokens.shape:
            raise ArgumentError(
                f"{name} must have the shape of tokens, {tokens.shape}, got {value.shape}."
            )
    if cache is not None:
        if config.scan:
            raise ArgumentError(
                "cache needs a model without scan, whose blocks keep their own keys and values: "
                "dataclasses.replace(config, scan=False), and the parameters by "
                "metajax.models.transformer.unstack_layers."
            )
        if positions is None:
            raise ArgumentError("positions must be given with a cache.")


def unstack_layers(params: Params) -> Params:
    """The parameters, or factors, of a model with ``scan`` for one without: a copy of each block's.

    Example:
        >>> params = unstack_layers({"blocks": {"scale": jnp.array([1.0, 2.0])}, "norm": 0.0})
        >>> sorted(params), float(params["block_1"]["scale"])
        (['block_0', 'block_1', 'norm'], 2.0)
    """
    if "blocks" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "blocks"}
    count = _checks.leading_axis("params['blocks']", params["blocks"], "layer")
    return rest | {
        f"block_{layer}": jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        for layer in range(count)
    }


def stack_layers(params: Params) -> Params:
    """What ``unstack_layers`` undoes.

    Example:
        >>> params = {"block_0": {"scale": jnp.zeros(3)}, "block_1": {"scale": jnp.ones(3)}}
        >>> stack_layers(params)["blocks"]["scale"].shape
        (2, 3)
    """
    count = sum(name.startswith("block_") for name in params)
    if not count:
        return params
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    layers = [params[f"block_{layer}"] for layer in range(count)]
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
