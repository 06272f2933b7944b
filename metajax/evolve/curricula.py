"""How hard the next tasks are."""

from collections.abc import Callable
from typing import NamedTuple

from metajax import _checks
from metajax.evolve.types import Levels

Yield = Callable[[int], float]
"""``yield_at(level)``: the share of a few new tasks of this level whose answers would be trusted,
in [0, 1]. Each call lets the model answer some."""


class Curriculum(NamedTuple):
    """How hard tasks are, round by round.

    Attributes:
        name: for reports.
        first: the levels of the first round.
        next: ``next(levels, yield_at) -> Levels``, after a round that was accepted and of which
            something was kept; otherwise the levels stay.
    """

    name: str
    first: Levels
    next: Callable[[Levels, Yield], Levels]


def one_harder(first: int, *, mastered: float = 0.5) -> Curriculum:
    """A level a round, as published, once the last one is mastered.

    Args:
        first: the first round's level.
        mastered: the yield that the last level must have for a harder one to come, in [0, 1]; at 0
            one comes in any case, as published.

    Raises:
        ArgumentError: if ``first`` isn't a positive integer, or ``mastered`` isn't in [0, 1].

    Example:
        >>> one_harder(9).next(Levels(9, 9), lambda level: 1.0)
        Levels(first=10, last=10)
        >>> one_harder(9).next(Levels(9, 9), lambda level: 0.1)
        Levels(first=9, last=9)

    Source: Lee et al. 2025 (arXiv 2502.01612).
    """
    first = _checks.positive_int("first", first)
    _checks.between("mastered", mastered, 0, 1)

    def next_levels(levels: Levels, yield_at: Yield) -> Levels:
        if mastered and yield_at(levels.last) < mastered:
            return levels
        return Levels(levels.last + 1, levels.last + 1)

    return Curriculum("one level a round", Levels(first, first), next_levels)


def accelerated(
    first: int, *, at_least: float = 0.9, most: int = 4, mastered: float = 0.5
) -> Curriculum:
    """Several levels a round: as many as the model's answers can be trusted on, up to ``most``.

    The next round is of all levels from the next one to the last whose yield is high enough, and so
    are those between; of the next level alone if none is.

    Args:
        first: the first round's level.
        at_least: yield, in [0, 1].
        most: levels in a round.
        mastered: as for ``one_harder``.

    Raises:
        ArgumentError: if ``first`` or ``most`` isn't a positive integer, or a share not in [0, 1].

    Example:
        >>> accelerated(9).next(Levels(9, 9), lambda level: 1.0 if level < 12 else 0.5)
        Levels(first=10, last=11)

    Source: Lee et al. 2025 (arXiv 2502.01612), section 5, samples several difficulties at once.
    """
    first, most = _checks.positive_int("first", first), _checks.positive_int("most", most)
    _checks.between("at_least", at_least, 0, 1)
    _checks.between("mastered", mastered, 0, 1)

    def next_levels(levels: Levels, yield_at: Yield) -> Levels:
        if mastered and yield_at(levels.last) < mastered:
            return levels
        start = levels.last + 1
        last = start
        # The next level counts as trusted: it is proposed in any case.
        while last - start + 1 < most and yield_at(last + 1) >= at_least:
            last += 1
        return Levels(start, last)

    return Curriculum(f"up to {most} levels a round", Levels(first, first), next_levels)


def most_learnable(first: int, *, reach: int = 3) -> Curriculum:
    """The level, among the next few, of which the model is least sure whether it can do it.

    Args:
        first: the first round's level.
        reach: how many levels above the last round's are looked at.

    Raises:
        ArgumentError: if ``first`` or ``reach`` isn't a positive integer.

    Example:
        >>> most_learnable(9).next(Levels(9, 9), lambda level: {10: 1.0, 11: 0.6, 12: 0.1}[level])
        Levels(first=11, last=11)

    Source: p (1 − p), as in Zhao et al. 2025 (arXiv 2505.03335) and Huang et al. 2025 (2508.05004).
    """
    first, reach = _checks.positive_int("first", first), _checks.positive_int("reach", reach)

    def next_levels(levels: Levels, yield_at: Yield) -> Levels:
        chances = {
            level: yield_at(level) for level in range(levels.last + 1, levels.last + reach + 1)
        }
        best = max(chances, key=lambda level: (chances[level] * (1 - chances[level]), level))
        return Levels(best, best)

    return Curriculum("the most learnable level", Levels(first, first), next_levels)
