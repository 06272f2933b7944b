"""The three kinds of task about programs, as prompts and answers for a language model.

Deduction asks for a program's output, abduction for an input that gives an output, induction for a
program from examples; a proposal is a program and an input. The interpreter decides what is right.

Source: Zhao et al. 2025, "Absolute Zero: Reinforced Self-play Reasoning with Zero Data" (arXiv
2505.03335).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.evolution.programs.language.interpreter import run
from experiments.evolution.programs.language.language import Programs, Values
from experiments.evolution.programs.language.vocabulary import (
    ABDUCE,
    BOS,
    COLON,
    DEDUCE,
    EOS,
    EQUALS,
    INDUCE,
    PAD,
    PROGRAM_LENGTH,
    PROPOSE,
    SEMICOLON,
    VALUE_LENGTH,
    program_tokens,
    squeeze,
    value_tokens,
)
from metajax.errors import ArgumentError

ANSWER_LENGTH = max(PROGRAM_LENGTH, VALUE_LENGTH)
"""Tokens of an answer to any task, its end among them."""
PROPOSAL_LENGTH = PROGRAM_LENGTH + VALUE_LENGTH
"""Tokens of a proposal, its end among them."""


class ProgramTasks(NamedTuple):
    """Tasks of one kind, one a row.

    Attributes:
        prompts: int32 ``[n, prompt]``, padded on the left.
        answers: int32 ``[n, answer]``, padded on the right: one that is right.
        programs: ``n`` of them.
        inputs: values ``[n]``; of induction ``[n, examples]``, shown ones first.
        outputs: the programs' outputs, of the same shape.
    """

    prompts: jax.Array
    answers: jax.Array
    programs: Programs
    inputs: Values
    outputs: Values


def _prompt(parts: list, length: int) -> jax.Array:
    """Parts, tokens or arrays of them ``[n, t]``, without ends and padding, in one row."""
    count = next(len(part) for part in parts if not isinstance(part, int))
    columns = [jnp.full((count, 1), part) if isinstance(part, int) else part for part in parts]
    tokens = jnp.concatenate(columns, axis=1)
    return squeeze(tokens, (tokens != PAD) & (tokens != EOS), length, left=True)


def _answer(tokens: jax.Array) -> jax.Array:
    return jnp.pad(tokens, ((0, 0), (0, ANSWER_LENGTH - tokens.shape[1])))


_ONE_PROMPT = 2 + (PROGRAM_LENGTH - 1) + 1 + (VALUE_LENGTH - 1) + 1


def deduction(programs: Programs, inputs: Values) -> ProgramTasks:
    """Asks for the output of each program on its input.

    Args:
        programs: ``n`` of them.
        inputs: values ``[n]``.

    Returns:
        Tasks whose answers are the outputs.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     WordTokenizer, programs_of, values_of,
        ... )
        >>> tasks = deduction(programs_of(["reverse | add 3"]), values_of([[1, 2]]))
        >>> print(*map(WordTokenizer().decode, [tasks.prompts[0], tasks.answers[0]]))
        <bos> deduce reverse | add 3 : [ 1 2 ] = [ 5 4 ] <eos>
    """
    outputs = run(programs, inputs)
    parts = [BOS, DEDUCE, program_tokens(programs), COLON, value_tokens(inputs), EQUALS]
    answers = _answer(value_tokens(outputs))
    return ProgramTasks(_prompt(parts, _ONE_PROMPT), answers, programs, inputs, outputs)


def abduction(programs: Programs, inputs: Values) -> ProgramTasks:
    """Asks for an input that gives each program's output.

    Args:
        programs: ``n`` of them.
        inputs: values ``[n]``; any others that give the same outputs are right too.

    Returns:
        Tasks whose answers are the inputs.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     WordTokenizer, programs_of, values_of,
        ... )
        >>> tasks = abduction(programs_of(["reverse | add 3"]), values_of([[1, 2]]))
        >>> print(*map(WordTokenizer().decode, [tasks.prompts[0], tasks.answers[0]]))
        <bos> abduce reverse | add 3 = [ 5 4 ] : [ 1 2 ] <eos>
    """
    outputs = run(programs, inputs)
    parts = [BOS, ABDUCE, program_tokens(programs), EQUALS, value_tokens(outputs), COLON]
    answers = _answer(value_tokens(inputs))
    return ProgramTasks(_prompt(parts, _ONE_PROMPT), answers, programs, inputs, outputs)


def induction(programs: Programs, inputs: Values, *, shown: int) -> ProgramTasks:
    """Asks for a program that maps inputs to outputs.

    Args:
        programs: ``n`` of them.
        inputs: values ``[n, examples]``.
        shown: how many of the examples the prompt shows. A program must explain the others too.

    Returns:
        Tasks whose answers are the programs.

    Raises:
        ArgumentError: ``shown`` isn't from 1 to the number of examples.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     WordTokenizer, programs_of, values_of,
        ... )
        >>> inputs = jax.tree.map(lambda leaf: leaf[None], values_of([[1, 2], [7], [4]]))
        >>> tasks = induction(programs_of(["reverse | add 3"]), inputs, shown=2)
        >>> print(*map(WordTokenizer().decode, [tasks.prompts[0], tasks.answers[0]]))
        <bos> induce [ 1 2 ] = [ 5 4 ] ; [ 7 ] = [ 0 ] : reverse | add 3 <eos>
    """
    examples = inputs.lengths.shape[1] if inputs.lengths.ndim == 2 else 0
    if not 1 <= shown <= examples:
        raise ArgumentError(
            f"shown must be from 1 to the number of examples of inputs [n, examples], got "
            f"{shown} for lengths of shape {inputs.lengths.shape}."
        )
    outputs = run(programs, inputs)
    parts: list = [BOS, INDUCE]
    for number in range(shown):
        given, made = (jax.tree.map(lambda leaf: leaf[:, number], v) for v in (inputs, outputs))  # noqa: B023
        between = SEMICOLON if number + 1 < shown else COLON
        parts += [value_tokens(given), EQUALS, value_tokens(made), between]
    prompts = _prompt(parts, 2 + shown * 2 * VALUE_LENGTH)
    return ProgramTasks(prompts, _answer(program_tokens(programs)), programs, inputs, outputs)


def proposals(programs: Programs, inputs: Values) -> ProgramTasks:
    """Asks for any program with an input: what a proposer is trained on.

    Returns:
        Tasks whose prompts are all alike, and whose answers, ``[n, PROPOSAL_LENGTH]``, are the
        programs and inputs; see ``parse_proposals``.

    Example:
        >>> from experiments.evolution.programs.language import (
        ...     WordTokenizer, programs_of, values_of,
        ... )
        >>> tasks = proposals(programs_of(["reverse | add 3"]), values_of([[1, 2]]))
        >>> print(*map(WordTokenizer().decode, [tasks.prompts[0], tasks.answers[0]]))
        <bos> propose reverse | add 3 : [ 1 2 ] <eos>
    """
    written = program_tokens(programs)
    written = jnp.where(written == EOS, COLON, written)
    tokens = jnp.concatenate([written, value_tokens(inputs)], axis=1)
    answers = squeeze(tokens, tokens != PAD, PROPOSAL_LENGTH)
    prompts = jnp.broadcast_to(jnp.array([BOS, PROPOSE], jnp.int32), (len(answers), 2))
    return ProgramTasks(prompts, answers, programs, inputs, run(programs, inputs))
