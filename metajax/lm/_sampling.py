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
class SamplingParams:
    """How ``generate`` and ``stream`` choose tokens, and where they stop. Hashable.

    Without a temperature each token is the likeliest.

    Raises:
        ArgumentError: a temperature, ``top_p`` or ``repetition_penalty`` isn't above 0, ``top_p``
            is above 1, ``top_k`` below 1, or one of these two comes without a temperature.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=0.9, stop_tokens=[2]).stop_tokens
        (2,)

    Source: Holtzman et al. 2020 (arXiv 1904.09751) for ``top_p``; Keskar et al. 2019
    (arXiv 1909.05858) for ``repetition_penalty``.
    """

    temperature: float | None = None
    """What logits are divided by before a token is drawn; None for the likeliest token."""
    top_k: int | None = None
    """How many of the likeliest tokens may be drawn; all if None."""
    top_p: float | None = None
    """Only the likeliest tokens may be drawn whose probabilities, after ``top_k``, first add up to
    this; all if None."""
    stop_tokens: tuple[int, ...] | None = None
    """Tokens that end a text; those of the model's configuration if None, no token if empty."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or answer has already are divided by it where they are positive,
    and multiplied by it where they aren't, before the temperature: above 1, they come less."""

    def __post_init__(self) -> None:
        if self.stop_tokens is not None:
            object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))
        _checks.positive_float("repetition_penalty", self.repetition_penalty)
        if self.temperature is not None:
            _checks.positive_float("temperature", self.temperature)
        elif self.top_k is not None or self.top_p is not None:
            raise ArgumentError(
                f"top_k={self.top_k} and top_p={self.top_p} need a temperature: without it the "
                "likeliest token is taken."
            )
        if self.top_k is not None:
            _checks.positive_int("top_k", self.top_k)
        if self.top_p is not None:
            _checks.between("top_p", self.top_p, 0, 1, ends="(]")


def checked_mask(allowed: Any, steps: int, prompts: int, vocabulary: int) -> np.ndarray | None:
    """``generate``'s ``allowed`` as bools ``[steps, 1 or prompts, vocab]``; None if there is none.

    Raises:
        ArgumentError: its shape or dtype is another, or it allows nothing at some step.
    """
    if allowed is None:
        return None
    mask = np.asarray(allowed)
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


def seen_tokens(
    tokens: Any, is_text: Any, vocabulary: int, sampling: SamplingParams
) -> jax.Array | None:
    """Which tokens the rows ``[rows, length]`` have, ``[rows, vocab]``; None without a penalty."""
    if sampling.repetition_penalty == 1:
        return None
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocabulary), jnp.int32).at[rows, tokens].add(is_text) > 0


@functools.partial(jax.jit, static_argnames="sampling")
def choose(logits, keys, step, allowed, seen, sampling: SamplingParams):
    """A token for each row of ``logits [rows, vocab]``, its log-probability, ``seen`` with it."""
    log_probs = jax.nn.log_softmax(logits)
    scores = logits
    if seen is not None:
        penalty = sampling.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores if allowed is None else jnp.where(allowed, scores, lowest(logits.dtype))
    if sampling.temperature is None:
        token = scores.argmax(axis=-1)
    else:
        scores = filtered(scores / sampling.temperature, sampling.top_k, sampling.top_p)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        token = jax.vmap(jax.random.categorical)(keys, scores)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return token.astype(jnp.int32), log_prob, seen


def filtered(logits: jax.Array, top_k: int | None = None, top_p: float | None = None) -> jax.Array:
    """Logits ``[..., vocab]``, so low where ``SamplingParams`` exclude a token that it isn't drawn.

    Example:
        >>> probabilities = jnp.array([0.5, 0.3, 0.2])
        >>> (jax.nn.softmax(filtered(jnp.log(probabilities), top_p=0.6)) > 0).tolist()
        [True, True, False]
    """
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits >= least, logits, lowest(logits.dtype))
    if top_p is not None:
        ordered = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, lowest(logits.dtype))
    return logits
