"""Families of small text tasks: rules that turn one word into another, to be learned from examples.

A rule arranges a word's letters, then writes others in their place. An example is a line such as
``abca>dcba``, whose second word a model predicts. A few examples describe a rule, and some of its
parts have random parameters. Compositions of parts may be held out, to test whether adaptation
carries over to them.
"""

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.errors import ArgumentError
from metajax.lm import CharTokenizer, TokenBatch
from metajax.types import Episode, Sampler

ARRANGEMENTS = ("keep", "reverse", "rotate", "swap", "sort", "shuffle")
"""How letters are arranged: as they are, backwards, rotated by a random number of places, with
neighbours exchanged, sorted, in a random order."""
WRITINGS = ("plain", "caesar", "mirror", "substitution", "grammar")
"""What is written for a letter: itself; the letter a random number of places on; that of the
mirrored alphabet; that of a random table. A grammar writes the last letter's successor in a random
table, that letter's successor, and so on."""
FAMILIES = tuple(f"{a}+{w}" for a in ARRANGEMENTS for w in WRITINGS if (a, w) != ("keep", "plain"))
"""All compositions but copying."""


class Words(NamedTuple):
    """How words become tokens.

    Attributes:
        letters: size of the alphabet, at most 26; tokens 0 to ``letters - 1``.
        length: letters in a word.

    Example:
        >>> Words(letters=4, length=2).tokenizer.characters, Words(letters=4, length=2).line
        ('abcd>\\n', 6)
    """

    letters: int = 12
    length: int = 5

    @property
    def tokenizer(self) -> CharTokenizer:
        """The letters, ``>`` and the line's end, in the order of their tokens."""
        return CharTokenizer(string.ascii_lowercase[: self.letters] + ">\n")

    @property
    def line(self) -> int:
        """Tokens of an example: two words, ``>`` and the line's end."""
        return 2 * self.length + 2


DEFAULT_WORDS = Words()
"""Words of five of twelve letters."""


def draw_rule(key: jax.Array, family: jax.Array, words: Words) -> Callable[[jax.Array], jax.Array]:
    """A random rule of a family.

    Args:
        key: for the rule's parameters.
        family: index in ``FAMILIES``, an int32 scalar.
        words: alphabet and length.

    Returns:
        ``rule(inputs)``: words ``[n, length]`` for words ``[n, length]``, both integers below
        ``words.letters``.

    Example:
        >>> family = FAMILIES.index("reverse+mirror")
        >>> draw_rule(jax.random.key(0), family, Words(4, 3))(jnp.array([[0, 0, 1]])).tolist()
        [[2, 3, 3]]
    """
    letters, length = words
    kinds = jnp.array([[ARRANGEMENTS.index(a), WRITINGS.index(w)] for a, w in _parts(FAMILIES)])
    arrangement, writing = kinds[family]
    keys = jax.random.split(key, 4)
    places, alphabet = jnp.arange(length), jnp.arange(letters)
    turn = jax.random.randint(keys[0], (), 1, length)
    neighbour = jnp.where(places ^ 1 < length, places ^ 1, places)
    shuffled = jax.random.permutation(keys[1], length)
    # Sorting isn't an order of places: its row stands for none.
    orders = [places, places[::-1], (places + turn) % length, neighbour, places, shuffled]
    order = jnp.stack(orders)[arrangement]
    shift = jax.random.randint(keys[2], (), 1, letters)
    random = jax.random.permutation(keys[3], letters)
    tables = [alphabet, (alphabet + shift) % letters, alphabet[::-1], random, random]
    table = jnp.stack(tables)[writing]

    def rule(inputs: jax.Array) -> jax.Array:
        is_sort = arrangement == ARRANGEMENTS.index("sort")
        arranged = jnp.where(is_sort, jnp.sort(inputs, axis=-1), inputs[:, order])

        def successor(letter, _):
            return table[letter], table[letter]

        _, chain = jax.lax.scan(successor, arranged[:, -1], length=length)
        return jnp.where(writing == WRITINGS.index("grammar"), chain.T, table[arranged])

    return rule


def _parts(families: Sequence[str]) -> list[list[str]]:
    return [family.split("+") for family in families]


