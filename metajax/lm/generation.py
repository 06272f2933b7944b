"""Text from a language model: prefill and decoding with a cache of keys and values, compiled."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.lm import _decoding
from metajax.lm._params import DecodingParams, decoding_variables
from metajax.lm._sampling import (
    SamplingParams,
    checked_mask,
    choose,
    row_keys,
    seen_tokens,
)
from metajax.models import Transformer, TransformerConfig
from metajax.parallel import _devices as devices
from metajax.types import Params

_MULTIPLE = 8
"""Lists of prompts are padded to a multiple of this, and there is room for a multiple of new
tokens, so that not every length compiles a program."""
_SHARED = 16
"""A common prefix is shared in multiples of this, for the same reason."""
_GREEDY = SamplingParams()


class Generated(NamedTuple):
    """Continuations of prompts.

    Attributes:
        tokens: ``[prompts, samples, max_new_tokens]``; 0 after a stop token.
        log_probs: the same shape, in nats: of each token under the model itself, before
            temperature, penalty, ``top_k``, ``top_p`` and ``allowed``; 0 after a stop token.
        lengths: ``[prompts, samples]``: how many tokens there are, a stop token among them.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array


def generate(
    model: Transformer,
    params: Params | DecodingParams,
    prompts: Sequence[Sequence[int]] | np.ndarray | jax.Array,
    key: jax.Array | None = None,
    *,
    max_new_tokens: int,
    sampling: SamplingParams = _GREEDY,
    samples: int = 1,
    allowed: Any = None,
    lora: Params | None = None,
    mesh: Mesh | None = None,
) -> Generated:
    """Continues prompts, all at once.

    One program: the prompts, padded on the left, go through the model once; then a loop adds a
    token to each until all have stopped. Tokens that all prompts begin with, such as worked
    examples, are computed once for all of them, in multiples of 16, and their keys and values are
    kept once. The program is compiled for each shape of its arguments. Lists and
    ``max_new_tokens`` are rounded up to a multiple of 8 for this.

    Args:
        model: a ``Transformer``, with ``scan`` or without.
        params: its parameters, or for many calls what ``decoding_params`` makes of them.
        prompts: token ids: lists of any lengths above zero, or integers ``[prompts, length]``.
        key: the random key, needed for a temperature. Each prompt's and sample's tokens come from a
            key of their own.
        max_new_tokens: how many tokens to add, at most.
        sampling: how tokens are chosen, and which of them end a text; by default the likeliest, and
            the end tokens of the checkpoint that the model was loaded from.
        samples: how many continuations of each prompt; its keys and values are computed once.
        allowed: bools ``[vocab]``, ``[max_new_tokens, vocab]`` or
            ``[max_new_tokens, prompts, vocab]``: the tokens that may be chosen at each step.
        lora: low-rank factors beside ``params``.
        mesh: devices that share the prompts, from ``metajax.task_mesh``; JAX's default device if
            None. They don't wait for each other, and what is generated doesn't depend on them. With
            a model axis, parameters that ``metajax.shard_params`` split stay split. Over several
            processes, all of them make the same call, and each gets the whole result.

    Raises:
        ArgumentError: an empty prompt, or a token that isn't in the vocabulary; prompt and new
            tokens longer than the model's ``max_length``; a temperature without a key; ``samples``
            without a temperature; ``allowed`` of another shape, or that allows nothing at some
            step; parameters or factors of another model; prompts that the devices can't share
            equally.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> generate(model, params, [[1, 2, 3], [4]], max_new_tokens=5).tokens.shape
        (2, 1, 5)
    """
    config, sampling, key = _checked(model, max_new_tokens, sampling, key)
    samples = _checks.positive_int("samples", samples)
    if sampling.temperature is None and samples > 1:
        raise ArgumentError(f"samples={samples} would all be the same: give a temperature.")
    rows = _checked_rows(prompts, config, max_new_tokens)
    each = devices.equal_share("prompts", len(rows), mesh)
    shared = _common_prefix(rows) if each * samples > 1 else 0
    prefix = rows[0][:shared].astype(np.int32) if shared else None
    rounded = not hasattr(prompts, "shape")
    tokens, segment_ids = _padded(rows, shared, config.max_length - max_new_tokens, rounded)
    allowed = checked_mask(allowed, max_new_tokens, len(tokens), config.vocab_size)
    room = _room(shared + tokens.shape[1], max_new_tokens, config)
    if allowed is not None:
        allowed = np.pad(allowed, ((0, room - max_new_tokens), (0, 0), (0, 0)), mode="edge")
    variables = decoding_variables(config, params, lora, mesh)
    parts = _decoding.generate(
        variables, tokens, segment_ids, key, allowed, jnp.int32(max_new_tokens), config, sampling,
        room, samples, mesh, prefix,
    )  # fmt: skip
    parts = devices.on_this_process(parts)
    grouped = (part.reshape(len(rows), samples, *part.shape[1:]) for part in parts)
    return Generated(*(x[:, :, :max_new_tokens] if x.ndim == 3 else x for x in grouped))


