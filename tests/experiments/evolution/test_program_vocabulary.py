"""Words, tokens and the parser, which accepts exactly the well-typed programs."""

import jax
import jax.numpy as jnp
import numpy as np
import program_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.evolution.programs import language as lang
from metajax.lm import Tokenizer

WORDS = lang.WordTokenizer()

draw_programs = jax.jit(lang.draw_programs, static_argnums=1)
draw_inputs = jax.jit(lang.draw_inputs, static_argnums=1, static_argnames=("shortest", "longest"))


def padded_to_the_end(tokens, pad=lang.PAD, eos=lang.EOS):
    """The tokens before the end, or None if there is none, or what follows it isn't padding."""
    tokens = [int(token) for token in tokens]
    if eos not in tokens:
        return None
    end = tokens.index(eos)
    return None if any(token != pad for token in tokens[end + 1 :]) else tokens[:end]


def text_of(tokens):
    """Words with spaces, padding as one too; None for what has no end or isn't a word."""
    own = padded_to_the_end(tokens)
    if own is None or any(not 0 <= token < len(lang.WORDS) for token in own):
        return None
    return " ".join(lang.WORDS[token] for token in own)


def is_program(tokens):
    try:
        return text_of(tokens) is not None and bool(reference.read(text_of(tokens)))
    except ValueError:
        return False


def is_value(tokens):
    words = (text_of(tokens) or "").split()
    if words[:1] == ["["] and words[-1:] == ["]"] and len(words) <= 10:
        return all(word.isdigit() for word in words[1:-1])
    return len(words) == 1 and words[0].isdigit()


def mutated(tokens, seed):
    """Half of the rows with a token replaced, and half of these with one removed too."""
    random = np.random.default_rng(seed)
    tokens = np.array(tokens)
    for row in range(0, len(tokens), 2):
        used = max(1, int((tokens[row] != lang.PAD).sum()))
        tokens[row, random.integers(0, used)] = random.integers(0, len(lang.WORDS))
        if row % 4 == 0:
            gap = random.integers(0, used)
            tokens[row, gap:-1] = tokens[row, gap + 1 :]
    return tokens


def test_words_are_distinct_and_a_tokenizer_reads_and_writes_them():
    assert len(set(lang.WORDS)) == len(lang.WORDS) == WORDS.vocab_size
    tokenizer: Tokenizer = WORDS
    text = "<bos> deduce reverse | add 3 : [ 1 2 ] = [ 5 4 ] <eos>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert WORDS.decode([lang.PAD, *WORDS.encode("sum"), lang.PAD]) == "sum"


@pytest.mark.parametrize("seed", range(2))
def test_programs_survive_being_written_and_read(seed):
    programs = draw_programs(jax.random.key(seed), 2048)
    read, valid = jax.jit(lang.parse)(lang.program_tokens(programs))
    assert valid.all()
    for own, theirs in zip(programs, read, strict=True):
        np.testing.assert_array_equal(own, theirs)
    again = lang.programs_of(lang.texts_of(programs))
    for own, theirs in zip(programs, again, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_values_survive_being_written_and_read():
    inputs = draw_inputs(jax.random.key(0), 1024, shortest=0)
    outputs = lang.run(draw_programs(jax.random.key(1), 1024), inputs)
    for values in (inputs, outputs):
        read, valid = lang.parse_values(lang.value_tokens(values))
        assert valid.all()
        for own, theirs in zip(values, read, strict=True):
            np.testing.assert_array_equal(own, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_the_parser_accepts_what_plain_python_does_and_nothing_else(seed):
    programs = draw_programs(jax.random.key(seed), 2048)
    tokens = mutated(lang.program_tokens(programs), seed)
    read, valid = lang.parse(tokens)
    expected = np.array([is_program(row) for row in tokens])
    np.testing.assert_array_equal(valid, expected)
    assert 0.5 < expected.mean() < 0.9
    texts = lang.texts_of(read)
    for row in np.flatnonzero(expected):
        assert texts[row] == text_of(tokens[row])
    assert not np.asarray(read.lengths)[~expected].any()


def test_the_value_parser_accepts_what_plain_python_does_and_nothing_else():
    outputs = lang.run(draw_programs(jax.random.key(3), 2048), draw_inputs(jax.random.key(4), 2048))
    tokens = mutated(lang.value_tokens(outputs), 5)
    valid = np.asarray(lang.parse_values(tokens)[1])
    np.testing.assert_array_equal(valid, [is_value(row) for row in tokens])
    assert 0.5 < valid.mean() < 0.95


tokens_of_any_kind = arrays.arrays(
    np.int32,
    (64, 13),
    elements=st.one_of(st.integers(-2, 60), st.integers(-(2**31), 2**31 - 1)),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(tokens_of_any_kind)
def test_any_tokens_whatever_are_read(tokens):
    programs, valid = lang.parse(tokens)
    np.testing.assert_array_equal(valid, [is_program(row) for row in tokens])
    assert np.asarray(lang.well_typed(programs))[np.asarray(valid)].all()
    np.testing.assert_array_equal(lang.parse_values(tokens)[1], [is_value(row) for row in tokens])


@pytest.mark.parametrize(
    "text",
    [
        "reverse",  # no end
        "<eos>",
        "| reverse <eos>",
        "reverse | <eos>",
        "reverse reverse <eos>",
        "reverse 3 <eos>",
        "add <eos>",
        "add 0 <eos>",
        "add 3 3 <eos>",
        "rotate 8 <eos>",
        "times 1 <eos>",
        "repeat 3 <eos>",  # takes a digit
        "sum | reverse <eos>",
        "sum | sum <eos>",
        "range <eos>",
        "reverse <eos> reverse",
        "reverse <eos> <eos>",
        "<pad> reverse <eos>",
        "<bos> reverse <eos>",
        "reverse | <pad> sort <eos>",
        "sort | sort | sort | sort | sort <eos>",
        "[ 1 ] <eos>",
    ],
)
def test_what_is_no_program_is_refused(text):
    tokens = WORDS.encode(text)
    row = jnp.array([tokens + [lang.PAD] * (13 - len(tokens))])
    assert not lang.parse(row)[1].any()


@pytest.mark.parametrize(
    "tokens", [jnp.zeros((2, 3)), jnp.zeros(3, int), jnp.zeros((1, 2, 3), int)]
)
def test_tokens_of_another_shape_are_named(tokens):
    for read in (lang.parse, lang.parse_values):
        with pytest.raises(ValueError, match=r"tokens must be integers \[n, t\]"):
            read(tokens)


def test_bad_text_is_named():
    with pytest.raises(ValueError, match="unknown word, 'sord'"):
        WORDS.encode("sord | sum")
    with pytest.raises(ValueError, match=r"ids must be from 0 to 57, got 58"):
        WORDS.decode([58])
    with pytest.raises(ValueError, match=r"texts\[1\] is no well-typed program: 'sum . sum'"):
        lang.programs_of(["sum", "sum | sum"])
    with pytest.raises(ValueError, match=r"texts\[0\] is no well-typed program"):
        lang.programs_of([" | ".join(["add 1"] * 9)])
    for wrong in ([[1] * 9], [[10]], [11]):
        with pytest.raises(ValueError, match=r"values\[0\] must be a digit or at most 8"):
            lang.values_of(wrong)
