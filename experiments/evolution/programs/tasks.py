"""Tasks about programs: their kinds, real data, and test tasks.

A round's tasks come in four blocks, a kind each: deduction, abduction, induction, and proposals.
The whole text of a proposal is the prompt, since there is nothing to answer.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evolution.programs import language as pg
from experiments.evolution.programs.language import vocabulary
from metajax import evolve as ev

KINDS = ("deduction", "abduction", "induction", "proposal")
SHOWN, HIDDEN = 2, 2
"""Examples that a task of induction shows, and that are held back to check the program."""
PROMPT_LENGTH = 2 + SHOWN * 2 * vocabulary.VALUE_LENGTH
"""Tokens of any task's prompt, padding among them."""


class About(NamedTuple):
    """What the interpreter needs to check a task.

    Attributes:
        kind: its place in ``KINDS``, ``[n]``.
        programs: ``n`` of them.
        inputs: values ``[n, SHOWN + HIDDEN]``; but for induction, only the first counts.
        joined: bool ``[n]``, whether the program is two of the model's, one after the other.
    """

    kind: np.ndarray
    programs: pg.Programs
    inputs: pg.Values
    joined: np.ndarray


def take_rows(tree: Any, index: Any) -> Any:
    """The rows at an index, of every leaf."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def concatenate(parts: list[Any]) -> Any:
    """Joins trees of arrays along their first axis."""
    return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(x) for x in leaves]), *parts)


def draw_examples(key: jax.Array, first: pg.Values, longest: int) -> pg.Values:
    """Inputs ``[n, SHOWN + HIDDEN]``: the given ones, and random ones of up to ``longest``."""
    count, more = len(first.lengths), SHOWN + HIDDEN - 1
    others = pg.draw_inputs(key, count * more, longest=longest)
    others = jax.tree.map(lambda leaf: leaf.reshape(count, more, *leaf.shape[1:]), others)
    return jax.tree.map(
        lambda one, rest: np.concatenate([np.asarray(one)[:, None], np.asarray(rest)], axis=1),
        first,
        others,
    )


_MAKERS = tuple(
    jax.jit(maker)
    for maker in (
        pg.deduction,
        pg.abduction,
        functools.partial(pg.induction, shown=SHOWN),
        pg.proposals,
    )
)


def make_tasks(kind: int, programs: pg.Programs, inputs: pg.Values, joined: Any = None) -> tuple:
    """Tasks of a kind, and an answer to each.

    Args:
        kind: a place in ``KINDS``.
        programs: ``n`` of them.
        inputs: values ``[n, SHOWN + HIDDEN]``.
        joined: for ``About``.

    Returns:
        ``Tasks`` with ``About``, all of them valid, and ``Answers``.
    """
    one = take_rows(inputs, (slice(None), 0))
    made = _MAKERS[kind](programs, inputs if kind == 2 else one)
    prompts, answers = np.asarray(made.prompts), np.asarray(made.answers)
    if kind == 3:  # the text is the prompt, and its end the answer
        whole = jnp.asarray(np.concatenate([prompts, answers], axis=1))
        keep = (whole != pg.PAD) & (whole != pg.EOS)
        prompts = np.asarray(vocabulary.squeeze(whole, keep, PROMPT_LENGTH, left=True))
        answers = np.full((len(whole), 1), pg.EOS)
    prompts = np.pad(prompts, ((0, 0), (PROMPT_LENGTH - prompts.shape[1], 0)))
    answers = np.pad(answers, ((0, 0), (0, pg.ANSWER_LENGTH - answers.shape[1])))
    count = len(prompts)
    about = About(
        np.full(count, kind),
        jax.tree.map(np.asarray, programs),
        jax.tree.map(np.asarray, inputs),
        np.zeros(count, bool) if joined is None else np.asarray(joined),
    )
    tasks = ev.Tasks(
        prompts.astype(np.int32),
        (prompts != pg.PAD).sum(axis=1),
        np.asarray(programs.lengths),
        np.ones(count, bool),
        about,
    )
    return tasks, ev.Answers(answers.astype(np.int32), (answers != pg.PAD).sum(axis=1))


def tasks_per_kind(count: int) -> list[int]:
    """How many of ``count`` tasks are of each kind: five eighths deduction, an eighth of each
    other."""
    return [count - 3 * (count // 8), *[count // 8] * 3]


_BLOCK = 512
"""Programs that are judged together, so that one size is compiled."""


@jax.jit
def _judge(programs: pg.Programs) -> tuple[jax.Array, jax.Array]:
    return pg.is_degenerate(programs), pg.fingerprints(programs)


def _judged(programs: pg.Programs) -> tuple[np.ndarray, np.ndarray]:
    """Which programs are degenerate ``[n]``, and a hash of what each does, uint64 ``[n]``."""
    count = len(programs.lengths)
    filled = take_rows(programs, np.arange(-(-count // _BLOCK) * _BLOCK) % count)
    parts = [
        jax.device_get(_judge(take_rows(filled, slice(start, start + _BLOCK))))
        for start in range(0, len(filled.lengths), _BLOCK)
    ]
    degenerate, two = (np.concatenate(leaves)[:count] for leaves in zip(*parts, strict=True))
    two = two.astype(np.uint64)
    return degenerate, two[:, 0] << np.uint64(32) | two[:, 1]


@functools.cache
def _held_out_marks() -> np.ndarray:
    return _judged(pg.held_out_programs())[1]


def may_be_learned(programs: pg.Programs) -> tuple[np.ndarray, np.ndarray]:
    """Which programs are neither degenerate nor do the same as a held-out one, bool ``[n]``; and a
    hash of what each does, uint64 ``[n]``."""
    degenerate, marks = _judged(programs)
    return ~degenerate & ~np.isin(marks, _held_out_marks()), marks


def taught_programs(key: jax.Array, count: int, operations: int) -> pg.Programs:
    """Random programs of up to ``operations`` operations for the real data, no held-out ones."""
    program_key, length_key = jax.random.split(key)
    # Few programs have one operation, so fewer tasks do.
    lengths = jnp.ceil(operations * jax.random.uniform(length_key, (count,)) ** 0.5)
    programs = pg.draw_programs(program_key, count, operations=lengths)
    return take_rows(programs, may_be_learned(programs)[0])


def real_tasks(key: jax.Array, taught: pg.Programs, count: int, longest: int) -> tuple:
    """``count`` tasks of real data, of all kinds, and answers."""
    parts = []
    for kind, number in enumerate(tasks_per_kind(count)):
        which, input_key, more_key = jax.random.split(jax.random.fold_in(key, kind), 3)
        chosen = jax.random.randint(which, (number,), 0, len(taught.lengths))
        inputs = draw_examples(
            more_key, pg.draw_inputs(input_key, number, longest=longest), longest
        )
        parts.append(make_tasks(kind, take_rows(taught, np.asarray(chosen)), inputs))
    return concatenate(parts)


def whole_texts(examples: ev.Examples) -> ev.Examples:
    """Makes all of a proposal a target but its first two tokens."""
    is_proposal = np.asarray(examples.tokens)[:, 1] == vocabulary.PROPOSE
    return examples._replace(prompt=np.where(is_proposal, 2, examples.prompt))


def test_tasks(key: jax.Array, programs: pg.Programs, inputs: int, longest: int) -> list[ev.Tasks]:
    """Tasks of each kind but proposals, ``inputs`` of them for each program, one after another."""
    each = np.repeat(np.arange(len(programs.lengths)), inputs)
    repeated, found = take_rows(programs, each), []
    for kind in range(3):
        first, others = jax.random.split(jax.random.fold_in(key, kind))
        drawn = draw_examples(others, pg.draw_inputs(first, len(each), longest=longest), longest)
        found.append(make_tasks(kind, repeated, drawn)[0])
    return found
