"""Sums and products, in figures and in words. A task's level is the size of its numbers."""

import re
from typing import Literal

import numpy as np

from experiments.evolution.pretrained.families.family import Family

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SIGNS = {"sums": "+", "products": "*"}
_WORDS = {"sums": "plus", "products": "times"}


def in_words(number: int) -> str:
    """A number below a million in English words.

    >>> in_words(40), in_words(217), in_words(18_005)
    ('forty', 'two hundred seventeen', 'eighteen thousand five')
    """
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, size)
    return f"{in_words(head)} {name}" + (f" {in_words(rest)}" if rest else "")


_VALUES = {in_words(number): number for number in range(1000)}


def arithmetic(kind: Literal["sums", "products"], *, words: bool, levels: int) -> Family:
    """A family of sums or products of two numbers.

    Numbers of level n have n digits at most, and the larger one has n; of a product the second one
    has a digit. In figures a question is ``12 + 34 =``, in words ``twelve plus thirty-four is``.

    >>> sums = arithmetic("sums", words=True, levels=2)
    >>> question = sums.write(np.random.default_rng(0), 2)
    >>> question, sums.answer(question), sums.read(question)
    ('sixty-three plus eighty-six is', ' one hundred forty-nine', 2)
    >>> sums.check(question, " one hundred forty-nine"), sums.read("eighty-five plus six")
    (True, None)
    """
    shape = re.compile(
        rf"([a-z -]+) {_WORDS[kind]} ([a-z -]+) is"
        if words
        else rf"(0|[1-9]\d*) \{_SIGNS[kind]} (0|[1-9]\d*) ="
    )
    number_of = _VALUES.get if words else int
    shown = in_words if words else str

    def numbers(question: str) -> tuple[int, int] | None:
        found = shape.fullmatch(question)
        if not found:
            return None
        first, second = map(number_of, found.groups())
        return None if first is None or second is None else (first, second)

    def write(rng: np.random.Generator, level: int) -> str:
        first = int(rng.integers(10 ** (level - 1) if level > 1 else 0, 10**level))
        second = int(rng.integers(0, 10 if kind == "products" else 10**level))
        if kind == "sums" and rng.integers(2):
            first, second = second, first
        between, behind = (_WORDS[kind], "is") if words else (_SIGNS[kind], "=")
        return f"{shown(first)} {between} {shown(second)} {behind}"

    def read(question: str) -> int | None:
        found = numbers(question)
        if found is None or (kind == "products" and found[1] > 9):
            return None
        level = max(len(str(number)) for number in found)
        return level if level <= levels else None

    def answer(question: str) -> str:
        first, second = numbers(question) or (0, 0)
        return f" {shown(first + second if kind == 'sums' else first * second)}"

    # In words a digit takes up to about 16 characters, such as in "seventy-seven thousand".
    longest = (
        (lambda level: (32 * level + 10, 16 * level + 24))
        if words
        else (lambda level: (2 * level + 5, level + 2))
    )
    return Family(
        name=f"{kind} in {'words' if words else 'figures'}",
        levels=range(1, levels + 1),
        write=write,
        read=read,
        check=lambda question, given: given.strip() == answer(question).strip(),
        answer=answer,
        longest=longest,
    )
