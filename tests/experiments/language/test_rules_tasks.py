"""String tasks: every family against its definition in plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language.rules import tasks as strings
from metajax.lm import TokenBatch

WORDS = strings.Words(letters=7, length=5)


def examples(family, seed=0, count=300):
    """Inputs and outputs of one rule, as tuples of numbers."""
    sample = strings.string_tasks(WORDS, families=[family], k_shot=count, query=1)
    lines = np.asarray(sample(jax.random.key(seed)).support.tokens)
    assert (lines[:, 5] == 7).all()
    assert (lines[:, 11] == 8).all()
    return [(tuple(line[:5]), tuple(line[6:11])) for line in lines]


def arranged(name, word):
    """The words that an arrangement could make of a word, one for each of its parameters."""
    places = range(len(word))
    orders = {
        "keep": [places],
        "reverse": [places[::-1]],
        "rotate": [[*places[turn:], *places[:turn]] for turn in places[1:]],
        "swap": [[1, 0, 3, 2, 4]],
        "shuffle": itertools.permutations(places),
        "sort": [sorted(places, key=lambda place: word[place])],
    }
    return [tuple(word[place] for place in order) for order in orders[name]]


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", strings.ARRANGEMENTS)
@pytest.mark.parametrize("writing", ["plain", "mirror"])
def test_an_arrangement_is_one_of_those_it_could_be(arrangement, writing):
    family = f"{arrangement}+{writing}"
    if family not in strings.FAMILIES:
        pytest.skip("copying is no family")
    written = lambda word: tuple(6 - letter for letter in word) if writing == "mirror" else word
    found = [
        {i for i, made in enumerate(arranged(arrangement, word)) if written(made) == output}
        for word, output in examples(family)
    ]
    assert len(set.intersection(*found)) == 1, "one parameter explains all of the rule's examples"


@pytest.mark.slow
def test_a_caesar_cipher_shifts_by_one_number_and_a_substitution_by_a_table():
    shifts = {
        (b - a) % 7 for word, out in examples("keep+caesar") for a, b in zip(word, out, strict=True)
    }
    assert len(shifts) == 1
    assert shifts != {0}
    pairs = {
        pair for word, out in examples("keep+substitution") for pair in zip(word, out, strict=True)
    }
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 7


def test_a_grammar_goes_on_from_the_last_letter():
    successors = {}
    for word, out in examples("reverse+grammar"):
        for before, after in itertools.pairwise((word[0], *out)):
            assert successors.setdefault(before, after) == after
    assert len(set(successors.values())) == len(successors)


@pytest.mark.slow
def test_rules_differ_between_tasks_and_families_are_all_drawn():
    assert len({str(examples("keep+substitution", seed, 20)) for seed in range(5)}) == 5
    sample = strings.string_tasks(WORDS, families=["keep+mirror", "reverse+plain"], k_shot=4)
    tokens = jax.vmap(sample)(jax.random.split(jax.random.key(0), 40)).support.tokens
    mirrored = (tokens[..., 6:11] == 6 - tokens[..., :5]).all(axis=(1, 2))
    reversed_ = (tokens[..., 6:11] == tokens[..., 4::-1][..., :5]).all(axis=(1, 2))
    assert (mirrored ^ reversed_).all()
    assert 10 < mirrored.sum() < 30


def test_targets_are_the_second_words_letters():
    episode = strings.string_tasks(WORDS, k_shot=2, query=3)(jax.random.key(0))
    assert episode.support.tokens.shape == (2, 12)
    assert episode.query.tokens.shape == (3, 12)
    expected = np.zeros((3, 12), bool)
    expected[:, 6:11] = True
    np.testing.assert_array_equal(episode.query.mask, expected)


def test_a_prompt_is_the_support_set_before_a_query_line_whose_targets_count_alone():
    support = TokenBatch(jnp.arange(6).reshape(2, 3), mask=jnp.ones((2, 3), bool))
    query = TokenBatch(10 + jnp.arange(6).reshape(2, 3), mask=jnp.array([[0, 1, 1]] * 2) > 0)
    prompt = strings.in_context(support, query)
    np.testing.assert_array_equal(
        prompt.tokens, [[0, 1, 2, 3, 4, 5, 10, 11, 12], [0, 1, 2, 3, 4, 5, 13, 14, 15]]
    )
    np.testing.assert_array_equal(prompt.mask, [[0] * 7 + [1, 1]] * 2)
    np.testing.assert_array_equal(strings.as_document(support).tokens, [[0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: strings.string_tasks(families=["keep+plain"]),
            r"families must be some of .*keep\+plain",
        ),
        (lambda: strings.string_tasks(families=[]), "families must be some of"),
        (lambda: strings.string_tasks(k_shot=0), "k_shot must be at least 1, got 0"),
        (lambda: strings.string_tasks(query=0), "query must be at least 1, got 0"),
        (lambda: strings.string_tasks(strings.Words(1, 5)), "letters must be from .*, got 1"),
        (
            lambda: strings.string_tasks(strings.Words(27, 5)),
            "letters must be from 2 to 26, got 27",
        ),
        (lambda: strings.string_tasks(strings.Words(5, 1)), "length must be at least 2, got 1"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
