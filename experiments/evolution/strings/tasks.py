"""Strings of digits to copy, to reverse and to add: tasks of any length, with known answers.

A text is ``<digits>=<answer>`` between a begin and an end token, a token a character. The level of
a task is the number of its digits (of each operand's, in addition).

Source: Lee et al. 2025, "Self-Improving Transformers Overcome Easy-to-Hard and Length
Generalization Challenges" (arXiv 2502.01612).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from metajax.errors import ArgumentError
from metajax.evolve import Answers, Problem, Tasks, View

EQUALS, PLUS, BEGIN, END = 10, 11, 12, 13
CHARACTERS = "0123456789=+<>"
"""The vocabulary: digits, ``=``, ``+``, and ``<`` and ``>`` for the begin and the end token."""
NAMES = ("copy", "reverse", "addition")
MULTIPLE = 8
"""Prompts are padded to a multiple of this, so that few programs are compiled."""


def digits(name: Literal["copy", "reverse", "addition"]) -> Problem:
    """Copying a string of digits, reversing it, or adding two numbers.

    In addition both operands have ``level`` digits, and operands and sum are written from their
    last digit on; the sum has one digit more, a zero if need be.

    Args:
        name: ``"copy"``, ``"reverse"`` or ``"addition"``.

    Returns:
        A ``Problem``. Its ``draw`` pads prompts on the left to a multiple of 8 tokens that the
        hardest level asked for fits into.

    Raises:
        ArgumentError: another name; from ``draw``, a level below 1.

    Example:
        >>> problem = digits("addition")
        >>> tasks = problem.draw(jax.random.key(0), [3])
        >>> problem.show(tasks.prompts[0]), problem.show(problem.answer(tasks).tokens[0])
        ('<336+099=', '3261>')

    Source: Lee et al. 2025 (arXiv 2502.01612), section 3.
    """
    if name not in NAMES:
        raise ArgumentError(f"name must be one of {', '.join(map(repr, NAMES))}, got {name!r}.")
    operands = 2 if name == "addition" else 1
    prompt_length = lambda level: operands * (level + 1) + 1
    answer_length = lambda level: level + operands

    def draw(key: jax.Array, levels: Any) -> Tasks:
        given, levels = levels, np.asarray(levels)
        if levels.dtype.kind not in "iu" or not levels.size or levels.min() < 1:
            raise ArgumentError(f"levels must be integers of at least 1, got {given!r}.")
        longest = prompt_length(int(levels.max()))
        return _draw(key, levels, -(-longest // MULTIPLE) * MULTIPLE, operands)

    def read(prompts: Any, lengths: Any) -> tuple[jax.Array, jax.Array]:
        return _read(jnp.asarray(prompts), jnp.asarray(lengths), operands)

    def allowed(level: int) -> np.ndarray:
        mask = np.zeros((prompt_length(level) - 1, len(CHARACTERS)), bool)
        mask[:, :10] = True
        for place, token in ((level, PLUS), (-1, EQUALS)) if operands == 2 else ((-1, EQUALS),):
            mask[place] = np.arange(len(CHARACTERS)) == token
        return mask

    return Problem(
        name=name,
        vocab_size=len(CHARACTERS),
        begin=BEGIN,
        end=END,
        prompt_length=prompt_length,
        answer_length=answer_length,
        draw=draw,
        answer=partial(_answers, rule=_RULES[name]),
        read=read,
        allowed=allowed,
        show=show,
    )


def show(tokens: Any) -> str:
    """Tokens as text: from the begin token on, to the end token if there is one.

    Example:
        >>> show([0, 0, BEGIN, 4, 2, EQUALS, 4, 2, END, 0])
        '<42=42>'
    """
    row = np.asarray(tokens).tolist()
    start = row.index(BEGIN) if BEGIN in row else 0
    stop = row.index(END) + 1 if END in row else len(row)
    return "".join(CHARACTERS[token] for token in row[start:stop])


@partial(jax.jit, static_argnums=(2, 3))
def _draw(key: jax.Array, levels: jax.Array, width: int, operands: int) -> Tasks:
    levels = jnp.asarray(levels, jnp.int32)
    lengths = operands * (levels + 1) + 1
    place = jnp.arange(width) - (width - lengths[:, None])  # in the prompt; negative in the padding
    tokens = jax.random.randint(key, place.shape, 0, 10)
    tokens = jnp.where(place % (levels[:, None] + 1) == 0, PLUS, tokens)
    tokens = jnp.where(place == lengths[:, None] - 1, EQUALS, tokens)
    tokens = jnp.where(place == 0, BEGIN, tokens)
    tokens = jnp.where(place < 0, 0, tokens)
    return Tasks(tokens, lengths, levels, jnp.ones(levels.shape, bool))


@partial(jax.jit, static_argnums=2)
def _read(prompts: jax.Array, lengths: jax.Array, operands: int) -> tuple[jax.Array, jax.Array]:
    width = prompts.shape[1]
    levels = (lengths - 1) // operands - 1
    place = jnp.arange(width) - (width - lengths[:, None])
    is_mark = place % (levels[:, None] + 1) == 0
    marks = jnp.where(place == 0, BEGIN, jnp.where(place == lengths[:, None] - 1, EQUALS, PLUS))
    right = jnp.where(is_mark, prompts == marks, (prompts >= 0) & (prompts < 10))
    whole = (levels >= 1) & (operands * (levels + 1) + 1 == lengths) & (lengths <= width)
    return whole & (right | (place < 0)).all(axis=1), levels


def _operand(tasks: Tasks, number: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Digits ``[n, width]`` of an operand, the first being 0, and which of them are there."""
    levels, index = jnp.asarray(tasks.levels)[:, None], jnp.arange(width)
    start = tasks.prompts.shape[1] - jnp.asarray(tasks.lengths)[:, None] + 1
    found = jnp.take_along_axis(
        jnp.asarray(tasks.prompts),
        jnp.clip(start + number * (levels + 1) + index, 0, tasks.prompts.shape[1] - 1),
        axis=1,
    )
    there = index < levels
    return jnp.where(there, found, 0), there


