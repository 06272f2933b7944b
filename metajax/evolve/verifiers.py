"""What of a model's own answers can be trusted, and how such checks are combined.

A verifier chooses one of a task's attempts as its label, and gives it a weight; nothing is removed,
so that shapes stay. But for ``exact`` none knows the right answer.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.solve import chosen
from metajax.evolve.types import Answers, Attempts, Tasks, Verdict, Verifier


def everything() -> Verifier:
    """Trusts the first answer, whatever it is: no filter.

    Example:
        >>> everything().name
        'everything'
    """
    return Verifier("everything", jax.jit(lambda tasks, attempts: _of_first(attempts, True)))


def must_end() -> Verifier:
    """The answer has an end token.

    Example:
        >>> must_end().name
        'must end'
    """
    return Verifier(
        "must end", jax.jit(lambda tasks, attempts: _of_first(attempts, attempts.ended[:, 0]))
    )


def majority_vote(at_least: float = 0.7) -> Verifier:
    """The label is what most samples say; trusted where so many of them do.

    Args:
        at_least: share of the samples, in (0, 1]; Lee et al. have 0.7 of five models.

    Example:
        >>> answers = jnp.array([[[4, 0], [3, 1], [4, 0]]])  # one task, three samples
        >>> attempts = Attempts(answers, 0.0 * answers, jnp.full((1, 3), 2), jnp.ones((1, 3), bool))
        >>> verdict = majority_vote(0.6).verify(None, attempts)
        >>> verdict.choice.tolist(), verdict.weight.tolist(), round(float(verdict.agreement[0]), 2)
        ([0], [1.0], 0.67)

    Source: Wang et al. 2023 (arXiv 2203.11171); Lee et al. 2025 (arXiv 2502.01612), section 6.
    """
    _share("at_least", at_least)

    @jax.jit
    def verify(tasks, attempts):
        same = (attempts.tokens[:, :, None] == attempts.tokens[:, None]).all(axis=-1)
        same &= attempts.lengths[:, :, None] == attempts.lengths[:, None]
        votes = same.mean(axis=-1, dtype=jnp.float32)
        agreement = votes.max(axis=-1)
        return Verdict(
            votes.argmax(axis=-1), (agreement >= at_least - 1e-6).astype(jnp.float32), agreement
        )

    return Verifier(f"at least {at_least:.0%} of the samples agree", verify)


def band(low: float, high: float) -> Verifier:
    """As ``majority_vote``, but trusted where the agreement lies between two bounds: the model
    sometimes succeeds, and has something to learn.

    Args:
        low: the least agreement, in (0, 1].
        high: the greatest one.

    Raises:
        ArgumentError: if a bound isn't in (0, 1], or ``low`` is above ``high``.

    Example:
        >>> band(0.3, 0.8).name
        'agreement from 30% to 80%'

    Source: Huang et al. 2025, "R-Zero" (arXiv 2508.05004), which keeps 0.3 to 0.8.
    """
    if not _share("low", low) <= _share("high", high):
        raise ArgumentError(f"low must be at most high, got {low} and {high}.")
    vote = majority_vote(low)

    def verify(tasks, attempts):
        verdict = vote.verify(tasks, attempts)
        return verdict._replace(weight=verdict.weight * (verdict.agreement <= high + 1e-6))

    return Verifier(f"agreement from {low:.0%} to {high:.0%}", jax.jit(verify))


def confident(at_least: float = 0.98, *, of: Literal["minimum", "mean"] = "minimum") -> Verifier:
    """The model gave each token of its answer so much probability, or the mean token.

    The least sure token tells a wrong answer; a mean hides it among many sure ones. The agreement
    reported is the probability.

    Args:
        at_least: in (0, 1].
        of: ``"minimum"``, the least likely token; ``"mean"``, the geometric mean of all.

    Raises:
        ArgumentError: if ``at_least`` isn't in (0, 1], or ``of`` is another word.

    Example:
        >>> log_probs = jnp.log(jnp.array([[[0.9, 0.5]], [[0.9, 0.8]]]))
        >>> attempts = Attempts(None, log_probs, jnp.full((2, 1), 2), jnp.ones((2, 1), bool))
        >>> confident(0.6).verify(None, attempts).weight.tolist()
        [0.0, 1.0]
    """
    _share("at_least", at_least)
    _checks.one_of("of", of, ("minimum", "mean"))

    @jax.jit
    def verify(tasks, attempts):
        log_probs = attempts.log_probs[:, 0]  # 0, which is certainty, behind the end
        if of == "minimum":
            sure = jnp.exp(log_probs.min(axis=-1))
        else:
            sure = jnp.exp(log_probs.sum(axis=-1) / jnp.maximum(attempts.lengths[:, 0], 1))
        return Verdict(
            jnp.zeros(len(sure), jnp.int32), (sure >= at_least).astype(jnp.float32), sure
        )

    return Verifier(f"{of} probability at least {at_least}", verify)


def expected_length(answer_length: Callable[[Any], Any]) -> Verifier:
    """The answer is as long as those of its level are known to be.

    Args:
        answer_length: tokens of an answer of a level, its end token among them; of arrays too.

    Example:
        >>> expected_length(lambda level: level + 1).name
        'expected length'
    """

    def verify(tasks, attempts):
        right = attempts.lengths[:, 0] == answer_length(jnp.asarray(tasks.levels))
        return _of_first(attempts, right)

    return Verifier("expected length", jax.jit(verify))


def most_common_length() -> Verifier:
    """The answer is as long as most valid ones of its level; nothing is known of the right length.

    Of lengths that are as common, the shorter one counts.

    Example:
        >>> lengths = jnp.array([[3], [3], [2], [5]])
        >>> attempts = Attempts(jnp.zeros((4, 1, 5)), None, lengths, lengths > 0)
        >>> tasks = Tasks(None, None, jnp.array([7, 7, 7, 8]), jnp.ones(4, bool))
        >>> most_common_length().verify(tasks, attempts).weight.tolist()
        [1.0, 1.0, 0.0, 1.0]
    """

    @jax.jit
    def verify(tasks, attempts):
        lengths, levels = attempts.lengths[:, 0], jnp.asarray(tasks.levels)
        count = attempts.tokens.shape[-1] + 1
        # A task's own level is compared with every other one: no bound on levels is needed.
        own = jax.nn.one_hot(lengths, count) * jnp.asarray(tasks.valid)[:, None]
        level_of, index = jnp.unique(
            levels, size=len(levels), return_inverse=True, fill_value=levels[0]
        )
        counts = jax.ops.segment_sum(own, index, num_segments=len(level_of))
        return _of_first(attempts, lengths == counts.argmax(axis=-1)[index])

    return Verifier("most common length", verify)


def exact(solve: Callable[[Tasks], Answers]) -> Verifier:
    """The answer is the right one, by something that knows: a ``Problem``'s ``solve``, a checker.

    With several samples the label is the first right one, and the agreement their share.

    Args:
        solve: ``solve(tasks) -> Answers``.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> exact(digits("copy").solve).uses_oracle
        True
    """

    def verify(tasks, attempts):
        right = is_right(attempts, solve(tasks))
        agreement = right.mean(axis=-1, dtype=jnp.float32)
        return Verdict(right.argmax(axis=-1), right.any(axis=-1).astype(jnp.float32), agreement)

    return Verifier("right answer", verify, uses_oracle=True)


def all_of(first: Verifier, *others: Verifier) -> Verifier:
    """The first verifier chooses the label, and all weights are multiplied.

    The others see nothing but the chosen answer; the agreement is the first one's.

    Args:
        first: such as ``majority_vote``.
        *others: such as ``must_end`` or ``confident``.

    Example:
        >>> all_of(must_end(), most_common_length(), confident(0.98)).name
        'must end, most common length, minimum probability at least 0.98'
    """

    def verify(tasks, attempts):
        verdict = first.verify(tasks, attempts)
        label = chosen(attempts, verdict.choice)
        weights = [other.verify(tasks, label).weight for other in others]
        return verdict._replace(weight=reduce(jnp.multiply, weights, verdict.weight))

    members = (first, *others)
    return Verifier(
        ", ".join(member.name for member in members),
        verify,
        any(member.uses_oracle for member in members),
    )


def learnable(verifier: Verifier, *, power: Literal["p(1-p)", "1-p"] = "p(1-p)") -> Verifier:
    """Weighs what another verifier keeps by how much can be learned from it.

    Args:
        verifier: whose agreement is p, such as ``majority_vote`` or ``exact``.
        power: ``"p(1-p)"``, scaled to at most 1; or ``"1-p"`` where p > 0, Absolute Zero's reward
            of a proposer.

    Raises:
        ArgumentError: if ``power`` is another.

    Example:
        >>> learnable(majority_vote(0.2)).name
        'at least 20% of the samples agree, weighed by p(1-p)'

    Source: Zhao et al. 2025, "Absolute Zero" (arXiv 2505.03335), equation 4, for ``"1-p"``.
    """
    _checks.one_of("power", power, ("p(1-p)", "1-p"))

    def verify(tasks, attempts):
        verdict = verifier.verify(tasks, attempts)
        return verdict._replace(weight=verdict.weight * learnability(verdict.agreement, power))

    return Verifier(f"{verifier.name}, weighed by {power}", verify, verifier.uses_oracle)


@partial(jax.jit, static_argnums=1)
def learnability(agreement: jax.Array, power: str = "p(1-p)") -> jax.Array:
    """How much is to be learned from a task that succeeds with a probability, in [0, 1].

    Example:
        >>> learnability(jnp.array([0.0, 0.5, 1.0])).tolist()
        [0.0, 1.0, 0.0]
        >>> learnability(jnp.array([0.0, 0.25, 1.0]), "1-p").tolist()
        [0.0, 0.75, 0.0]
    """
    if power == "1-p":
        return jnp.where(agreement > 0, 1 - agreement, 0)
    return 4 * agreement * (1 - agreement)


@jax.jit
def is_right(attempts: Attempts, answers: Answers) -> jax.Array:
    """Which attempts ``[n, samples]`` are the answer, to its end token.

    Example:
        >>> answers = Answers(jnp.array([[4, 13]]), jnp.array([2]))
        >>> tokens = jnp.array([[[4, 13, 0], [4, 4, 13]]])
        >>> attempts = Attempts(tokens, None, jnp.array([[2, 3]]), jnp.ones((1, 2), bool))
        >>> is_right(attempts, answers).tolist()
        [[True, False]]
    """
    width = max(attempts.tokens.shape[-1], answers.tokens.shape[-1])
    fill = lambda tokens: jnp.pad(
        jnp.asarray(tokens), [(0, 0)] * (tokens.ndim - 1) + [(0, width - tokens.shape[-1])]
    )
    same = (fill(attempts.tokens) == fill(answers.tokens)[:, None]).all(axis=-1)
    return same & (attempts.lengths == answers.lengths[:, None])


def _of_first(attempts: Attempts, trusted: Any) -> Verdict:
    count = len(attempts.lengths)
    weight = jnp.broadcast_to(jnp.asarray(trusted, jnp.float32), (count,))
    return Verdict(jnp.zeros(count, jnp.int32), weight, jnp.ones(count, jnp.float32))


def _share(name: str, value: float) -> float:
    return _checks.between(name, value, 0, 1, ends="(]")
