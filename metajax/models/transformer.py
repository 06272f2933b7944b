"""One decoder-only transformer: GPT-2, Llama, Qwen, Gemma and a position-free form, by config."""

import functools
import math
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models._attention import (
    KVCache,
    Shared,
    attend_to_cache,
    positions_in_segments,
    rotate,
    shared_by_kind,
)
from metajax.models._products import product, take_rows
from metajax.models._rms_norm import RMSNormPlusOne
from metajax.models.dense import Dense, _check_fits
from metajax.models.transformer_config import TransformerConfig
from metajax.types import Params

_FEW = 32
"""Up to so many rows are the right matrix of the head's product in decoding: then a CPU reads the
large one as it is."""
_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
_GATES = {"swiglu": jax.nn.silu, "geglu_tanh": _ACTIVATIONS["gelu_tanh"]}


def _rms_norm(config: TransformerConfig, name: str) -> nn.Module:
    kind = RMSNormPlusOne if config.norm == "rms_plus_one" else nn.RMSNorm
    return kind(epsilon=config.norm_eps, dtype=config.dtype, name=name)


def _norm(config: TransformerConfig, name: str) -> nn.Module:
    options: dict[str, Any] = {"epsilon": config.norm_eps, "dtype": config.dtype, "name": name}
    if config.norm == "layer":
        return nn.LayerNorm(use_fast_variance=False, **options)
    return _rms_norm(config, name)


class _Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, cached: Any) -> tuple[jax.Array, Any]:
        config = self.config
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> jax.Array:
            features = Dense(count * config.head_dim, config.qkv_bias, config.dtype, name=name)(x)
            return features.reshape(batch, length, count, config.head_dim)

        query = heads("query", config.n_heads)
        key, value = heads("key", config.n_kv_heads), heads("value", config.n_kv_heads)
        if config.qk_norm:
            query = _rms_norm(config, "query_norm")(query)
            key = _rms_norm(config, "key_norm")(key)
        if shared.rotations is not None:
            query, key = (rotate(side, shared.rotations) for side in (query, key))
        score_width = config.score_width or config.head_dim
        if cached is None:
            scale = 1 / math.sqrt(score_width)
            # JAX asks for a product of float16 that a CPU doesn't have.
            wide = jnp.float32 if config.dtype == jnp.float16 else config.dtype
            query, key, value = (side.astype(wide) for side in (query, key, value))
            mixed = jax.nn.dot_product_attention(query, key, value, mask=shared.mask, scale=scale)
            mixed = mixed.astype(config.dtype)
        else:
            cached, prefix = cached
            keys, values = (
                jax.lax.dynamic_update_slice(old, jnp.swapaxes(new, 1, 2), (0, 0, shared.start, 0))
                for old, new in zip(cached, (key, value), strict=True)
            )
            cached = (keys, values)
            mixed = attend_to_cache(query, keys, values, shared.mask, score_width, prefix)
        mixed = mixed.reshape(batch, length, -1)
        scale = 0.02 / math.sqrt(2 * config.n_layers)
        output = Dense(config.width, config.output_bias, config.dtype, scale, name="output")
        return output(mixed), cached


class _MLP(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        hidden = Dense(config.mlp_width, config.mlp_bias, config.dtype, name="up")(x)
        if config.activation in _GATES:
            gate = Dense(config.mlp_width, config.mlp_bias, config.dtype, name="gate")(x)
            hidden = _GATES[config.activation](gate) * hidden
        else:
            hidden = _ACTIVATIONS[config.activation](hidden)
        scale = 0.02 / math.sqrt(2 * config.n_layers)
        return Dense(config.width, config.mlp_bias, config.dtype, scale, name="down")(hidden)


class _Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cached: Any, shared: Shared, kind: Any = None
    ) -> tuple[jax.Array, Any]:
        config = self.config
        if kind is not None:  # what each kind shares, stacked
            pick = functools.partial(jax.lax.dynamic_index_in_dim, index=kind, keepdims=False)
            shared = jax.tree.map(pick, shared)
        normed = _norm(config, "attention_norm")(x)
        mixed, cached = _Attention(config, name="attention")(normed, shared, cached)
        if config.post_norm:
            mixed = _norm(config, "attention_post_norm")(mixed)
        x = x + mixed
        made = _MLP(config, name="mlp")(_norm(config, "mlp_norm")(x))
        if config.post_norm:
            made = _norm(config, "mlp_post_norm")(made)
        return x + made, cached


