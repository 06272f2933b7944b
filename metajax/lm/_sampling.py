"""Choosing the next token from logits."""

import dataclasses
import functools
import math
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
    """A token for each row of ``logits [rows, vocab]``, its log-probability, ``seen`` with it.

    A token is found in two steps, its block and its place there, with two random numbers for a row:
    few passes are made over all tokens, and a token's probability is the product of two, whose
    rounding is small where the vocabulary is large.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    scores = logits
    if seen is not None:
        penalty = sampling.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores if allowed is None else jnp.where(allowed, scores, lowest(logits.dtype))
    rows, blocks = jnp.arange(len(logits)), _in_blocks(scores)
    highest = blocks.max(axis=2)
    if sampling.temperature is None:
        block = highest.argmax(axis=1)
        place = blocks[rows, block].argmax(axis=1)
    else:
        temperature, top = sampling.temperature, highest.max(axis=1, keepdims=True)
        if sampling.top_k is not None or sampling.top_p is not None:
            blocks = _in_blocks(filtered(scores, sampling.top_k, sampling.top_p, temperature))
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        first, second = jax.vmap(lambda key: jax.random.uniform(key, (2, 1)))(keys).swapaxes(0, 1)
        weights = jnp.exp((blocks - top[:, None]) / temperature).sum(axis=2)
        block = drawn(weights, first)
        place = drawn(jnp.exp((blocks[rows, block] - top) / temperature), second)
    token = block * blocks.shape[2] + place
    every = _in_blocks(logits)
    top = every.max(axis=2).max(axis=1)
    total = jnp.exp(every - top[:, None, None]).sum(axis=2).sum(axis=1)
    log_prob = logits[rows, token] - top - jnp.log(total)
    if seen is not None:
        seen = seen.at[rows, token].set(True)
    return token.astype(jnp.int32), log_prob, seen


def _in_blocks(x: jax.Array) -> jax.Array:
    """``[rows, vocab]`` as ``[rows, blocks, size]``, with about as many blocks as each is large."""
    vocabulary = x.shape[1]
    root = math.isqrt(vocabulary)
    size = next(size for size in range(root, 0, -1) if vocabulary % size == 0)
    return x.reshape(len(x), vocabulary // size, size)


def drawn(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """An index for each row, as likely as its weight; never one whose weight is 0.

    Args:
        weights: ``[rows, n]``, at least one of a row above 0.
        uniform: ``[rows, 1]``, from 0 to below 1: the share of the weights that is passed over.

    Example:
        >>> drawn(jnp.array([[0.0, 3.0, 0.0, 1.0]] * 2), jnp.array([[0.0], [0.75]])).tolist()
        [1, 3]
    """
    # Sums are rounded, each in its own order: one may be above the next.
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=1), 0)
    return jnp.argmax(sums > uniform * sums.max(axis=1, keepdims=True), axis=1)


def filtered(
    logits: jax.Array,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
) -> jax.Array:
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
        probabilities = jax.nn.softmax(ordered / temperature)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, lowest(logits.dtype))
    return logits
