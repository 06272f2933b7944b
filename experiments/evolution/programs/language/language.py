"""The task language: values, programs, and the table of its operations.

A value is a list of up to eight digits, or a single digit. A program is a pipeline of one to four
operations, such as ``reverse | add 3 | keep_even | sum``: the first reads a list, each further one
what the one before it made. Each operation is defined on every value and does a bounded amount of
work, so every program ends, on every input. Arithmetic is modulo ten.
"""

from typing import NamedTuple

import jax
import numpy as np

MAX_LENGTH = 8
"""Digits in a list, at most. What an operation makes beyond them is cut."""
MAX_OPERATIONS = 4
"""Operations in a program, at most."""


class Values(NamedTuple):
    """Lists and single digits, one a row.

    Leading axes other than ``n`` are possible where a function says so.

    Attributes:
        digits: int32 ``[n, MAX_LENGTH]``; 0 beyond ``lengths``.
        lengths: int32 ``[n]``: digits in the list; 1 for a single digit.
        is_list: bool ``[n]``; False for a single digit.
    """

    digits: jax.Array
    lengths: jax.Array
    is_list: jax.Array


class Programs(NamedTuple):
    """Pipelines of operations, one a row.

    Attributes:
        operations: int32 ``[n, MAX_OPERATIONS]``: rows of ``OPERATIONS``; 0 beyond ``lengths``.
        arguments: int32 ``[n, MAX_OPERATIONS]``: digits; 0 for an operation that takes none.
        lengths: int32 ``[n]``: operations in the program.
    """

    operations: jax.Array
    arguments: jax.Array
    lengths: jax.Array


class Operation(NamedTuple):
    """What an operation is called, and what it may be applied to.

    Attributes:
        name: its word.
        takes: ``"list"``, ``"digit"``, or ``"either"``.
        gives: ``"list"``, ``"digit"``, or ``"same"`` as it was given.
        least: the smallest argument; None for an operation without.
        most: the greatest.
        means: in words, for a list x and an argument k.
    """

    name: str
    takes: str
    gives: str
    least: int | None
    most: int | None
    means: str


OPERATIONS = (
    Operation("nothing", "either", "same", None, None, "no operation: what fills programs up"),
    Operation("add", "either", "same", 1, 9, "each digit plus k"),
    Operation("times", "either", "same", 2, 9, "each digit times k"),
    Operation("complement", "either", "same", None, None, "nine minus each digit"),
    Operation("square", "either", "same", None, None, "each digit times itself"),
    Operation("halve", "either", "same", None, None, "each digit divided by two, rounded down"),
    Operation("modulo", "either", "same", 2, 9, "the rest of each digit divided by k"),
    Operation("keep_even", "list", "list", None, None, "the even digits"),
    Operation("keep_odd", "list", "list", None, None, "the odd digits"),
    Operation("keep_above", "list", "list", 0, 8, "the digits greater than k"),
    Operation("keep_below", "list", "list", 1, 9, "the digits less than k"),
    Operation("without", "list", "list", 0, 9, "the digits other than k"),
    Operation("unique", "list", "list", None, None, "each digit where it is for the first time"),
    Operation("reverse", "list", "list", None, None, "backwards"),
    Operation("sort", "list", "list", None, None, "ascending"),
    Operation("rotate", "list", "list", 1, 7, "turned to the left by k places"),
    Operation("take", "list", "list", 1, 7, "the first k"),
    Operation("drop", "list", "list", 1, 7, "all but the first k"),
    Operation("every", "list", "list", 2, 4, "the first digit and each k-th after it"),
    Operation("swap", "list", "list", None, None, "neighbours exchanged, in pairs from the left"),
    Operation("mirror", "list", "list", None, None, "x, and x backwards after it"),
    Operation("push", "list", "list", 0, 9, "k before x"),
    Operation("append", "list", "list", 0, 9, "k after x"),
    Operation("sums", "list", "list", None, None, "the sum up to each place"),
    Operation("differences", "list", "list", None, None, "each digit minus that before it"),
    Operation("maxima", "list", "list", None, None, "the greatest up to each place"),
    Operation("fold", "list", "list", None, None, "x plus x backwards, place by place"),
    Operation("sum", "list", "digit", None, None, "the sum; 0 of nothing"),
    Operation("max", "list", "digit", None, None, "the greatest; 0 of nothing"),
    Operation("min", "list", "digit", None, None, "the least; 0 of nothing"),
    Operation("length", "list", "digit", None, None, "how many digits"),
    Operation("head", "list", "digit", None, None, "the first; 0 of nothing"),
    Operation("last", "list", "digit", None, None, "the last; 0 of nothing"),
    Operation("count", "list", "digit", 0, 9, "how many are k"),
    Operation("repeat", "digit", "list", 2, 8, "k times the digit"),
    Operation("range", "digit", "list", None, None, "from 0 to below the digit"),
)
"""All operations, in the order of their numbers. A program's own begin at 1."""


def _table(fits) -> np.ndarray:
    return np.array([fits(operation) for operation in OPERATIONS])


TAKES_LIST = _table(lambda operation: operation.takes != "digit")
"""Whether each operation may be applied to a list."""
TAKES_DIGIT = _table(lambda operation: operation.takes != "list")
"""Whether it may be applied to a single digit."""
GIVES = _table(lambda operation: ("same", "digit", "list").index(operation.gives))
"""0 for what it was given, 1 for a digit, 2 for a list."""
LEAST = _table(lambda operation: operation.least or 0)
"""The smallest argument; 0 for an operation without."""
MOST = _table(lambda operation: operation.most or 0)
"""The greatest; 0 for an operation without."""
HAS_ARGUMENT = _table(lambda operation: operation.most is not None)
"""Whether it takes an argument."""
