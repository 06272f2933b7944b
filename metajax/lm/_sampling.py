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
        ArgumentError: a temperature or ``top_p`` isn't above 0, ``top_p`` is above 1, ``top_k``
            below 1, or one of these two comes without a temperature.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=0.9, stop_tokens=[2]).stop_tokens
        (2,)

    Source: Holtzman et al. 2020 (arXiv 1904.09751) for ``top_p``.
    """

    temperature: float | None = None
    """What logits are divided by before a token is drawn; None for the likeliest token."""
    top_k: int | None = None
    """How many of the likeliest tokens may be drawn; all if None."""
    top_p: float | None = None
    """Only the likeliest tokens may be drawn whose probabilities, after ``top_k``, first add up to
    this; all if None."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end a text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_tokens", tuple(map(int, self.stop_tokens)))
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


@functools.partial(jax.jit, static_argnames="sampling")
def choose(logits, keys, step, allowed, sampling: SamplingParams) -> tuple[jax.Array, jax.Array]:
    """A token of each row of ``logits [rows, vocab]``, and its log-probability."""
    log_probs = jax.nn.log_softmax(logits)
    scores = logits if allowed is None else jnp.where(allowed, logits, lowest(logits.dtype))
    if sampling.temperature is None:
        token = scores.argmax(axis=-1)
    else:
        scores = filtered(scores / sampling.temperature, sampling.top_k, sampling.top_p)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        token = jax.vmap(jax.random.categorical)(keys, scores)
    log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), log_prob


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
