"""Whether θ_{t+1} takes the place of θ_t: held-out tasks, and a test that says how sure it is."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.proposers import fingerprints
from metajax.evolve.solve import chosen
from metajax.evolve.types import Answers, Attempts, Problem, Solver, Tasks, Verifier
from metajax.evolve.verifiers import is_right
from metajax.types import Params


class HeldOut(NamedTuple):
    """Tasks that are never learned from.

    Attributes:
        known: tasks of the real data's levels.
        answers: their right answers: real data, no oracle; not looked at where a verifier checks.
        frontier: tasks of the levels of the newest rounds, to which nobody knows the answers.
    """

    known: Tasks
    answers: Answers
    frontier: Tasks


class Decision(NamedTuple):
    """What the gate says.

    Attributes:
        accepted: whether θ_{t+1} is taken.
        before: θ_t's mean score of each group of held-out tasks.
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


def no_worse(
    solve: Solver,
    verifier: Verifier,
    *,
    known: Solver | None = None,
    margin: float = 0.05,
    confidence: float = 0.95,
) -> Gate:
    """Accepts what is, with confidence, not worse than before by more than a margin.

    Two groups of tasks are scored, each task 0 or 1. Of the known ones, whether the answer is
    right. Of the frontier, to which nobody knows the answers: whether the answer would be trusted,
    and is, where θ_t's own answer was trusted, the same as that. What θ_t could be trusted on it
    has labelled; θ_{t+1} that answers otherwise has learned something else than that.

    A verifier that knows right answers (``uses_oracle``), such as an interpreter that checks them,
    scores both groups by itself: ``held_out.answers`` isn't looked at then, and of several right
    answers any will do.

    The score's mean difference, task by task, has a standard error; accepted is where the lower
    bound of its one-sided interval is above −margin in both groups. So a held-out set too small to
    tell refuses.

    Args:
        solve: how answers are found.
        verifier: what is trusted on the frontier.
        known: how answers to known tasks are found, of which the first is looked at: ``solve`` if
            None, which may give more of them than are needed.
        margin: what may be lost, in (0, 1).
        confidence: of the bound, in (0.5, 1).

    Raises:
        ArgumentError: an argument is out of its bounds; from the gate, a group without tasks.

    Example:
        >>> from metajax.evolve import verifiers
        >>> gate = no_worse(None, verifiers.everything(), margin=0.05, confidence=0.95)
    """
    margin = _checks.between("margin", margin, 0, 1, ends="()")
    confidence = _checks.between("confidence", confidence, 0.5, 1, ends="()")
    quantile = statistics.NormalDist().inv_cdf(confidence)
    solve_known = known or solve

    def gate(old: Params, new: Params, key: jax.Array, held_out: HeldOut, /) -> Decision:
        groups = {"known": (solve_known, held_out.known), "frontier": (solve, held_out.frontier)}
        for name, (_, tasks) in groups.items():
            if len(tasks.lengths) < 2:
                raise ArgumentError(
                    f"held_out.{name} must have at least 2 tasks, got {len(tasks.lengths)}: a gate "
                    "without held-out tasks can't tell."
                )
        found = {
            name: [(tasks, answer(params, key, tasks)) for params in (old, new)]
            for name, (answer, tasks) in groups.items()
        }
        if verifier.uses_oracle:
            scores = {
                name: [_trusted(verifier, *own)[0].astype(float) for own in group]
                for name, group in found.items()
            }
        else:
            answers = held_out.answers
            scores = {
                "known": [np.asarray(is_right(a, answers)[:, 0], float) for _, a in found["known"]],
                "frontier": _trusted_alike(
                    *(_trusted(verifier, *own) for own in found["frontier"])
                ),
            }
        before, after, lowest = {}, {}, {}
        for name, (first, second) in scores.items():
            change = second - first
            error = change.std(ddof=1) / math.sqrt(len(change))
            before[name], after[name] = float(first.mean()), float(second.mean())
            lowest[name] = float(change.mean() - quantile * error)
        worse = [name for name, bound in lowest.items() if not bound >= -margin]
        reason = f"not worse by more than {margin:.0%}, with {confidence:.0%} confidence"
        if worse:
            reason = "; ".join(
                f"{name} tasks may be worse by {-lowest[name]:.1%}, more than {margin:.0%}"
                for name in worse
            )
        return Decision(not worse, before, after, lowest, reason)

    return gate


def always() -> Gate:
    """Accepts everything, for comparison.

    Example:
        >>> always()(None, None, None, None).accepted
        True
    """
    return lambda old, new, key, held_out, /: Decision(True, {}, {}, {}, "no gate")


def held_out_of(
    problem: Problem,
    key: jax.Array,
    *,
    known: range,
    frontier: range,
    each: int = 256,
) -> HeldOut:
    """Random held-out tasks; those of a level are the same whatever the range.

    Args:
        problem: what draws them.
        key: of the held-out tasks; not that of the proposers.
        known: levels of the real data.
        frontier: levels of the newest rounds.
        each: tasks of a frontier level, and of all known levels together.

    Raises:
        ArgumentError: if ``each`` isn't a positive integer.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> held_out = held_out_of(digits("copy"), jax.random.key(0), known=range(1, 5),
        ...     frontier=range(9, 11), each=8)
        >>> held_out.known.lengths.shape, held_out.frontier.lengths.shape
        ((8,), (16,))
    """
    each = _checks.positive_int("each", each)
    for name, levels in (("known", known), ("frontier", frontier)):
        if not len(levels):
            raise ArgumentError(f"{name} must hold at least one level, got {levels!r}.")
    levels = np.array(known)[np.arange(each) % len(known)]
    tasks = problem.draw(jax.random.fold_in(key, 0), levels)
    parts = [
        problem.draw(jax.random.fold_in(key, level), np.full(each, level)) for level in frontier
    ]
    return HeldOut(tasks, problem.solve(tasks), joined(parts))


def joined(parts: list[Tasks]) -> Tasks:
    """Tasks of several lists in one, as wide as the widest.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> parts = [digits("copy").draw(jax.random.key(0), [level]) for level in (2, 9)]
        >>> joined(parts).prompts.shape
        (2, 16)
    """
    width = max(part.prompts.shape[1] for part in parts)
    wide = [
        part._replace(prompts=np.pad(part.prompts, ((0, 0), (width - part.prompts.shape[1], 0))))
        for part in parts
    ]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *wide)


def held_out_marks(held_out: HeldOut) -> np.ndarray:
    """``fingerprints`` of all prompts of a held-out set."""
    return np.concatenate([fingerprints(held_out.known), fingerprints(held_out.frontier)])


def _trusted(verifier: Verifier, tasks: Tasks, attempts: Attempts) -> tuple[np.ndarray, Attempts]:
    verdict = verifier.verify(tasks, attempts)
    return np.asarray(verdict.weight) > 0, jax.device_get(chosen(attempts, verdict.choice))


def _trusted_alike(
    old: tuple[np.ndarray, Attempts], new: tuple[np.ndarray, Attempts]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the frontier's tasks before and after; see ``no_worse``."""
    (before, was), (after, now) = old, new
    same = (was.tokens == now.tokens).all(axis=(1, 2)) & (was.lengths == now.lengths)[:, 0]
    return before.astype(float), (after & (same | ~before)).astype(float)
