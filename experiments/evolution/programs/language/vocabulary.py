"""A token for each word, and programs and values as text and as arrays of tokens."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evolution.programs.language.interpreter import well_typed
from experiments.evolution.programs.language.language import (
    HAS_ARGUMENT,
    LEAST,
    MAX_LENGTH,
    MAX_OPERATIONS,
    MOST,
    OPERATIONS,
    Programs,
    Values,
)
from metajax.errors import ArgumentError

_MARKS = ("<pad>", "<bos>", "<eos>", "|", "[", "]", ":", "=", ";")
_KINDS = ("propose", "deduce", "abduce", "induce")
WORDS = (*_MARKS, *_KINDS, *map(str, range(10)), *(o.name for o in OPERATIONS[1:]))
"""All words, in the order of their tokens: marks, kinds of task, digits, operations."""

PAD, BOS, EOS, PIPE, OPEN, CLOSE, COLON, EQUALS, SEMICOLON = range(len(_MARKS))
PROPOSE, DEDUCE, ABDUCE, INDUCE = range(len(_MARKS), len(_MARKS) + len(_KINDS))
ZERO = len(_MARKS) + len(_KINDS)
"""The token of digit 0; the others follow."""
FIRST = ZERO + 9
"""What is added to an operation's number to get its token."""

PROGRAM_LENGTH = 3 * MAX_OPERATIONS
"""Tokens of a program at most: operations, arguments, pipes between them, and the end."""
VALUE_LENGTH = MAX_LENGTH + 3
"""Tokens of a value at most: brackets, digits, and the end."""


class WordTokenizer:
    """A ``metajax.lm.Tokenizer`` of the language's words, which spaces part.

    Example:
        >>> WordTokenizer().encode("reverse | add 3")
        [35, 3, 23, 16]
        >>> WordTokenizer().decode([35, 3, 23, 16]), WordTokenizer().vocab_size
        ('reverse | add 3', 58)
    """

    _numbers = {word: number for number, word in enumerate(WORDS)}  # noqa: RUF012

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        return len(WORDS)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; an ArgumentError for an unknown word."""
        words = text.split()
        unknown = [word for word in words if word not in self._numbers]
        if unknown:
            raise ArgumentError(f"text has an unknown word, {unknown[0][:40]!r}.")
        return [self._numbers[word] for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, padding left out; an ArgumentError for an unknown token."""
        numbers = [int(number) for number in ids]
        wrong = [number for number in numbers if not 0 <= number < len(WORDS)]
        if wrong:
            raise ArgumentError(f"ids must be from 0 to {len(WORDS) - 1}, got {wrong[0]}.")
        return " ".join(WORDS[number] for number in numbers if number != PAD)


def squeeze(tokens: jax.Array, keep: jax.Array, length: int, *, left: bool = False) -> jax.Array:
    """The tokens to keep of each row ``[n, t]``, moved together into ``[n, length]``, with padding
    after them, or before them if ``left``. What doesn't fit is cut at the end.

    Example:
        >>> squeeze(jnp.array([[7, 8, 9]]), jnp.array([[True, False, True]]), 4, left=True).tolist()
        [[0, 0, 7, 9]]
    """
    goes_to = jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1
    if left:
        goes_to += length - jnp.minimum(keep.sum(axis=1, keepdims=True), length)
    goes_to = jnp.where(keep & (goes_to < length), goes_to, length)
    rows = jnp.arange(len(tokens))[:, None]
    made = jnp.full((len(tokens), length), PAD, jnp.int32)
    return made.at[rows, goes_to].set(tokens.astype(jnp.int32), mode="drop")


@jax.jit
def program_tokens(programs: Programs) -> jax.Array:
    """Programs as tokens ``[n, PROGRAM_LENGTH]``: words, the end, padding.

    Example:
        >>> WordTokenizer().decode(program_tokens(programs_of(["reverse | sum"]))[0])
        'reverse | sum <eos>'
    """
    operations, arguments, lengths = programs
    inside = np.arange(MAX_OPERATIONS) < lengths[:, None]
    last = np.arange(MAX_OPERATIONS) == lengths[:, None] - 1
    parts = [operations + FIRST, arguments + ZERO, jnp.where(last, EOS, PIPE)]
    keep = [inside, inside & jnp.array(HAS_ARGUMENT)[operations], inside]
    count = len(operations)
    tokens, kept = (jnp.stack(part, axis=2).reshape(count, -1) for part in (parts, keep))
    return squeeze(tokens, kept, PROGRAM_LENGTH)


