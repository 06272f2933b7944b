"""The interpreter: runs programs on arrays, all rows at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evolution.programs.language.language import (
    GIVES,
    LEAST,
    MAX_LENGTH,
    MAX_OPERATIONS,
    MOST,
    OPERATIONS,
    TAKES_DIGIT,
    TAKES_LIST,
    Programs,
    Values,
)
from metajax.errors import ArgumentError

_PLACES = np.arange(MAX_LENGTH, dtype=np.int32)

List = tuple[jax.Array, jax.Array]
"""Digits ``[MAX_LENGTH]``, and how many of them count."""


def run(programs: Programs, inputs: Values) -> Values:
    """Runs programs on inputs, row by row.

    It is defined on any integers: an unknown operation does nothing, arguments are clipped to 0 to
    9, a list operation takes a digit as a list of one, and a digit operation takes a list's first
    digit (0 if empty). Well-typed programs never need that.

    Args:
        programs: ``n`` of them.
        inputs: ``n`` values; or ``[n, examples]`` of them, several for each program.

    Returns:
        Values of the shape of ``inputs``.

    Raises:
        ArgumentError: at trace time, if the leading axes don't fit.

    Example:
        >>> from experiments.evolution.programs.language import programs_of, texts_of, values_of
        >>> programs = programs_of(["reverse | add 3", "keep_even | sum"])
        >>> texts_of(run(programs, values_of([[1, 2, 8], [1, 2, 8]])))
        ['[ 1 5 4 ]', '0']
    """
    _check(programs, inputs)
    return _run_all(programs, inputs)


@jax.jit
def well_typed(programs: Programs) -> jax.Array:
    """Which programs are well typed, bool ``[n]``.

    They have 1 to ``MAX_OPERATIONS`` known operations with arguments in their ranges, and zeros
    beyond. The first operation takes a list, each other one what the one before it gives.

    Example:
        >>> from experiments.evolution.programs.language import programs_of
        >>> programs = programs_of(["sum | repeat 3", "sum | add 1"])
        >>> backwards = programs._replace(operations=programs.operations[:, ::-1])
        >>> well_typed(programs).tolist(), well_typed(backwards).tolist()
        ([True, True], [False, False])
    """
    operations, arguments, lengths = programs
    inside = lengths[:, None] > np.arange(MAX_OPERATIONS)
    known = jnp.where(inside, operations > 0, operations == 0) & (operations < len(OPERATIONS))
    number = jnp.where(known, operations, 0)
    fits = (arguments >= jnp.array(LEAST)[number]) & (arguments <= jnp.array(MOST)[number])
    valid = (known & fits).all(axis=1) & (lengths >= 1) & (lengths <= MAX_OPERATIONS)
    is_list = jnp.ones(lengths.shape, bool)
    for place in range(MAX_OPERATIONS):
        here = number[:, place]
        valid &= jnp.where(is_list, jnp.array(TAKES_LIST)[here], jnp.array(TAKES_DIGIT)[here])
        is_list = kind_after(here, is_list)
    return valid


def kind_after(number: jax.Array, is_list: jax.Array) -> jax.Array:
    gives = jnp.array(GIVES)[number]
    return jnp.where(gives == 0, is_list, gives == 2)


def _check(programs: Programs, inputs: Values) -> None:
    count = programs.lengths.shape
    if programs.operations.shape != (*count, MAX_OPERATIONS) or len(count) != 1:
        raise ArgumentError(
            f"programs must hold operations [n, {MAX_OPERATIONS}] and lengths [n], got shapes "
            f"{programs.operations.shape} and {programs.lengths.shape}."
        )
    leading = inputs.lengths.shape
    if leading[:1] != count or len(leading) > 2 or inputs.digits.shape != (*leading, MAX_LENGTH):
        raise ArgumentError(
            f"inputs must hold digits [n, {MAX_LENGTH}] or [n, examples, {MAX_LENGTH}] and lengths "
            f"without the last axis for n={count[0]} programs, got shapes {inputs.digits.shape} "
            f"and {inputs.lengths.shape}."
        )


@jax.jit  # so that calls outside of a program don't trace all operations again
def _run_all(programs: Programs, inputs: Values) -> Values:
    one = _run
    if inputs.digits.ndim == 3:
        one = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(one)(programs, inputs)


def _run(program: Programs, value: Values) -> Values:
    """One program on one value."""

    def step(carry, instruction):
        digits, length, is_list = carry
        number, argument, inside = instruction
        known = inside & (number > 0) & (number < len(OPERATIONS))
        number = jnp.where(known, number, 0)
        argument = jnp.clip(argument, 0, 9)
        digits, length = _apply(number, argument, digits, length)
        return (digits, length, kind_after(number, is_list)), None

    length = jnp.clip(value.lengths, 0, MAX_LENGTH).astype(jnp.int32)
    length = jnp.where(value.is_list, length, 1)
    digits = jnp.where(_inside(length), jnp.clip(value.digits, 0, 9), 0).astype(jnp.int32)
    inside = np.arange(MAX_OPERATIONS) < program.lengths
    instructions = (program.operations, program.arguments, inside)
    (digits, length, is_list), _ = jax.lax.scan(step, (digits, length, value.is_list), instructions)
    return Values(digits, length, is_list)


def _apply(number: jax.Array, k: jax.Array, x: jax.Array, n: jax.Array) -> List:
    """Operation ``number`` with argument ``k`` on the list of the first ``n`` of ``x``."""
    x, n = jax.lax.switch(number, _BRANCHES, x, n, k)
    n = jnp.clip(n, 0, MAX_LENGTH).astype(jnp.int32)
    return jnp.where(_inside(n), x, 0).astype(jnp.int32), n


def _inside(n: jax.Array) -> jax.Array:
    """Which places are of a list of ``n``."""
    return n > _PLACES


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
    """``x`` at ``places``, 0 where there is none: a sum, since on a CPU many small gathers are
    slower."""
    return jnp.where(places[:, None] == _PLACES, x, 0).sum(axis=1)


def _kept(x: jax.Array, n: jax.Array, keep: jax.Array) -> List:
    """Those of a list that are to be kept, moved together."""
    keep &= _inside(n)
    goes_to = jnp.where(keep, jnp.cumsum(keep) - 1, MAX_LENGTH)
    return jnp.where(goes_to == _PLACES[:, None], x, 0).sum(axis=1), keep.sum()


def _sorted(x: jax.Array, n: jax.Array) -> jax.Array:
    """By counting for each digit those that come before it."""
    before = (x[:, None] > x) | ((x[:, None] == x) & np.tri(MAX_LENGTH, k=-1, dtype=bool))
    rank = (before & _inside(n)).sum(axis=1)
    rank = jnp.where(_inside(n), rank, MAX_LENGTH)
    return jnp.where(rank == _PLACES[:, None], x, 0).sum(axis=1)


def _unique(x: jax.Array, n: jax.Array) -> List:
    earlier = (x[:, None] == x) & np.tri(MAX_LENGTH, k=-1, dtype=bool)
    return _kept(x, n, ~earlier.any(axis=1))


def _digit(digit: jax.Array) -> List:
    return jnp.where(_PLACES == 0, digit, 0), jnp.ones((), jnp.int32)


def _last(x: jax.Array, n: jax.Array) -> jax.Array:
    return jnp.where(n - 1 == _PLACES, x, 0).sum()


def _append(x: jax.Array, n: jax.Array, k: jax.Array) -> List:
    return jnp.where(n == _PLACES, k, x), n + 1


_BEHAVIOUR: dict[str, Callable[..., List]] = {
    "nothing": lambda x, n, k: (x, n),
    "add": lambda x, n, k: ((x + k) % 10, n),
    "times": lambda x, n, k: (x * k % 10, n),
    "complement": lambda x, n, k: (9 - x, n),
    "square": lambda x, n, k: (x * x % 10, n),
    "halve": lambda x, n, k: (x // 2, n),
    "modulo": lambda x, n, k: (x % jnp.maximum(k, 1), n),
    "keep_even": lambda x, n, k: _kept(x, n, x % 2 == 0),
    "keep_odd": lambda x, n, k: _kept(x, n, x % 2 == 1),
    "keep_above": lambda x, n, k: _kept(x, n, x > k),
    "keep_below": lambda x, n, k: _kept(x, n, x < k),
    "without": lambda x, n, k: _kept(x, n, x != k),
    "unique": lambda x, n, k: _unique(x, n),
    "reverse": lambda x, n, k: (_at(x, n - 1 - _PLACES), n),
    "sort": lambda x, n, k: (_sorted(x, n), n),
    "rotate": lambda x, n, k: (_at(x, (_PLACES + k) % jnp.maximum(n, 1)), n),
    "take": lambda x, n, k: (x, jnp.minimum(n, k)),
    "drop": lambda x, n, k: (_at(x, _PLACES + k), jnp.maximum(n - k, 0)),
    "every": lambda x, n, k: _kept(x, n, _PLACES % jnp.maximum(k, 1) == 0),
    "swap": lambda x, n, k: (_at(x, jnp.where(_inside(n)[_PLACES ^ 1], _PLACES ^ 1, _PLACES)), n),
    "mirror": lambda x, n, k: (x + _at(x, 2 * n - 1 - _PLACES) * ~_inside(n), 2 * n),
    "push": lambda x, n, k: (jnp.where(_PLACES == 0, k, jnp.roll(x, 1)), n + 1),
    "append": _append,
    "sums": lambda x, n, k: (jnp.cumsum(x) % 10, n),
    "differences": lambda x, n, k: ((jnp.roll(x, -1) - x) % 10, jnp.maximum(n - 1, 0)),
    "maxima": lambda x, n, k: (jax.lax.cummax(x), n),
    "fold": lambda x, n, k: ((x + _at(x, n - 1 - _PLACES)) % 10, n),
    "sum": lambda x, n, k: _digit(x.sum() % 10),
    "max": lambda x, n, k: _digit(x.max()),
    "min": lambda x, n, k: _digit(jnp.where(n > 0, jnp.where(_inside(n), x, 9).min(), 0)),
    "length": lambda x, n, k: _digit(n),
    "head": lambda x, n, k: _digit(x[0]),
    "last": lambda x, n, k: _digit(_last(x, n)),
    "count": lambda x, n, k: _digit(((x == k) & _inside(n)).sum()),
    "repeat": lambda x, n, k: (jnp.broadcast_to(x[0], x.shape), k),
    "range": lambda x, n, k: (jnp.asarray(_PLACES), x[0]),
}
_BRANCHES = [
    lambda x, n, k, own=_BEHAVIOUR[operation.name]: _as_int32(own(x, n, k))
    for operation in OPERATIONS
]


def _as_int32(made: List) -> List:
    digits, length = made
    return digits.astype(jnp.int32), length.astype(jnp.int32)
