"""Random programs and inputs, as pure functions of a key."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evolution.programs.language.interpreter import kind_after
from experiments.evolution.programs.language.language import (
    LEAST,
    MAX_LENGTH,
    MAX_OPERATIONS,
    MOST,
    TAKES_DIGIT,
    TAKES_LIST,
    Programs,
    Values,
)
from metajax.errors import ArgumentError


def draw_programs(key: jax.Array, n: int, *, operations: Any = None) -> Programs:
    """Random well-typed programs.

    Each operation that may stand in a place is equally likely, and each of its arguments.

    Args:
        key: for all of it.
        n: how many programs.
        operations: number of operations, an integer or ``[n]`` of them, traced or not, clipped to
            1 to ``MAX_OPERATIONS``; None draws it, each equally likely.

    Raises:
        ArgumentError: ``n`` isn't a positive integer.

    Example:
        >>> from experiments.evolution.programs.language import texts_of
        >>> texts_of(draw_programs(jax.random.key(1), 2, operations=3))
        ['sum | halve | halve', 'keep_odd | swap | append 8']
    """
    _check_count(n)
    length_key, operation_key, argument_key = jax.random.split(key, 3)
    if operations is None:
        operations = jax.random.randint(length_key, (n,), 1, MAX_OPERATIONS + 1)
    lengths = jnp.clip(jnp.broadcast_to(operations, (n,)), 1, MAX_OPERATIONS).astype(jnp.int32)
    # Number 0 stands for no operation.
    on_list, on_digit = (
        jnp.where(takes & (np.arange(len(takes)) > 0), 0.0, -jnp.inf)
        for takes in (TAKES_LIST, TAKES_DIGIT)
    )

    def step(is_list, key):
        likely = jnp.where(is_list[:, None], on_list, on_digit)
        number = jax.random.categorical(key, likely).astype(jnp.int32)
        return kind_after(number, is_list), number

    keys = jax.random.split(operation_key, MAX_OPERATIONS)
    _, numbers = jax.lax.scan(step, jnp.ones(n, bool), keys)
    inside = np.arange(MAX_OPERATIONS) < lengths[:, None]
    numbers = jnp.where(inside, numbers.T, 0)
    least, most = jnp.array(LEAST)[numbers], jnp.array(MOST)[numbers]
    arguments = jax.random.randint(argument_key, numbers.shape, least, most + 1, jnp.int32)
    return Programs(numbers, arguments, lengths)


def draw_inputs(key: jax.Array, n: int, *, shortest: int = 1, longest: int = MAX_LENGTH) -> Values:
    """Random lists; each length and each digit is equally likely.

    Args:
        key: for all of it.
        n: how many lists.
        shortest: digits in a list, at least.
        longest: at most.

    Raises:
        ArgumentError: ``n`` isn't a positive integer, or not
            ``0 <= shortest <= longest <= MAX_LENGTH``.

    Example:
        >>> from experiments.evolution.programs.language import texts_of
        >>> texts_of(draw_inputs(jax.random.key(0), 2, longest=3))
        ['[ 2 2 ]', '[ 5 6 2 ]']
    """
    _check_count(n)
    if not 0 <= shortest <= longest <= MAX_LENGTH:
        raise ArgumentError(
            f"shortest and longest must be from 0 to {MAX_LENGTH}, the first not above the last, "
            f"got {shortest} and {longest}."
        )
    length_key, digit_key = jax.random.split(key)
    lengths = jax.random.randint(length_key, (n,), shortest, longest + 1, jnp.int32)
    digits = jax.random.randint(digit_key, (n, MAX_LENGTH), 0, 10, jnp.int32)
    digits = jnp.where(np.arange(MAX_LENGTH) < lengths[:, None], digits, 0)
    return Values(digits, lengths, jnp.ones(n, bool))


def _check_count(n: int) -> None:
    if n < 1:
        raise ArgumentError(f"n must be at least 1, got {n}.")