class Transformer(nn.Module):
    """A decoder-only transformer with normalisation before each part.

    Parameters: ``embed/embedding`` ``[vocab, width]``, ``positions/embedding`` where positions are
    learned, the blocks under ``blocks`` with a leading axis of layers (without ``scan`` under
    ``block_0``, ...), ``norm``, and ``head/kernel`` where the head isn't tied. Low-rank factors in
    a collection ``"lora"`` are applied beside the matrices of the same path, with dropout where
    they ask for it and there is a random stream ``"dropout"``; see ``metajax.lm.lora``.

    Attributes:
        config: its configuration.
        at_places: True: it takes ``at=``, which ``metajax.lm.next_token_loss`` looks for.

    Example:
        >>> config = TransformerConfig.llama(vocab_size=11, width=8, n_layers=2, n_heads=2)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> init = jax.jit(Transformer(config).init_with_output)
        >>> logits, variables = init(jax.random.key(0), tokens)
        >>> logits.shape
        (1, 3, 11)
    """

    config: TransformerConfig
    at_places = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        at: jax.Array | None = None,
    ) -> Any:
        """Logits of the token after each, ``[batch, length, vocab]`` in float32.

        Args:
            tokens: integers ``[batch, length]``.
            segment_ids: ``[batch, length]``: a token sees the earlier ones with its id, such as
                those of its document in a packed row. 0 (or False) is padding, left or right. One
                segment if None.
            positions: ``[batch, length]``; each token's position in its segment if None.
            cache: the tokens before these. These tokens are then written into its next slots, which
                must be there, and the result is ``(logits, cache)``. ``positions`` must be given.
            at: integers ``[batch, n]``: the places from 0 to length - 1 whose logits are computed,
                ``[batch, n, vocab]``; those of all tokens if None.

        Raises:
            ArgumentError: tokens aren't integers ``[batch, length]``, or are more than
                ``max_length``; ids, positions or ``at`` of another shape; a cache with ``scan``, or
                without positions; factors that don't fit, or of what isn't a matrix of the blocks
                or the head.
        """
        config = self.config
        _check(config, tokens, segment_ids, positions, cache, at)
        _check_factors(self.variables)
        length = tokens.shape[1]
        if segment_ids is None:
            segment_ids = jnp.ones(tokens.shape, jnp.int32)
        segment_ids = segment_ids.astype(jnp.int32)
        if positions is None:
            positions = positions_in_segments(segment_ids)
        shared, kind_of, cache = shared_by_kind(config, segment_ids, positions, cache)

        def embedding(rows: int, name: str) -> nn.Embed:
            initial = nn.initializers.normal(0.02)
            return nn.Embed(
                rows, config.width, dtype=config.dtype, embedding_init=initial, name=name
            )

        embed = embedding(config.vocab_size, "embed")
        x = take_rows(embed.embedding, tokens).astype(config.dtype)
        if config.scaled_embedding:
            x = x * jnp.asarray(math.sqrt(config.width), config.dtype)
        if config.positions == "learned":
            x = x + embedding(config.max_length, "positions")(positions)

        block = nn.remat(_Block, prevent_cse=not config.scan) if config.remat else _Block
        written = []
        if config.scan:
            kind, together = None, shared[0]
            if len(shared) > 1:
                kind = jnp.array(kind_of)
                together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shared)
            blocks = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
                length=config.n_layers,
            )
            x, _ = blocks(config, name="blocks")(x, None, together, kind)
        else:
            for layer in range(config.n_layers):
                cached = None if cache is None else cache.layer(layer)
                x, cached = block(config, name=f"block_{layer}")(x, cached, shared[kind_of[layer]])
                written.append(cached)

        if at is not None:
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
        x = _norm(config, "norm")(x)
        if config.tied:
            rows = embed.embedding.astype(config.dtype)
            flat = x.reshape(-1, x.shape[-1])
            if cache is not None and len(flat) <= _FEW:
                # Without a barrier XLA would exchange the two.
                logits = product(rows, flat, jnp.float32, transposed=True)
                logits = jax.lax.optimization_barrier(logits).T
            else:
                logits = product(flat, rows, jnp.float32, transposed=True)
            logits = logits.reshape(*x.shape[:-1], len(rows))
        else:
            logits = Dense(config.vocab_size, False, config.dtype, name="head")(x, jnp.float32)
        if cache is None:
            return logits
        keys, values = zip(*written, strict=True)
        return logits, cache._replace(keys=keys, values=values, filled=cache.filled + length)


def _check(
    config: TransformerConfig, tokens: Any, segment_ids: Any, positions: Any, cache: Any, at: Any
):
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ArgumentError(
            f"tokens must be integers [batch, length], got {tokens.dtype}{list(tokens.shape)}."
        )
    if tokens.shape[1] > config.max_length:
        raise ArgumentError(
            f"tokens must be at most max_length={config.max_length} long, got {tokens.shape[1]}."
        )
    for name, value in (("segment_ids", segment_ids), ("positions", positions)):
        if value is not None and value.shape != tokens.shape:
            raise ArgumentError(
                f"{name} must have the shape of tokens, {tokens.shape}, got {value.shape}."
            )
    if at is not None and (jnp.ndim(at) != 2 or len(at) != len(tokens)):
        raise ArgumentError(f"at must be [batch, n] = [{len(tokens)}, n], got {jnp.shape(at)}.")
    if cache is not None:
        if config.scan:
            raise ArgumentError(
                "cache needs a model without scan, whose blocks have keys and values of their own: "
                "dataclasses.replace(config, scan=False), and the parameters by "
                "metajax.models.unstack_layers."
            )
        if positions is None:
            raise ArgumentError("positions must be given with a cache.")


def _check_factors(variables: Any) -> None:
    """Each layer sees its own factors alone: those that no layer has must be refused here."""
    if "lora" not in variables:
        return
    params, lora = (  # by path
        flax.traverse_util.flatten_dict(variables.get(name, {}), sep="/")
        for name in ("params", "lora")
    )
    for path, factors in lora.items():
        if not path.endswith("/kernel"):
            raise ArgumentError(
                f"lora has factors at {path!r}, where the model has no matrix that reads them. It "
                "reads those of a .../kernel."
            )
        kernel: Any = params.get(path)
        _check_fits(factors, () if kernel is None else kernel.shape, path)


def unstack_layers(params: Params) -> Params:
    """The parameters, or factors, of a model with ``scan`` for one without: a copy of each block's.

    Raises:
        ArgumentError: the leaves of ``blocks`` differ in their number of layers.

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
    """The parameters, or factors, of a model without ``scan`` for one with it.

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
