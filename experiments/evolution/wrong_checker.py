"""A checker that is wrong in one round, to see what the gate makes of it."""

import hashlib
from collections.abc import Callable

from metajax import evolve as ev

ROUND, SHARE = 2, 0.3
"""The round whose verdicts are turned round, and the share of them."""


def wrong_once(
    check: Callable[[str, str], float], seed: int
) -> tuple[Callable[[str, str], float], Callable[[int, ev.Completions], ev.Completions]]:
    """A checker that says the opposite of a share of its verdicts in one round, and the loop's
    ``corrupt``, which tells it the round. An answer's verdict is wrong each time it is asked for.

    >>> check, round_is = wrong_once(lambda question, answer: 1.0, seed=1)
    >>> [[round_is(number, None), check("2 + 3 =", "5")][1] for number in (1, 2, 3)]
    [1.0, 0.0, 1.0]
    """
    now = [0]

    def round_is(number: int, completions: ev.Completions) -> ev.Completions:
        now[0] = number
        return completions

    def wrong(question: str, answer: str) -> float:
        right = float(check(question, answer))
        mark = hashlib.sha256(f"{seed}\0{question}\0{answer}".encode()).digest()
        chosen = int.from_bytes(mark[:4]) < SHARE * 2**32
        return 1 - right if now[0] == ROUND and chosen else right

    return wrong, round_is