def _copy(tasks: Tasks, width: int) -> jax.Array:
    return _operand(tasks, 0, width)[0]


def _reverse(tasks: Tasks, width: int) -> jax.Array:
    digits, _ = _operand(tasks, 0, width)
    back = jnp.asarray(tasks.levels)[:, None] - 1 - jnp.arange(width)
    return jnp.take_along_axis(digits, jnp.clip(back, 0, width - 1), axis=1)


def _add(tasks: Tasks, width: int) -> jax.Array:
    total = _operand(tasks, 0, width)[0] + _operand(tasks, 1, width)[0]

    def column(carry, digit):
        value = digit + carry
        return value // 10, value % 10

    _, columns = jax.lax.scan(column, jnp.zeros(len(total), jnp.int32), total.T)
    return columns.T


_RULES: dict[str, tuple[Callable[[Tasks, int], jax.Array], int]] = {
    "copy": (_copy, 0),
    "reverse": (_reverse, 0),
    "addition": (_add, 1),
}
"""How each finds the answer's digits, and how many more than ``level`` there are."""


@partial(jax.jit, static_argnames="rule")
def _answers(tasks: Tasks, rule: tuple[Callable[[Tasks, int], jax.Array], int]) -> Answers:
    apply, more = rule
    width = tasks.prompts.shape[1]  # no answer is longer than its prompt
    count = jnp.asarray(tasks.levels)[:, None] + more
    index = jnp.arange(width)
    tokens = jnp.where(index < count, apply(tasks, width), jnp.where(index == count, END, 0))
    return Answers(tokens, count[:, 0] + 1)


def operands_swapped() -> View:
    """The second operand of ``digits("addition")`` first; the answer is the same.

    Raises:
        ArgumentError: from ``pose``, tasks that aren't sums.

    Example:
        >>> addition = digits("addition")
        >>> tasks = addition.draw(jax.random.key(0), [2, 3])
        >>> posed, _ = operands_swapped().pose(jax.random.key(1), tasks)
        >>> addition.show(tasks.prompts[1]), addition.show(posed.prompts[1])
        ('<758+889=', '<889+758=')
    """

    def swapped(prompts: np.ndarray, levels: np.ndarray) -> np.ndarray:
        width = prompts.shape[1]
        place, count = np.arange(width), levels[:, None]
        start = width - 2 * count - 2  # of the first operand; the second is one mark behind it
        shift = np.where(place < start + count, count + 1, -count - 1)
        is_digit = (place >= start) & (place < width - 1) & (place != start + count)
        moved = np.take_along_axis(prompts, np.clip(place + shift, 0, width - 1), axis=1)
        return np.where(is_digit, moved, prompts)

    def pose(key: jax.Array, tasks: Tasks) -> tuple[Tasks, Any]:
        levels = np.asarray(tasks.levels)
        prompts = np.asarray(tasks.prompts)
        whole = prompts[np.arange(len(levels)), prompts.shape[1] - levels - 2] == PLUS
        if not (whole | ~np.asarray(tasks.valid)).all():
            raise ArgumentError("tasks must be sums of two operands of as many digits as a level.")
        return tasks._replace(prompts=swapped(prompts, levels)), None

    return View("operands swapped", pose, lambda memo, tokens: tokens)