def string_tasks(
    words: Words = DEFAULT_WORDS,
    *,
    families: Sequence[str] = FAMILIES,
    k_shot: int = 8,
    query: int = 8,
) -> Sampler:
    """Builds ``sample(key) -> Episode``: examples of one rule of one of the families.

    Args:
        words: alphabet and length.
        families: each as likely as another; from ``FAMILIES``.
        k_shot: examples in the support set.
        query: examples in the query set.

    Returns:
        A pure function: a key to an episode of two ``TokenBatch`` with a line a row, tokens
        ``[examples, words.line]``, whose targets are the second word's letters. Lines of the two
        sets may be alike by chance.

    Raises:
        ArgumentError: a number isn't positive, the alphabet has fewer than 2 or more than
            26 letters, words have fewer than 2, or a family is unknown.

    Example:
        >>> words = Words(letters=4, length=3)
        >>> episode = string_tasks(words, families=["keep+mirror"], k_shot=2)(jax.random.key(0))
        >>> print(words.tokenizer.decode(episode.support.tokens.ravel()), end="")
        dcd>aba
        dac>adb
    """
    draw = tasks_of_family(words, k_shot=k_shot, query=query)
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise ArgumentError(
            f"families must be some of {', '.join(FAMILIES)}; got {unknown or families!r}."
        )
    numbers = jnp.array([FAMILIES.index(family) for family in families])

    def sample(key: jax.Array, /) -> Episode:
        family_key, _, _ = jax.random.split(key, 3)
        return draw(key, jax.random.choice(family_key, numbers))

    return sample


def tasks_of_family(
    words: Words = DEFAULT_WORDS, *, k_shot: int = 8, query: int = 8
) -> Callable[[jax.Array, jax.Array | int], Episode]:
    """Builds ``draw(key, family) -> Episode``: as ``string_tasks``, of the given family.

    One compiled program draws tasks of every family.

    Args:
        words: alphabet and length.
        k_shot: examples in the support set.
        query: examples in the query set.

    Returns:
        A pure function of a key and an index in ``FAMILIES``. ``string_tasks`` of this family alone
        gives the same episode for the key.

    Raises:
        ArgumentError: a number isn't positive, the alphabet has fewer than 2 or more than
            26 letters, or words have fewer than 2.

    Example:
        >>> words = Words(letters=4, length=3)
        >>> draw = tasks_of_family(words, k_shot=2)
        >>> episode = draw(jax.random.key(0), FAMILIES.index("keep+mirror"))
        >>> print(words.tokenizer.decode(episode.support.tokens.ravel()), end="")
        dcd>aba
        dac>adb
    """
    if not 2 <= words.letters <= 26:
        raise ArgumentError(f"letters must be from 2 to 26, got {words.letters}.")
    for name, value, least in (
        ("length", words.length, 2), ("k_shot", k_shot, 1), ("query", query, 1)
    ):  # fmt: skip
        if value < least:
            raise ArgumentError(f"{name} must be at least {least}, got {value}.")
    count = k_shot + query
    shape = (count, words.length)
    ends = jnp.full((count, 1), words.letters)
    mask = jnp.repeat(
        jnp.array([False, True, False]), jnp.array([words.length + 1, words.length, 1])
    )
    masks = jnp.broadcast_to(mask, (count, words.line))

    def draw(key: jax.Array, family: jax.Array | int, /) -> Episode:
        _, rule_key, word_key = jax.random.split(key, 3)
        inputs = jax.random.randint(word_key, shape, 0, words.letters)
        outputs = draw_rule(rule_key, jnp.asarray(family), words)(inputs)
        tokens = jnp.concatenate([inputs, ends, outputs, ends + 1], axis=1)
        lines = TokenBatch(tokens, mask=masks)
        return Episode(
            jax.tree.map(lambda part: part[:k_shot], lines),
            jax.tree.map(lambda part: part[k_shot:], lines),
        )

    return draw


def as_document(lines: TokenBatch) -> TokenBatch:
    """Lines one after another in one row, ``[1, examples * line]``.

    Example:
        >>> as_document(TokenBatch(jnp.zeros((3, 6)), mask=jnp.ones((3, 6)))).tokens.shape
        (1, 18)
    """
    return jax.tree.map(lambda part: part.reshape(1, -1), lines)


def in_context(support: TokenBatch, query: TokenBatch) -> TokenBatch:
    """Each query line after all lines of the support set, ``[query, (k_shot + 1) * line]``.

    Only the targets of the query line count.

    Example:
        >>> lines = TokenBatch(jnp.zeros((3, 6)), mask=jnp.ones((3, 6)))
        >>> in_context(lines, lines).tokens.shape
        (3, 24)
    """
    document = as_document(support)
    prompt = TokenBatch(document.tokens, mask=jnp.zeros_like(document.mask))

    def after(before, lines):
        return jnp.concatenate([jnp.repeat(before, len(lines), axis=0), lines], axis=1)

    return jax.tree.map(after, prompt, query)
