"""Checks of answers by the interpreter, and the parser of proposals."""

import jax
import jax.numpy as jnp

from experiments.evolution.programs.language.interpreter import run
from experiments.evolution.programs.language.language import Programs, Values
from experiments.evolution.programs.language.tasks import ProgramTasks
from experiments.evolution.programs.language.vocabulary import (
    COLON,
    EOS,
    PAD,
    parse,
    parse_values,
    squeeze,
)
from metajax.errors import ArgumentError


def parse_proposals(tokens: jax.Array) -> tuple[Programs, Values, jax.Array]:
    """Reads programs with inputs, as ``proposals`` writes them.

    Args:
        tokens: integers ``[n, t]``, any.

    Returns:
        Programs, inputs, and valid, bool ``[n]``: True for what is exactly a well-typed program, a
        colon, a list, the end, and padding.

    Raises:
        ArgumentError: at trace time, if tokens aren't integers ``[n, t]``.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     programs_of, proposals, texts_of, values_of,
        ... )
        >>> tasks = proposals(programs_of(["reverse | add 3"]), values_of([[1, 2]]))
        >>> programs, inputs, valid = parse_proposals(tasks.answers)
        >>> texts_of(programs), texts_of(inputs), valid.tolist()
        (['reverse | add 3'], ['[ 1 2 ]'], [True])
    """
    tokens = jnp.asarray(tokens)
    programs, valid = parse(_before_colon(tokens))
    inputs, valid_inputs = parse_values(_after_colon(tokens))
    valid &= valid_inputs & inputs.is_list
    return programs, inputs, valid


def _colon(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Places ``[t]``, and that of each row's first colon ``[n, 1]``, or beyond all."""
    if tokens.ndim != 2:
        raise ArgumentError(f"tokens must be integers [n, t], got shape {tokens.shape}.")
    places = jnp.arange(tokens.shape[1])
    colon = jnp.where(tokens == COLON, places, tokens.shape[1]).min(axis=1, keepdims=True)
    return places, colon


def _before_colon(tokens: jax.Array) -> jax.Array:
    places, colon = _colon(tokens)
    return jnp.where(places < colon, tokens, jnp.where(places == colon, EOS, PAD))


def _after_colon(tokens: jax.Array) -> jax.Array:
    places, colon = _colon(tokens)
    return squeeze(tokens, places > colon, tokens.shape[1])


def _same(a: Values, b: Values) -> jax.Array:
    """Whether values are equal, those of induction for all examples: bool ``[n]``."""
    same = (a.digits == b.digits).all(axis=-1) & (a.lengths == b.lengths)
    same &= a.is_list == b.is_list
    return same if same.ndim == 1 else same.all(axis=1)


def check_deduction(tasks: ProgramTasks, answers: jax.Array) -> jax.Array:
    """Which answers are the programs' outputs, bool ``[n]``.

    Args:
        tasks: from ``deduction``.
        answers: tokens ``[n, t]``, any.

    Example:
        >>> from experiments.evolution.programs.language import deduction, programs_of, values_of
        >>> tasks = deduction(programs_of(["sum", "sum"]), values_of([[1, 2], [3, 4]]))
        >>> check_deduction(tasks, tasks.answers.at[1, 0].add(1)).tolist()
        [True, False]
    """
    answered, valid = parse_values(answers)
    return valid & _same(answered, tasks.outputs)


def check_abduction(tasks: ProgramTasks, answers: jax.Array) -> jax.Array:
    """Which answers are lists that give the outputs, bool ``[n]``.

    Args:
        tasks: from ``abduction``.
        answers: tokens ``[n, t]``, any.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     abduction, programs_of, value_tokens, values_of,
        ... )
        >>> tasks = abduction(programs_of(["sum", "sum"]), values_of([[1, 2], [3, 4]]))
        >>> check_abduction(tasks, value_tokens(values_of([[2, 1, 0], [3]]))).tolist()
        [True, False]
    """
    answered, valid = parse_values(answers)
    return valid & answered.is_list & _same(run(tasks.programs, answered), tasks.outputs)


def check_induction(tasks: ProgramTasks, answers: jax.Array) -> jax.Array:
    """Which answers are programs that explain all examples, bool ``[n]``: shown and held back.

    Args:
        tasks: from ``induction``.
        answers: tokens ``[n, t]``, any.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     induction, program_tokens, programs_of, values_of,
        ... )
        >>> inputs = jax.tree.map(lambda leaf: leaf[None], values_of([[1], [1, 2], [3]]))
        >>> tasks = induction(programs_of(["take 1 | sum"]), inputs, shown=2)
        >>> check_induction(tasks, program_tokens(programs_of(["head"]))).tolist()
        [True]
    """
    programs, valid = parse(answers)
    return valid & _same(run(programs, tasks.inputs), tasks.outputs)
