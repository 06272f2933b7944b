"""Rules on strings of letters. A task's level is the number of letters less one."""

import re
from collections.abc import Callable

import numpy as np

from experiments.evolution.pretrained.families.family import Family

RULES: dict[str, Callable[[str], str]] = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "first": lambda text: text[0],
    "last": lambda text: text[-1],
    "drop first": lambda text: text[1:],
    "drop last": lambda text: text[:-1],
    "swap ends": lambda text: text[-1] + text[1:-1] + text[0],
    "repeat": lambda text: text + text,
}
"""What each rule makes of two letters or more."""
_QUESTION = re.compile(rf"({'|'.join(RULES)}): ([a-z](?: [a-z])+) ->")


def string_rules(levels: int) -> Family:
    """A family of rules on letters, with spaces between them, so that each has a token.

    >>> rules = string_rules(4)
    >>> question = rules.write(np.random.default_rng(1), 3)
    >>> question, rules.answer(question), rules.read(question)
    ('last: n t y a ->', ' a', 3)
    """

    def write(rng: np.random.Generator, level: int) -> str:
        rule = list(RULES)[rng.integers(len(RULES))]
        letters = rng.integers(ord("a"), ord("z") + 1, level + 1)
        return f"{rule}: {' '.join(map(chr, letters))} ->"

    def read(question: str) -> int | None:
        found = _QUESTION.fullmatch(question)
        level = len(found[2].split()) - 1 if found else 0
        return level if 1 <= level <= levels else None

    def answer(question: str) -> str:
        found = _QUESTION.fullmatch(question)
        if not found:
            return ""
        return " " + " ".join(RULES[found[1]](found[2].replace(" ", "")))

    return Family(
        name="rules on letters",
        levels=range(1, levels + 1),
        write=write,
        read=read,
        check=lambda question, given: given.strip() == answer(question).strip(),
        answer=answer,
        longest=lambda level: (2 * level + 16, 4 * level + 6),
    )
