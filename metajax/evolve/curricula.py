"""How hard the next tasks are."""

from collections.abc import Callable
from typing import NamedTuple

from metajax import _checks
from metajax.evolve.types import Levels

KeepRate = Callable[[int], float]
"""``keep_rate(level)``: the share, in [0, 1], of new tasks of this level whose answers would be
kept. Each call lets the model answer some."""


class Curriculum(NamedTuple):
    """How hard tasks are, round by round.

    Attributes:
        name: for reports.
        first: the levels of the first round.
        next: ``next(levels, keep_rate) -> Levels``, called after each accepted round; otherwise the
            levels stay.
    """

    name: str
    first: Levels
    next: Callable[[Levels, KeepRate], Levels]


def one_harder(first: int, *, mastered: float = 0.5) -> Curriculum:
    """One level more a round, as published, once the last one is mastered.

    Args:
        first: the first round's level.
        mastered: the keep rate that the last level must have for a harder one to come, in [0, 1]; 0
            always takes the next level, as published.

    Raises:
        ArgumentError: ``first`` isn't a positive integer, or ``mastered`` isn't in [0, 1].

    Example:
        >>> one_harder(9).next(Levels(9, 9), lambda level: 1.0)
        Levels(first=10, last=10)
        >>> one_harder(9).next(Levels(9, 9), lambda level: 0.1)
        Levels(first=9, last=9)

    Source: Lee et al. 2025 (arXiv 2502.01612).
    """
    _checks.positive_int("first", first)
    _checks.between("mastered", mastered, 0, 1)

    def next_levels(levels: Levels, keep_rate: KeepRate) -> Levels:
        if mastered and keep_rate(levels.last) < mastered:
            return levels
        return Levels(levels.last + 1, levels.last + 1)

    return Curriculum("one level a round", Levels(first, first), next_levels)


def accelerated(
    first: int, *, at_least: float = 0.9, most: int = 4, mastered: float = 0.5
) -> Curriculum:
    """Several levels a round: as many as the model's answers can be trusted on, up to ``most``.

    The next round has the next level in any case, and those behind it up to the first whose keep
    rate is too low.

    Args:
        first: the first round's level.
        at_least: the least keep rate, in [0, 1].
        most: levels in a round.
        mastered: as for ``one_harder``.

    Raises:
        ArgumentError: ``first`` or ``most`` isn't a positive integer, or a share isn't in [0, 1].

    Example:
        >>> accelerated(9).next(Levels(9, 9), lambda level: 1.0 if level < 12 else 0.5)
        Levels(first=10, last=11)

    Source: Lee et al. 2025 (arXiv 2502.01612), section 5, samples several difficulties at once.
    """
    _checks.positive_int("first", first)
    _checks.positive_int("most", most)
    _checks.between("at_least", at_least, 0, 1)
    _checks.between("mastered", mastered, 0, 1)

    def next_levels(levels: Levels, keep_rate: KeepRate) -> Levels:
        if mastered and keep_rate(levels.last) < mastered:
            return levels
        start = last = levels.last + 1
        while last - start + 1 < most and keep_rate(last + 1) >= at_least:
            last += 1
        return Levels(start, last)

    return Curriculum(f"up to {most} levels a round", Levels(first, first), next_levels)
