"""Choosing the next token from logits."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.losses import lowest


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a token is chosen; a static argument. ``generate`` says what the fields mean."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop_tokens: tuple[int, ...]


def choice_of(config, temperature, top_k, top_p, stop_tokens, key) -> Choice:
    """``generate``'s arguments, checked."""
    if temperature is not None:
        temperature = _checks.positive_float("temperature", temperature)
        if key is not None:
            _checks.key("key", key)
        else:
            raise ArgumentError("key must be given with a temperature: tokens are drawn at random.")
    elif top_k is not None or top_p is not None:
        name, value = ("top_k", top_k) if top_k is not None else ("top_p", top_p)
        raise ArgumentError(
            f"{name}={value} needs a temperature: without it the likeliest is taken."
        )
    if top_k is not None:
        top_k = min(_checks.positive_int("top_k", top_k), config.vocab_size)
    if top_p is not None:
        top_p = _checks.positive_float("top_p", top_p)
        if top_p > 1:
            raise ArgumentError(f"top_p must be at most 1, got {top_p}.")
    listed = _checks.numbers("stop_tokens", stop_tokens, "a list of tokens")
    if listed.ndim != 1 or (listed.size and listed.dtype.kind not in "iu"):
        raise ArgumentError(f"stop_tokens must be a list of integers, got {stop_tokens!r}.")
    stops = tuple(listed.tolist())
    for token in stops:
        if not 0 <= token < config.vocab_size:
            raise ArgumentError(
                f"stop_tokens must be below vocab_size={config.vocab_size}, got {token}."
            )
    return Choice(temperature, top_k, top_p, stops)


def allowed_of(allowed: Any, steps: int, prompts: int, vocabulary: int) -> np.ndarray | None:
    """Bools ``[steps, 1 or prompts, vocab]``."""
    if allowed is None:
        return None
    mask = _checks.numbers("allowed", allowed, "bools")
    shapes = ((vocabulary,), (steps, vocabulary), (steps, prompts, vocabulary))
    if mask.shape not in shapes or mask.dtype != bool:
        raise ArgumentError(
            f"allowed must be bools of shape {', '.join(map(str, shapes))}, got "
            f"{mask.dtype}{list(mask.shape)}."
        )
    if mask.ndim < 3:
        mask = np.broadcast_to(mask, (steps, vocabulary))[:, None]
    empty = np.argwhere(~mask.any(axis=-1))
    if empty.size:
        raise ArgumentError(
            f"allowed must allow a token at each step, got none at step {empty[0][0]}."
        )
    return mask


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A key for each row, whatever the number of rows."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


@functools.partial(jax.jit, static_argnames="choice")
def choose(logits, keys, step, allowed, choice: Choice) -> tuple[jax.Array, jax.Array]:
    """A token of each row of ``logits [rows, vocab]``, and its log-probability."""
    log_probs = jax.nn.log_softmax(logits)
    scores = logits if allowed is None else jnp.where(allowed, logits, lowest(logits.dtype))
    if choice.temperature is None:
        token = scores.argmax(axis=-1)
    else:
        scores = filtered(scores / choice.temperature, top_k=choice.top_k, top_p=choice.top_p)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        token = jax.vmap(jax.random.categorical)(keys, scores)
    chosen = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen


def filtered(
    logits: jax.Array, *, top_k: int | None = None, top_p: float | None = None
) -> jax.Array:
    """Logits ``[..., vocab]`` with those of unlikely tokens at a value that is never drawn.

    Args:
        logits: of all tokens.
        top_k: how many of the likeliest stay.
        top_p: the likeliest stay whose probabilities, after ``top_k``, first add up to this; at
            least one.

    Example:
        >>> probabilities = jnp.array([0.5, 0.3, 0.2])
        >>> (jax.nn.softmax(filtered(jnp.log(probabilities), top_p=0.6)) > 0).tolist()
        [True, True, False]

    Source: Holtzman et al. 2020 (arXiv 1904.09751) for ``top_p``.
    """
    if top_k is not None:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, lowest(logits.dtype))
    if top_p is not None:
        ordered = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, lowest(logits.dtype))
    return logits
