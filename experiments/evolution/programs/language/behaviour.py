"""What programs do on fixed inputs: which do the same, and which do nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evolution.programs.language.held_out import HELD_OUT
from experiments.evolution.programs.language.interpreter import run
from experiments.evolution.programs.language.language import MAX_LENGTH, Programs, Values
from experiments.evolution.programs.language.vocabulary import programs_of

_TELLING = (
    (),
    (0,),
    (5,),
    (0, 1, 2, 3, 4, 5, 6, 7),
    (9, 8, 7, 6, 5, 4, 3, 2),
    (3, 3, 3, 3),
    (2, 1, 2, 1, 2, 1, 2),
    (8, 6, 4, 2, 0),
    (9, 7, 5, 3, 1),
    (1, 2, 2, 3, 3, 3),
)
PROBES = 48
"""Inputs by which programs are compared."""


@functools.cache
def _probes() -> Values:
    """The lists above, then lists of every length with pseudo-random digits. These come from a
    congruential generator, so that they don't change with a library's version."""
    digits = np.zeros((PROBES, MAX_LENGTH), np.int32)
    lengths = np.zeros(PROBES, np.int32)
    state = 2025
    for row in range(PROBES):
        listed = _TELLING[row] if row < len(_TELLING) else ()
        if not listed and row:
            for _ in range(1 + row % MAX_LENGTH):
                state = (1664525 * state + 1013904223) % 2**32
                listed = (*listed, (state >> 16) % 10)
        digits[row, : len(listed)], lengths[row] = listed, len(listed)
    return Values(digits, lengths, np.ones(PROBES, bool))  # pyright: ignore[reportArgumentType]


@jax.jit
def outputs_on_probes(programs: Programs) -> Values:
    """The outputs of programs on the probes: values ``[n, PROBES]``.

    Example:
        >>> outputs_on_probes(programs_of(["length"])).digits[0, :4, 0].tolist()
        [0, 1, 1, 8]
    """
    count = programs.lengths.shape[0]
    probes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), _probes())
    return run(programs, probes)


@jax.jit
def fingerprints(programs: Programs) -> jax.Array:
    """Two hashes of each program's outputs on the probes, uint32 ``[n, 2]``.

    Equal for programs that agree on all of them; two that don't have equal ones by chance once in
    2^64.

    Example:
        >>> marks = fingerprints(programs_of(["reverse | reverse | sort", "sort", "sum"]))
        >>> bool((marks[0] == marks[1]).all()), bool((marks[1] == marks[2]).any())
        (True, False)
    """
    words = _codes(outputs_on_probes(programs))
    weights = _mixed(np.arange(1, 2 * PROBES + 1, dtype=np.uint32)).reshape(2, PROBES)
    # Mixed before they are summed: a plain weighted sum is linear, and outputs are regular.
    return _mixed(words[:, None, :] ^ weights).sum(axis=2, dtype=jnp.uint32)


def _codes(values: Values) -> jax.Array:
    """A different number for each value: digits and length in nine decimal digits, and its kind in
    the highest bit."""
    powers = 10 ** np.arange(1, MAX_LENGTH + 1, dtype=np.uint32)
    digits = (jnp.asarray(values.digits).astype(jnp.uint32) * powers).sum(axis=-1, dtype=jnp.uint32)
    is_list = jnp.asarray(values.is_list).astype(jnp.uint32) << 31
    return digits + jnp.asarray(values.lengths).astype(jnp.uint32) + is_list


def _mixed(x):
    """A permutation of 32-bit numbers in which every bit depends on all (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


@functools.cache
def held_out_programs() -> Programs:
    """The programs of ``HELD_OUT``, as arrays.

    Example:
        >>> held_out_programs().lengths.shape[0] >= 200
        True
    """
    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, programs_of(HELD_OUT))


@functools.cache
def _held_out_fingerprints() -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(fingerprints)(held_out_programs()))


def is_held_out(programs: Programs) -> jax.Array:
    """Which programs do the same as one of ``HELD_OUT`` on all probes, bool ``[n]``.

    Example:
        >>> from experiments.evolution.programs.language import HELD_OUT
        >>> is_held_out(programs_of([HELD_OUT[0], f"reverse | reverse | {HELD_OUT[0]}"])).tolist()
        [True, True]
    """
    these, theirs = fingerprints(programs), jnp.asarray(_held_out_fingerprints())
    return (these[:, None] == theirs).all(axis=2).any(axis=1)


@jax.jit
def is_degenerate(programs: Programs) -> jax.Array:
    """Which programs aren't worth a task, bool ``[n]``: on the probes they give one output for all
    lists but the empty one, or each list unchanged.

    Example:
        >>> is_degenerate(programs_of(["sum | modulo 2", "take 1 | length", "add 3 | add 7"]))
        Array([False,  True,  True], dtype=bool)
    """
    codes = _codes(outputs_on_probes(programs))
    constant = (codes[:, 1:] == codes[:, 1:2]).all(axis=1)
    return constant | (codes == _codes(_probes())).all(axis=1)
