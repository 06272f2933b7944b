"""Whether θ_{t+1} replaces θ_t: held-out tasks, and a test with a stated confidence."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.completions import chosen_completions, is_correct
from metajax.evolve.proposers import fingerprints
from metajax.evolve.types import Answers, Completions, Problem, Solver, Tasks, Verifier
from metajax.types import Params


class HeldOut(NamedTuple):
    """Tasks that are never learned from.

    Attributes:
        known: tasks of the real data's levels.
        answers: their right answers, from real data; not used with a verifier that knows them.
        frontier: tasks of the newest rounds' levels, without answers.
    """

    known: Tasks
    answers: Answers
    frontier: Tasks


class Decision(NamedTuple):
    """What the gate decides.

    Attributes:
        accepted: whether θ_{t+1} is taken.
        before: θ_t's mean score on each group of held-out tasks.
        after: θ_{t+1}'s.
        lowest: for each group the lower bound of after − before, at the stated confidence.
        reason: in words.
    """

    accepted: bool
    before: Mapping[str, float]
    after: Mapping[str, float]
    lowest: Mapping[str, float]
    reason: str


Gate = Callable[[Params, Params, jax.Array, HeldOut], Decision]
"""``gate(old, new, key, held_out) -> Decision``."""


def non_inferior(
    solve: Solver,
    verifier: Verifier,
    *,
    known: Solver | None = None,
    margin: float = 0.05,
    confidence: float = 0.95,
) -> Gate:
    """A non-inferiority test: accepts θ_{t+1} if it is, with confidence, worse than θ_t by no more
    than a margin.

    Each held-out task scores 0 or 1. A known task scores 1 if the answer is right. A frontier task,
    to which nobody knows the answer, scores 1 if the answer is trusted and, where θ_t's answer was
    trusted, equal to it. θ_t labelled the new data; a model that answers otherwise where θ_t was
    sure has learned something else.

    A verifier that knows right answers (``uses_oracle``) scores both groups by itself; any of
    several right answers will do.

    The mean difference of the scores, task by task, has a standard error. θ_{t+1} is accepted if
    the lower bound of the one-sided interval is above −margin in both groups. So a held-out set
    that is too small refuses.

    Args:
        solve: answers the tasks.
        verifier: decides what is trusted on the frontier.
        known: answers the known tasks, of which the first completion counts; ``solve`` if None.
        margin: acceptable loss, in (0, 1).
        confidence: of the bound, in (0.5, 1).

    Raises:
        ArgumentError: an argument is out of its bounds; from the gate, a group with fewer than two
            tasks.

    Example:
        >>> from metajax.evolve import keep_all
        >>> gate = non_inferior(None, keep_all(), margin=0.05, confidence=0.95)
    """
    _checks.between("margin", margin, 0, 1, ends="()")
    _checks.between("confidence", confidence, 0.5, 1, ends="()")

    def gate(old: Params, new: Params, key: jax.Array, held_out: HeldOut, /) -> Decision:
        groups = {"known": (known or solve, held_out.known), "frontier": (solve, held_out.frontier)}
        found = {}
        for name, (answer, tasks) in groups.items():
            if len(tasks.lengths) < 2:
                raise ArgumentError(
                    f"held_out.{name} must have at least 2 tasks, got {len(tasks.lengths)}: a gate "
                    "without held-out tasks can't tell."
                )
            found[name] = [(tasks, answer(params, key, tasks)) for params in (old, new)]
        trusted = lambda name: [_trusted(verifier, *each) for each in found[name]]
        if verifier.uses_oracle:
            scores = {name: [kept.astype(float) for kept, _ in trusted(name)] for name in found}
        else:
            right = [is_correct(each, held_out.answers)[:, 0] for _, each in found["known"]]
            scores = {
                "known": [np.asarray(each, float) for each in right],
                "frontier": _trusted_and_unchanged(*trusted("frontier")),
            }
        before, after, lowest = {}, {}, {}
        for name, (first, second) in scores.items():
            before[name], after[name] = float(first.mean()), float(second.mean())
            lowest[name] = change_at_least(first, second, confidence)
        worse = [name for name, bound in lowest.items() if not bound >= -margin]
        reason = f"not worse by more than {margin:.0%}, with {confidence:.0%} confidence"
        if worse:
            reason = "; ".join(
                f"{name} tasks may be worse by {-lowest[name]:.1%}, more than {margin:.0%}"
                for name in worse
            )
        return Decision(not worse, before, after, lowest, reason)

    return gate


def change_at_least(before: np.ndarray, after: np.ndarray, confidence: float = 0.95) -> float:
    """The lower bound of the mean change of scores ``[n]``, task by task: one-sided, by the normal
    distribution.

    Example:
        >>> before, after = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
        >>> round(change_at_least(before, after), 4)  # 0.25 − 1.645 · 0.25
        -0.1612
    """
    change = after - before
    error = change.std(ddof=1) / math.sqrt(len(change))
    return float(change.mean() - statistics.NormalDist().inv_cdf(confidence) * error)


def accept_all() -> Gate:
    """Accepts everything, for comparison.

    Example:
        >>> accept_all()(None, None, None, None).accepted
        True
    """
    return lambda old, new, key, held_out, /: Decision(True, {}, {}, {}, "no gate")


def held_out_tasks(
    problem: Problem,
    key: jax.Array,
    *,
    known: range,
    frontier: range,
    each: int = 256,
) -> HeldOut:
    """Random held-out tasks; those of a level are the same whatever the range.

    Args:
        problem: draws the tasks, and answers the known ones.
        key: another one than the proposers'.
        known: levels of the real data.
        frontier: levels of the newest rounds.
        each: tasks of each frontier level, and of all known levels together.

    Raises:
        ArgumentError: ``each`` isn't a positive integer, or there are no levels.
    """
    _checks.positive_int("each", each)
    for name, levels in (("known", known), ("frontier", frontier)):
        if not len(levels):
            raise ArgumentError(f"{name} must hold at least one level, got {levels!r}.")
    levels = np.array(known)[np.arange(each) % len(known)]
    tasks = problem.draw(jax.random.fold_in(key, 0), levels)
    parts = [
        problem.draw(jax.random.fold_in(key, level), np.full(each, level)) for level in frontier
    ]
    return HeldOut(tasks, problem.answer(tasks), concatenate_tasks(parts))


def concatenate_tasks(parts: list[Tasks]) -> Tasks:
    """Joins tasks of different widths; the prompts are padded to the widest.

    Example:
        >>> one = Tasks(np.array([[7]]), np.array([1]), np.array([1]), np.array([True]))
        >>> two = one._replace(prompts=np.array([[8, 9]]), lengths=np.array([2]))
        >>> concatenate_tasks([one, two]).prompts.tolist()
        [[0, 7], [8, 9]]
    """
    width = max(part.prompts.shape[1] for part in parts)
    wide = [
        part._replace(prompts=np.pad(part.prompts, ((0, 0), (width - part.prompts.shape[1], 0))))
        for part in parts
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *wide)


def held_out_fingerprints(held_out: HeldOut) -> np.ndarray:
    """``fingerprints`` of all held-out prompts.

    Example:
        >>> tasks = Tasks(np.array([[5, 7]]), np.array([2]), None, None)
        >>> held_out_fingerprints(HeldOut(tasks, None, tasks)).shape
        (2,)
    """
    return np.concatenate([fingerprints(held_out.known), fingerprints(held_out.frontier)])


def _trusted(
    verifier: Verifier, tasks: Tasks, completions: Completions
) -> tuple[np.ndarray, Completions]:
    """Which tasks' labels are trusted ``[n]``, and the labels."""
    verdict = verifier.verify(tasks, completions)
    labels = jax.device_get(chosen_completions(completions, verdict.choice))
    return np.asarray(verdict.weight) > 0, labels


def _trusted_and_unchanged(
    old: tuple[np.ndarray, Completions], new: tuple[np.ndarray, Completions]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the frontier's tasks before and after; see ``non_inferior``."""
    (before, was), (after, now) = old, new
    same = (was.tokens == now.tokens).all(axis=(1, 2)) & (was.lengths == now.lengths)[:, 0]
    return before.astype(float), (after & (same | ~before)).astype(float)
