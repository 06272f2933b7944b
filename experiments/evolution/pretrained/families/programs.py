"""What a program makes of a list: the language of ``experiments.evolution.programs`` as text."""

import functools

import jax
import numpy as np

from experiments.evolution.pretrained.families.family import Family
from experiments.evolution.programs import language
from metajax.errors import ArgumentError

_DIGITS = 4
"""In a list that a program draws."""


def program_outputs(levels: int) -> Family:
    """A family of programs and inputs; the interpreter knows the output.

    A task's level is the number of its operations.

    >>> outputs = program_outputs(2)
    >>> question = outputs.write(np.random.default_rng(0), 2)
    >>> question, outputs.answer(question), outputs.read(question)
    ('take 4 | maxima : [ 3 5 7 2 ] =', ' [ 3 5 7 7 ]', 2)
    """

    def write(rng: np.random.Generator, level: int) -> str:
        program_key, input_key = jax.random.split(jax.random.key(int(rng.integers(2**31))))
        program = language.draw_programs(program_key, 1, operations=level)
        value = language.draw_inputs(input_key, 1, shortest=_DIGITS, longest=_DIGITS)
        return f"{language.texts_of(program)[0]} : {language.texts_of(value)[0]} ="

    def read(question: str) -> int | None:
        found = _parsed(question)
        level = int(found[0].lengths[0]) if found else 0
        return level if 1 <= level <= levels else None

    def answer(question: str) -> str:
        found = _parsed(question)
        return f" {language.texts_of(language.run(*found))[0]}" if found else ""

    return Family(
        name="outputs of programs",
        levels=range(1, levels + 1),
        write=write,
        read=read,
        check=lambda question, given: given.split() == answer(question).split(),
        answer=answer,
        longest=lambda level: (18 * level + 26, 24),
    )


@functools.lru_cache(maxsize=1 << 16)
def _parsed(question: str) -> tuple[language.Programs, language.Values] | None:
    """Program and input; None if the question isn't one, or spelt otherwise than its program."""
    program, _, rest = question.partition(" : ")
    value, ends, behind = rest.partition(" =")
    try:
        programs = language.programs_of([program])
        digits = [int(word) for word in value.removeprefix("[ ").removesuffix(" ]").split()]
        values = language.values_of([digits])
    except (ArgumentError, ValueError):
        return None
    spelt = f"{language.texts_of(programs)[0]} : {language.texts_of(values)[0]} ="
    return (programs, values) if ends and not behind and question == spelt else None
