"""What a family of tasks is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Family(NamedTuple):
    """A family of tasks in plain text: questions of growing difficulty, and a checker.

    A text is a question, an answer behind it, and an end token. Every function is of strings.

    Attributes:
        name: for reports.
        levels: the levels that it has, from 1 on.
        write: ``write(rng, level)``: a random question of this level, by a program: for worked
            examples and for held-out tasks.
        read: ``read(question)``: its level; None if the text isn't a question of the family.
        check: ``check(question, answer)``: whether the answer is right, as a reward in [0, 1].
        answer: ``answer(question)``: a right answer; None where no program writes one.
        longest: ``longest(level)``: the most characters of a question and of an answer.
    """

    name: str
    levels: range
    write: Callable[[np.random.Generator, int], str]
    read: Callable[[str], int | None]
    check: Callable[[str, str], float]
    answer: Callable[[str], str] | None
    longest: Callable[[int], tuple[int, int]]
