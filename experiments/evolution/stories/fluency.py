"""How likely a text is under a model: perplexity, and a guard that a frozen model keeps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import evolve as ev

_ROWS = 16


def losses_of(
    apply: Callable[..., jax.Array], width: int
) -> Callable[[Any, Sequence[Sequence[int]]], tuple[np.ndarray, np.ndarray]]:
    """``losses(params, texts) -> (sums, counts)``: of each text the sum of its tokens' negative
    log-likelihoods in nats, the first token's left out, and their number. Texts have at most
    ``width`` tokens."""

    @jax.jit
    def part(params, tokens, counted):
        log_probs = jax.nn.log_softmax(apply(params, tokens[:, :-1]))
        found = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.where(counted[:, 1:], found, 0).sum(axis=1)

    def losses(params: Any, texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        sums = []
        for start in range(0, len(texts), _ROWS):
            rows = texts[start : start + _ROWS]
            tokens = np.zeros((_ROWS, width), np.int32)
            for place, row in enumerate(rows):
                tokens[place, : len(row)] = row
            lengths = np.array([len(row) for row in rows] + [0] * (_ROWS - len(rows)))
            counted = np.arange(width) < lengths[:, None]
            sums.append(np.asarray(part(params, tokens, counted))[: len(rows)])
        return np.concatenate(sums), np.array([len(row) - 1 for row in texts])

    return losses


def perplexity(losses: tuple[np.ndarray, np.ndarray]) -> float:
    """exp of the mean loss of a token.

    >>> round(perplexity((np.array([2.0, 1.0]), np.array([2, 1]))), 3)
    2.718
    """
    return float(np.exp(losses[0].sum() / losses[1].sum()))


def fluent(
    verifier: ev.Verifier,
    likelihood: Callable[[list[list[int]]], np.ndarray],
    at_least: float,
) -> ev.Verifier:
    """A verifier whose rewards are 0 for answers that are too unlikely by themselves.

    Args:
        verifier: gives rewards.
        likelihood: mean log-likelihoods of a token, of some answers.
        at_least: the least of them.
    """

    def verify(tasks: ev.Tasks, completions: ev.Completions) -> ev.Verdict:
        verdict = verifier.verify(tasks, completions)
        rewards = np.array(verdict.rewards)
        rows, samples = np.nonzero(rewards)
        if len(rows):
            tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
            answers = [
                tokens[row, sample, : lengths[row, sample]].tolist()
                for row, sample in zip(rows, samples, strict=True)
            ]
            rewards[rows, samples] *= likelihood(answers) >= at_least
        return judged(rewards)

    return ev.Verifier(f"{verifier.name}, and a frozen model finds them fluent", verify, True)


def judged(rewards: np.ndarray) -> ev.Verdict:
    """The verdict of rewards ``[n, samples]``: every task with a right sample counts once.

    >>> judged(np.array([[0.0, 1.0], [0.0, 0.0]])).weight.tolist()
    [1.0, 0.0]
    """
    right = rewards > 0
    share = np.asarray(right.mean(axis=1), np.float32)
    weight = np.asarray(right.any(axis=1), np.float32)
    return ev.Verdict(rewards.argmax(axis=1), weight, share, rewards.astype(np.float32))