@jax.jit
def value_tokens(values: Values) -> jax.Array:
    """Values as tokens ``[n, VALUE_LENGTH]``: a list in brackets or a digit, the end, padding.

    Example:
        >>> print(*map(WordTokenizer().decode, value_tokens(values_of([[3, 1], 4]))), sep=", ")
        [ 3 1 ] <eos>, 4 <eos>
    """
    digits, lengths, is_list = values
    count = len(digits)
    inside = np.arange(MAX_LENGTH) < lengths[:, None]
    bracket = is_list[:, None]
    one = jnp.ones((count, 1), jnp.int32)
    tokens = jnp.concatenate([OPEN * one, digits + ZERO, CLOSE * one, EOS * one], axis=1)
    keep = jnp.concatenate([bracket, inside, bracket, one > 0], axis=1)
    return squeeze(tokens, keep, VALUE_LENGTH)


def _after(pairs) -> np.ndarray:
    """Which token may follow which, bool ``[vocab + 1, vocab + 1]``; of the start, the last row."""
    allowed = np.zeros((len(WORDS) + 1, len(WORDS) + 1), bool)
    for before, after in [*pairs, (EOS, PAD), (PAD, PAD)]:
        allowed[before, after] = True
    return allowed


_START = len(WORDS)


def _program_pairs():
    for number, operation in enumerate(OPERATIONS[1:], start=1):
        token = number + FIRST
        yield from [(_START, token), (PIPE, token)]
        if operation.most is None:
            yield from [(token, PIPE), (token, EOS)]
        else:
            yield from ((token, ZERO + k) for k in range(LEAST[number], MOST[number] + 1))
    for digit in range(ZERO, ZERO + 10):
        yield from [(digit, PIPE), (digit, EOS)]


def _value_pairs():
    yield from [(_START, OPEN), (OPEN, CLOSE), (CLOSE, EOS)]
    for digit in range(ZERO, ZERO + 10):
        yield from [(_START, digit), (OPEN, digit), (digit, CLOSE), (digit, EOS)]
        yield from ((digit, other) for other in range(ZERO, ZERO + 10))


_PROGRAM_PAIRS, _VALUE_PAIRS = _after(_program_pairs()), _after(_value_pairs())