def stream(
    model: Transformer,
    params: Params | DecodingParams,
    prompt: Sequence[int],
    key: jax.Array | None = None,
    *,
    max_new_tokens: int,
    sampling: SamplingParams = _GREEDY,
    lora: Params | None = None,
) -> Iterator[int]:
    """Yields one prompt's tokens as they come: those that ``generate`` would return.

    Arguments and errors: as of ``generate``.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> streamed = list(stream(model, params, [1, 2], max_new_tokens=3))
        >>> streamed == generate(model, params, [[1, 2]], max_new_tokens=3).tokens[0, 0].tolist()
        True
    """
    config, sampling, key = _checked(model, max_new_tokens, sampling, key)
    rows = _checked_rows([prompt], config, max_new_tokens)
    tokens, segment_ids = _padded(rows, 0, config.max_length - max_new_tokens)
    variables = decoding_variables(config, params, lora, None)

    def tokens_as_they_come() -> Iterator[int]:
        room = _room(tokens.shape[1], max_new_tokens, config)
        logits, cache, position = _decoding.prefill(variables, tokens, segment_ids, config, room)
        keys = row_keys(key, 1)
        seen = seen_tokens(tokens, segment_ids, config.vocab_size, sampling)
        for step in range(max_new_tokens):
            token, _, seen = choose(logits, keys, step, None, seen, sampling)
            yield int(token[0])
            if int(token[0]) in (sampling.stop_tokens or ()) or step + 1 == max_new_tokens:
                return
            logits, cache = _decoding.decode(variables, token, position + step, cache, config)

    return tokens_as_they_come()


def _checked(
    model: Transformer, max_new_tokens: int, sampling: SamplingParams, key: jax.Array | None
) -> tuple[TransformerConfig, SamplingParams, jax.Array]:
    """The configuration of the model that decodes, whose blocks aren't stacked, the sampling with
    its stop tokens, and the key."""
    _checks.positive_int("max_new_tokens", max_new_tokens)
    config = dataclasses.replace(model.config, scan=False)
    stops = config.stop_tokens if sampling.stop_tokens is None else sampling.stop_tokens
    for token in stops:
        if not 0 <= token < config.vocab_size:
            raise ArgumentError(
                f"stop_tokens must be below vocab_size={config.vocab_size}, got {token}."
            )
    if key is None:
        if sampling.temperature is not None:
            raise ArgumentError("key must be given with a temperature: tokens are drawn at random.")
        key = jax.random.key(0)  # isn't used
    return config, dataclasses.replace(sampling, stop_tokens=stops), key


def _checked_rows(prompts: Any, config: TransformerConfig, new: int) -> list[np.ndarray]:
    """The tokens of each prompt."""
    if hasattr(prompts, "shape") and np.ndim(prompts) != 2:
        raise ArgumentError(
            f"prompts must be [prompts, length], got an array of shape {np.shape(prompts)}."
        )
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise ArgumentError("prompts must hold at least one prompt, got none.")
    for number, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise ArgumentError(
                f"prompts[{number}] must be a list of at least one token, got {row}."
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise ArgumentError(f"prompts[{number}] must hold integers, got {row.dtype}.")
        if row.min() < 0 or row.max() >= config.vocab_size:
            raise ArgumentError(
                f"prompts[{number}] must hold tokens from 0 to {config.vocab_size - 1}, got "
                f"{row[(row < 0) | (row >= config.vocab_size)][0]}."
            )
    longest = max(row.size for row in rows)
    if longest + new > config.max_length:
        raise ArgumentError(
            f"prompts and max_new_tokens must fit into the model's max_length={config.max_length}, "
            f"got {longest} + {new} tokens."
        )
    return rows


def _common_prefix(rows: list[np.ndarray]) -> int:
    """How many tokens all rows begin with, and have more, rounded down.

    Example:
        >>> rows = [np.arange(40), np.arange(36), np.arange(33)]
        >>> _common_prefix(rows), _common_prefix([*rows, np.arange(32)])
        (32, 16)
    """
    most = min(row.size for row in rows) - 1
    differs = np.any([row[:most] != rows[0][:most] for row in rows], axis=0)
    return int(np.argmax(np.append(differs, True))) // _SHARED * _SHARED


def _padded(
    rows: list[np.ndarray], start: int, most: int, rounded: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens from ``start`` on and segment ids ``[rows, length]``, padded on the left.

    ``rounded`` makes the length a multiple, unless there are more than ``most`` tokens then.
    """
    length = max(row.size for row in rows) - start
    if rounded:
        length = min(-(-length // _MULTIPLE) * _MULTIPLE, most - start)
    tokens, segment_ids = np.zeros((2, len(rows), length), np.int32)
    for number, row in enumerate(row[start:] for row in rows):
        tokens[number, length - row.size :] = row
        segment_ids[number, length - row.size :] = 1
    return tokens, segment_ids


def _room(length: int, new: int, config: TransformerConfig) -> int:
    """How many new tokens there is room for after so many."""
    return min(-(-new // _MULTIPLE) * _MULTIPLE, config.max_length - length)
