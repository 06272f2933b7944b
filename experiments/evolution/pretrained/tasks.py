"""Sums as text: ``12 + 34 =`` and `` 46``. A task's level is the number of digits of an operand."""

import re

import numpy as np

from metajax import evolve as ev
from metajax import lm

CHARACTERS = " +0123456789="
_SUM = re.compile(r"(0|[1-9]\d*) \+ (0|[1-9]\d*) =")


def sums(tokenizer: lm.Tokenizer, vocab_size: int | None = None) -> ev.Problem:
    """The problem, in the tokens of a tokenizer.

    Args:
        tokenizer: any that has the characters.
        vocab_size: the model's number of tokens, where it has more.

    Raises:
        ValueError: the tokenizer names no end token.
    """
    return ev.text_problem(
        tokenizer,
        name="sums as text",
        write=write,
        answer=answer,
        read=read,
        # A token more than characters: some tokenizers put one before a text.
        longest=lambda level: (2 * level + 6, level + 3),
        vocab_size=vocab_size,
    )


def write(rng: np.random.Generator, level: int) -> str:
    """A random sum of two numbers of so many digits.

    >>> write(np.random.default_rng(0), 3)
    '865 + 330 ='
    """
    return f"{_number(rng, level)} + {_number(rng, level)} ="


def _number(rng: np.random.Generator, digits: int) -> str:
    first = rng.integers(int(digits > 1), 10)
    return "".join(map(str, [first, *rng.integers(0, 10, digits - 1)]))


def answer(prompt: str) -> str:
    """The right answer.

    >>> answer("12 + 34 =")
    ' 46'
    """
    return f" {sum(map(int, prompt[:-2].split(' + ')))}"


def read(text: str) -> int | None:
    """The digits of both numbers; None for another text, or where they differ.

    >>> read("12 + 34 ="), read("12 + 3 =")
    (2, None)
    """
    found = _SUM.fullmatch(text)
    return len(found[1]) if found and len(found[1]) == len(found[2]) else None
