"""Which of a model's own answers can be trusted, and how such checks are combined.

A verifier chooses one completion of each task as its label and gives it a weight. Nothing is
removed, so shapes stay. Only ``exact_match`` knows the right answers.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.completions import chosen_completions, is_correct
from metajax.evolve.types import Answers, Completions, Tasks, Verdict, Verifier


def keep_all() -> Verifier:
    """Trusts the first completion, whatever it is.

    Example:
        >>> keep_all().name
        'everything'
    """
    return Verifier("everything", jax.jit(lambda tasks, completions: _of_first(completions, True)))


def must_end() -> Verifier:
    """Trusts a completion that has an end token.

    Example:
        >>> must_end().name
        'must end'
    """
    return Verifier(
        "must end",
        jax.jit(lambda tasks, completions: _of_first(completions, completions.ended[:, 0])),
    )


def majority_vote(at_least: float = 0.7) -> Verifier:
    """The label is the most common completion; trusted if enough samples agree.

    Args:
        at_least: least share of the samples, in (0, 1]; Lee et al. ask for 0.7 of five models.

    Raises:
        ArgumentError: ``at_least`` isn't in (0, 1].

    Example:
        >>> answers = jnp.array([[[4, 0], [3, 1], [4, 0]]])  # one task, three samples
        >>> lengths = jnp.full((1, 3), 2)
        >>> completions = Completions(answers, 0.0 * answers, lengths, lengths > 0)
        >>> verdict = majority_vote(0.6).verify(None, completions)
        >>> verdict.choice.tolist(), verdict.weight.tolist(), round(float(verdict.agreement[0]), 2)
        ([0], [1.0], 0.67)

    Source: Wang et al. 2023 (arXiv 2203.11171); Lee et al. 2025 (arXiv 2502.01612), section 6.
    """
    _share("at_least", at_least)

    @jax.jit
    def verify(tasks, completions):
        same = (completions.tokens[:, :, None] == completions.tokens[:, None]).all(axis=-1)
        same &= completions.lengths[:, :, None] == completions.lengths[:, None]
        votes = same.mean(axis=-1, dtype=jnp.float32)
        agreement = votes.max(axis=-1)
        return Verdict(
            votes.argmax(axis=-1), (agreement >= at_least - 1e-6).astype(jnp.float32), agreement
        )

    return Verifier(f"at least {at_least:.0%} of the samples agree", verify)


def agreement_band(low: float, high: float) -> Verifier:
    """A majority vote, trusted if the agreement lies between two bounds: where the model sometimes
    fails there is something to learn.

    Args:
        low: the least agreement, in (0, 1].
        high: the greatest agreement.

    Raises:
        ArgumentError: a bound isn't in (0, 1], or ``low`` is above ``high``.

    Example:
        >>> agreement_band(0.3, 0.8).name
        'agreement from 30% to 80%'

    Source: Huang et al. 2025, "R-Zero" (arXiv 2508.05004), which keeps 0.3 to 0.8.
    """
    if not _share("low", low) <= _share("high", high):
        raise ArgumentError(f"low must be at most high, got {low} and {high}.")
    vote = majority_vote(low)

    def verify(tasks, completions):
        verdict = vote.verify(tasks, completions)
        return verdict._replace(weight=verdict.weight * (verdict.agreement <= high + 1e-6))

    return Verifier(f"agreement from {low:.0%} to {high:.0%}", jax.jit(verify))


def confident(at_least: float = 0.98) -> Verifier:
    """Trusts a completion whose least likely token has enough probability under the model.

    A mean over tokens would hide the one that betrays a wrong answer. The agreement reported is the
    probability.

    Args:
        at_least: in (0, 1].

    Raises:
        ArgumentError: ``at_least`` isn't in (0, 1].

    Example:
        >>> log_probs = jnp.log(jnp.array([[[0.9, 0.5]], [[0.9, 0.8]]]))
        >>> completions = Completions(None, log_probs, jnp.full((2, 1), 2), jnp.ones((2, 1), bool))
        >>> confident(0.6).verify(None, completions).weight.tolist()
        [0.0, 1.0]
    """
    _share("at_least", at_least)

    @jax.jit
    def verify(tasks, completions):
        # Behind the end stands 0, which is certainty.
        least = jnp.exp(completions.log_probs[:, 0].min(axis=-1))
        trusted = (least >= at_least).astype(jnp.float32)
        return Verdict(jnp.zeros(len(least), jnp.int32), trusted, least)

    return Verifier(f"minimum probability at least {at_least}", verify)


def most_common_length() -> Verifier:
    """Trusts a completion of the most common length among the valid tasks of its level.

    Of equally common lengths the shortest counts.

    Example:
        >>> lengths = jnp.array([[3], [3], [2], [5]])
        >>> completions = Completions(jnp.zeros((4, 1, 5)), None, lengths, lengths > 0)
        >>> tasks = Tasks(None, None, jnp.array([7, 7, 7, 8]), jnp.ones(4, bool))
        >>> most_common_length().verify(tasks, completions).weight.tolist()
        [1.0, 1.0, 0.0, 1.0]
    """

    @jax.jit
    def verify(tasks, completions):
        lengths, levels = completions.lengths[:, 0], jnp.asarray(tasks.levels)
        count = completions.tokens.shape[-1] + 1
        votes = jax.nn.one_hot(lengths, count) * jnp.asarray(tasks.valid)[:, None]
        level_of, index = jnp.unique(
            levels, size=len(levels), return_inverse=True, fill_value=levels[0]
        )
        counts = jax.ops.segment_sum(votes, index, num_segments=len(level_of))
        return _of_first(completions, lengths == counts.argmax(axis=-1)[index])

    return Verifier("most common length", verify)


def exact_match(answer: Callable[[Tasks], Answers]) -> Verifier:
    """Trusts the right answer, by an oracle.

    The label is the first right sample, and the agreement the share of right samples.

    Args:
        answer: ``answer(tasks) -> Answers``, such as a ``Problem``'s.

    Example:
        >>> verifier = exact_match(lambda tasks: Answers(jnp.array([[4, 1]]), jnp.array([2])))
        >>> tokens = jnp.array([[[5, 1], [4, 1]]])
        >>> completions = Completions(tokens, None, jnp.full((1, 2), 2), jnp.ones((1, 2), bool))
        >>> verdict = verifier.verify(None, completions)
        >>> verdict.choice.tolist(), verdict.weight.tolist(), verdict.agreement.tolist()
        ([1], [1.0], [0.5])
    """

    def verify(tasks, completions):
        right = is_correct(completions, answer(tasks))
        agreement = right.mean(axis=-1, dtype=jnp.float32)
        return Verdict(right.argmax(axis=-1), right.any(axis=-1).astype(jnp.float32), agreement)

    return Verifier("right answer", verify, uses_oracle=True)


def all_of(first: Verifier, *others: Verifier) -> Verifier:
    """Combines verifiers: the first chooses the label, and all weights are multiplied.

    The others see the label alone. The agreement is the first one's.

    Args:
        first: such as ``majority_vote``.
        *others: such as ``must_end`` or ``confident``.

    Example:
        >>> all_of(must_end(), most_common_length(), confident(0.98)).name
        'must end, most common length, minimum probability at least 0.98'
    """

    def verify(tasks, completions):
        verdict = first.verify(tasks, completions)
        label = chosen_completions(completions, verdict.choice)
        weights = [other.verify(tasks, label).weight for other in others]
        return verdict._replace(weight=reduce(jnp.multiply, weights, verdict.weight))

    members = (first, *others)
    return Verifier(
        ", ".join(member.name for member in members),
        verify,
        any(member.uses_oracle for member in members),
    )


@jax.jit
def learnability(success: jax.Array) -> jax.Array:
    """What tasks that succeed with probability p can teach: 1 − p where p > 0, else 0.

    Args:
        success: p, ``[n]``.

    Example:
        >>> learnability(jnp.array([0.0, 0.25, 1.0])).tolist()
        [0.0, 0.75, 0.0]

    Source: Zhao et al. 2025, "Absolute Zero" (arXiv 2505.03335), equation 4.
    """
    return jnp.where(success > 0, 1 - success, 0)


@jax.jit
def uncertainty(success: jax.Array) -> jax.Array:
    """How far tasks that succeed with probability p are from being always or never right:
    min(p, 1 − p).

    ``learnability`` is greatest for the rarest success, this for p = 1/2.

    Args:
        success: p, ``[n]``.

    Example:
        >>> uncertainty(jnp.array([0.0, 0.25, 0.5, 1.0])).tolist()
        [0.0, 0.25, 0.5, 0.0]

    Source: Huang et al. 2025, "R-Zero" (arXiv 2508.05004), whose reward is twice this.
    """
    return jnp.minimum(success, 1 - success)


def _of_first(completions: Completions, trusted: Any) -> Verdict:
    count = len(completions.lengths)
    weight = jnp.broadcast_to(jnp.asarray(trusted, jnp.float32), (count,))
    return Verdict(jnp.zeros(count, jnp.int32), weight, jnp.ones(count, jnp.float32))


def _share(name: str, value: float) -> float:
    return _checks.between(name, value, 0, 1, ends="(]")