def _follows(tokens: jax.Array, pairs: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Tokens, unknown ones as one that nothing allows; and rows whose neighbours are all allowed,
    so that they end: before padding stands the end, or padding."""
    _check_tokens(tokens)
    known = (tokens >= 0) & (tokens < len(WORDS))
    tokens = jnp.where(known, tokens, _START).astype(jnp.int32)
    before = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=_START)[:, :-1]
    ends = (tokens == EOS).any(axis=1)
    return tokens, jnp.array(pairs)[before, tokens].all(axis=1) & ends


def _check_tokens(tokens: Any) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ArgumentError(
            f"tokens must be integers [n, t], got {tokens.dtype} of shape {tokens.shape}."
        )


@jax.jit
def parse(tokens: jax.Array) -> tuple[Programs, jax.Array]:
    """Reads programs, such as those a model wrote.

    Args:
        tokens: integers ``[n, t]``, any.

    Returns:
        Programs, and valid, bool ``[n]``: True for what is exactly a well-typed program, the end,
        and padding. Rows that aren't valid are programs without operations.

    Raises:
        ArgumentError: at trace time, if tokens aren't integers ``[n, t]``.

    Example:
        >>> programs, valid = parse(program_tokens(programs_of(["reverse | take 3 | sum"])))
        >>> texts_of(programs), valid.tolist()
        (['reverse | take 3 | sum'], [True])
        >>> parse(jnp.array([WordTokenizer().encode("sum | reverse <eos>")]))[1].tolist()
        [False]
    """
    tokens, follows = _follows(jnp.asarray(tokens), _PROGRAM_PAIRS)
    is_operation = (tokens > FIRST) & (tokens < _START)
    lengths = is_operation.sum(axis=1, dtype=jnp.int32)
    operations = squeeze(tokens - FIRST, is_operation, MAX_OPERATIONS)
    following = jnp.pad(tokens, ((0, 0), (0, 1)))[:, 1:]
    is_digit = (following >= ZERO) & (following <= FIRST)
    arguments = squeeze(jnp.where(is_digit, following - ZERO, 0), is_operation, MAX_OPERATIONS)
    programs = Programs(operations, arguments, lengths)
    valid = follows & (lengths <= MAX_OPERATIONS)
    valid &= well_typed(programs)
    return _where(valid, programs), valid


@jax.jit
def parse_values(tokens: jax.Array) -> tuple[Values, jax.Array]:
    """Reads values, such as those a model answered.

    Args:
        tokens: integers ``[n, t]``, any.

    Returns:
        Values, and valid, bool ``[n]``: True for exactly a digit, or at most ``MAX_LENGTH`` in
        brackets, then the end, and padding. Rows that aren't valid are empty lists.

    Raises:
        ArgumentError: at trace time, if tokens aren't integers ``[n, t]``.

    Example:
        >>> values, valid = parse_values(value_tokens(values_of([[3, 1], 4])))
        >>> texts_of(values), valid.tolist()
        (['[ 3 1 ]', '4'], [True, True])
    """
    tokens, follows = _follows(jnp.asarray(tokens), _VALUE_PAIRS)
    is_digit = (tokens >= ZERO) & (tokens <= FIRST)
    lengths = is_digit.sum(axis=1, dtype=jnp.int32)
    opens, closes = ((tokens == mark).any(axis=1) for mark in (OPEN, CLOSE))
    valid = follows & (lengths <= MAX_LENGTH) & (opens == closes) & (opens | (lengths == 1))
    digits = squeeze(tokens - ZERO, is_digit, MAX_LENGTH)
    values = Values(digits, lengths, opens)
    empty = Values(jnp.zeros_like(digits), jnp.zeros_like(lengths), jnp.ones_like(opens))
    return jax.tree.map(lambda value, none: _rows_where(valid, value, none), values, empty), valid


def _rows_where(condition: jax.Array, yes: jax.Array, no: Any) -> jax.Array:
    return jnp.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _where(condition: jax.Array, programs: Programs) -> Programs:
    return jax.tree.map(lambda leaf: _rows_where(condition, leaf, 0), programs)


def programs_of(texts: Sequence[str]) -> Programs:
    """Programs from text; an ArgumentError names the first that isn't one.

    Example:
        >>> programs_of(["reverse | add 3"]).arguments.tolist()
        [[0, 3, 0, 0]]
    """
    rows = np.full((len(texts), PROGRAM_LENGTH), PAD, np.int32)
    fits = np.ones(len(texts), bool)
    for number, text in enumerate(texts):
        tokens = [*WordTokenizer().encode(text), EOS]
        fits[number] = len(tokens) <= PROGRAM_LENGTH
        rows[number, : len(tokens)] = tokens[:PROGRAM_LENGTH]
    programs, valid = parse(jnp.asarray(rows))
    wrong = np.flatnonzero(~(np.asarray(valid) & fits))
    if wrong.size:
        raise ArgumentError(f"texts[{wrong[0]}] is no well-typed program: {texts[wrong[0]]!r}.")
    return programs


def values_of(values: Sequence[Sequence[int] | int]) -> Values:
    """Values from Python's lists and integers; an ArgumentError names the first that isn't one.

    Example:
        >>> values_of([[3, 1], 4]).lengths.tolist()
        [2, 1]
    """
    digits = np.zeros((len(values), MAX_LENGTH), np.int32)
    lengths, is_list = np.ones(len(values), np.int32), np.zeros(len(values), bool)
    for number, value in enumerate(values):
        row = [value] if isinstance(value, int) else list(value)
        if len(row) > MAX_LENGTH or not all(isinstance(d, int) and 0 <= d <= 9 for d in row):
            raise ArgumentError(
                f"values[{number}] must be a digit or at most {MAX_LENGTH} of them, got {value!r}."
            )
        digits[number, : len(row)] = row
        lengths[number], is_list[number] = len(row), not isinstance(value, int)
    return Values(*map(jnp.asarray, (digits, lengths, is_list)))


def texts_of(items: Programs | Values) -> list[str]:
    """Programs or values as text, one a row.

    Example:
        >>> texts_of(values_of([[], 4]))
        ['[ ]', '4']
    """
    tokens = program_tokens(items) if isinstance(items, Programs) else value_tokens(items)
    return [WordTokenizer().decode([t for t in row if t != EOS]) for row in np.asarray(tokens)]
