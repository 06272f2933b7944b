"""Text from a language model: prefill and decoding with a cache of keys and values, compiled."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.lm import _decoding
from metajax.lm.prepared import Prepared, variables_of
from metajax.lm.sampling import allowed_of, choice_of, choose, row_keys
from metajax.models import Transformer, TransformerConfig
from metajax.parallel import _devices as devices
from metajax.types import Params

Prompts = Sequence[Sequence[int]] | np.ndarray | jax.Array
"""Token ids: lists of any lengths above zero, or integers ``[prompts, length]``."""

_MULTIPLE = 8
"""Lists are padded to a multiple of this, and new tokens have room for a multiple, so that not
every length compiles a program."""


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        tokens: ``[prompts, samples, max_new_tokens]``; 0 after a stop token.
        log_probs: the same shape, in nats: of each token under the model itself, before
            temperature, ``top_k``, ``top_p`` and ``allowed``; 0 after a stop token.
        lengths: ``[prompts, samples]``: how many tokens there are, a stop token among them.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array


def generate(
    model: Transformer,
    params: Params | Prepared,
    prompts: Prompts,
    key: jax.Array | None = None,
    *,
    max_new_tokens: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    samples: int = 1,
    allowed: Any = None,
    lora: Params | None = None,
    mesh: Mesh | None = None,
) -> Generated:
    """Continues prompts, all at once, each token the likeliest or a random one.

    One program: the prompts, padded on the left, go through the model once; then a loop adds a
    token to each until all have stopped. It is compiled for each shape of its arguments, lists and
    ``max_new_tokens`` rounded up to a multiple of 8.

    Args:
        model: a ``Transformer``, with ``scan`` or without.
        params: its parameters, or these from ``prepare``. Otherwise each call first copies the
            blocks out of their stack, and all to the devices of ``mesh``.
        prompts: token ids; see ``Prompts``.
        key: the random key, needed for a ``temperature``. Each prompt's and sample's tokens come
            from a key of their own.
        max_new_tokens: how many tokens to add, at most.
        temperature: what logits are divided by before a token is drawn; None for the likeliest.
        top_k: draw among so many of the likeliest tokens only.
        top_p: draw among the likeliest tokens whose probabilities first add up to this only.
        stop_tokens: ids that end a text.
        samples: how many continuations of each prompt; its keys and values are computed once.
        allowed: bools ``[vocab]``, ``[max_new_tokens, vocab]`` or
            ``[max_new_tokens, prompts, vocab]``: the tokens that may be chosen at each step.
        lora: low-rank factors beside ``params``.
        mesh: devices that share the prompts, from ``metajax.task_mesh``; JAX's default device if
            None. They don't wait for each other, and what is generated doesn't depend on them.

    Returns:
        A ``Generated``.

    Raises:
        ArgumentError: an empty prompt, or a token that isn't in the vocabulary; prompt and new
            tokens longer than the model's ``max_length``; a temperature that isn't above 0, or one
            without a key; ``samples`` without a temperature; ``allowed`` of another shape, or that
            allows nothing at some step; ``top_k``, ``top_p`` or stop tokens out of range; ``lora``
            beside prepared parameters; prompts that the devices can't share equally.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> generate(model, params, [[1, 2, 3], [4]], max_new_tokens=5).tokens.shape
        (2, 1, 5)
    """
    config = _config_of(model)
    max_new_tokens = _checks.positive_int("max_new_tokens", max_new_tokens)
    samples = _checks.positive_int("samples", samples)
    choice = choice_of(config, temperature, top_k, top_p, stop_tokens, key)
    if temperature is None and samples > 1:
        raise ArgumentError(f"samples={samples} would all be the same: give a temperature.")
    tokens, real = _padded(prompts, config, max_new_tokens)
    devices.equal_share("prompts", len(tokens), mesh)
    allowed = allowed_of(allowed, max_new_tokens, len(tokens), config.vocab_size)
    room = _room(tokens, max_new_tokens, config)
    if allowed is not None:
        allowed = np.pad(allowed, ((0, room - max_new_tokens), (0, 0), (0, 0)), mode="edge")
    key = jax.random.key(0) if key is None else key
    variables = variables_of(config, params, lora, mesh)
    new = jnp.int32(max_new_tokens)
    rows = _decoding.generate(
        variables, tokens, real, key, allowed, new, config, choice, room, samples, mesh
    )
    grouped = (row.reshape(len(tokens), samples, *row.shape[1:]) for row in rows)
    return Generated(*(row[:, :, :max_new_tokens] if row.ndim == 3 else row for row in grouped))


def stream(
    model: Transformer,
    params: Params | Prepared,
    prompt: Sequence[int],
    key: jax.Array | None = None,
    *,
    max_new_tokens: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    lora: Params | None = None,
) -> Iterator[int]:
    """Yields one prompt's tokens as they come: those that ``generate`` would return.

    Args and errors: as ``generate``.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> streamed = list(stream(model, params, [1, 2], max_new_tokens=3))
        >>> streamed == generate(model, params, [[1, 2]], max_new_tokens=3).tokens[0, 0].tolist()
        True
    """
    config = _config_of(model)
    max_new_tokens = _checks.positive_int("max_new_tokens", max_new_tokens)
    choice = choice_of(config, temperature, top_k, top_p, stop_tokens, key)
    tokens, real = _padded([prompt], config, max_new_tokens)
    key = jax.random.key(0) if key is None else key
    variables = variables_of(config, params, lora, None)
    return _stream(variables, tokens, real, key, config, choice, max_new_tokens)


def _stream(variables, tokens, real, key, config, choice, max_new_tokens) -> Iterator[int]:
    room = _room(tokens, max_new_tokens, config)
    logits, cache, place = _decoding.prefill(variables, tokens, real, config, room)
    keys = row_keys(key, 1)
    for step in range(max_new_tokens):
        token, _ = choose(logits, keys, step, None, choice)
        yield int(token[0])
        if int(token[0]) in choice.stop_tokens or step + 1 == max_new_tokens:
            return
        logits, cache = _decoding.decode(variables, token, place + step, cache, config)


def _config_of(model: Any) -> TransformerConfig:
    """Of the model that decodes, whose blocks aren't stacked."""
    _checks.instance("model", model, Transformer, "a metajax.models.Transformer")
    return dataclasses.replace(model.config, scan=False)


def _padded(prompts: Prompts, config: TransformerConfig, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens ``[prompts, length]``, and which of them aren't padding, on the left."""
    as_they_are = hasattr(prompts, "shape")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence | np.ndarray | jax.Array):
        raise ArgumentTypeError(
            f"prompts must be lists of tokens, got {_checks.shown(prompts)}; a tokenizer makes "
            "them of texts."
        )
    if as_they_are and np.ndim(prompts) != 2:
        raise ArgumentError(
            f"prompts must be [prompts, length], got an array of shape {np.shape(prompts)}."
        )
    rows = [
        _checks.numbers(f"prompts[{number}]", prompt, "a list of tokens")
        for number, prompt in enumerate(prompts)
    ]
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
    length = longest
    if not as_they_are:
        length = min(-(-longest // _MULTIPLE) * _MULTIPLE, config.max_length - new)
    tokens, real = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        tokens[number, length - row.size :] = row
        real[number, length - row.size :] = True
    return tokens, real


def _room(tokens: np.ndarray, new: int, config: TransformerConfig) -> int:
    """How many new tokens there is room for."""
    return min(-(-new // _MULTIPLE) * _MULTIPLE, config.max_length - tokens.shape[1])
