"""The three kinds of task: prompts, answers, and what is right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import program_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.evolution.programs import language as lang

ROWS = 512
CHECKS = {
    "deduction": lang.check_deduction,
    "abduction": lang.check_abduction,
    "induction": lang.check_induction,
}


def tasks_of(kind, seed=0, rows=ROWS):
    return drawn(jax.random.key(seed), kind, rows)


@functools.partial(jax.jit, static_argnames=("kind", "rows"))
def drawn(key, kind, rows):
    program_key, input_key = jax.random.split(key)
    programs = lang.draw_programs(program_key, rows)
    if kind != "induction":
        return getattr(lang, kind)(programs, lang.draw_inputs(input_key, rows))
    inputs = lang.draw_inputs(input_key, rows * 5)
    inputs = jax.tree.map(lambda leaf: leaf.reshape(rows, 5, *leaf.shape[1:]), inputs)
    return lang.induction(programs, inputs, shown=3)


def words(tokens):
    return lang.WordTokenizer().decode([t for t in np.asarray(tokens) if t != lang.EOS])


def shown(value):
    return str(value) if isinstance(value, int) else " ".join(["[", *map(str, value), "]"])


def values(arrays_, row):
    """One row's value, or its examples."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[row : row + 1], arrays_)
    if own.lengths.ndim == 2:
        own = jax.tree.map(lambda leaf: leaf[0], own)
    return reference.values(own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_prompts_and_answers_say_what_plain_python_computes(kind):
    tasks = tasks_of(kind)
    texts = lang.texts_of(tasks.programs)
    for row in range(0, ROWS, 7):
        text, given_ = texts[row], values(tasks.inputs, row)
        made = [reference.run(text, value) for value in given_]
        assert made == values(tasks.outputs, row)
        pairs = [(shown(a), shown(b)) for a, b in zip(given_, made, strict=True)]
        (x, y), prompt = pairs[0], words(tasks.prompts[row])
        if kind == "deduction":
            expected, answer = f"<bos> deduce {text} : {x} =", y
        elif kind == "abduction":
            expected, answer = f"<bos> abduce {text} = {y} :", x
        else:
            examples = " ; ".join(f"{a} = {b}" for a, b in pairs[:3])
            expected, answer = f"<bos> induce {examples} :", text
        assert (prompt, words(tasks.answers[row])) == (expected, answer)


@pytest.mark.parametrize("kind", CHECKS)
def test_shapes_are_fixed_prompts_end_on_the_right_and_answers_begin_on_the_left(kind):
    tasks = tasks_of(kind)
    assert tasks.prompts.dtype == tasks.answers.dtype == jnp.int32
    assert tasks.answers.shape == (ROWS, lang.ANSWER_LENGTH)
    again = tasks_of(kind, seed=1)
    assert again.prompts.shape == tasks.prompts.shape
    padded = np.asarray(tasks.prompts) == lang.PAD
    assert (np.sort(padded, axis=1)[:, ::-1] == padded).all()
    padded = np.asarray(tasks.answers) == lang.PAD
    assert (np.sort(padded, axis=1) == padded).all()
    assert ((np.asarray(tasks.answers) == lang.EOS).sum(axis=1) == 1).all()


@pytest.mark.parametrize("kind", CHECKS)
def test_the_given_answers_are_right_and_others_rows_answers_are_as_the_interpreter_says(kind):
    tasks = tasks_of(kind)
    check = jax.jit(CHECKS[kind])
    assert check(tasks, tasks.answers).all()
    others = jnp.roll(tasks.answers, 1, axis=0)
    right = np.asarray(check(tasks, others))
    texts = lang.texts_of(tasks.programs)
    for row in range(ROWS):
        x, y = values(tasks.inputs, row), values(tasks.outputs, row)
        if kind == "deduction":
            expected = y == values(tasks.outputs, row - 1 if row else ROWS - 1)
        elif kind == "abduction":
            other = values(tasks.inputs, row - 1 if row else ROWS - 1)[0]
            expected = [reference.run(texts[row], other)] == y
        else:
            expected = [reference.run(texts[row - 1], value) for value in x] == y
        assert bool(right[row]) == expected
    assert right.mean() < 0.3
    if kind == "abduction":
        assert right.any()


@pytest.mark.slow
def test_induction_needs_the_held_back_examples_too():
    inputs = lang.values_of([[1], [2], [1, 2]])
    inputs = jax.tree.map(lambda leaf: leaf[None], inputs)
    answer = lang.program_tokens(lang.programs_of(["last"]))
    for shown_, same in ((2, False), (3, False)):
        tasks = lang.induction(lang.programs_of(["head"]), inputs, shown=shown_)
        assert lang.check_induction(tasks, answer).tolist() == [same]
    prompt = words(lang.induction(lang.programs_of(["head"]), inputs, shown=2).prompts[0])
    assert prompt == "<bos> induce [ 1 ] = 1 ; [ 2 ] = 2 :"


def test_a_list_of_one_is_no_digit_and_an_input_is_no_digit():
    tasks = lang.deduction(lang.programs_of(["take 1"]), lang.values_of([[3, 1]]))
    answers = lang.value_tokens(lang.values_of([3]))
    assert not lang.check_deduction(tasks, answers)[0]
    tasks = lang.abduction(lang.programs_of(["head"]), lang.values_of([[3, 1]]))
    assert not lang.check_abduction(tasks, answers)[0]


any_tokens = arrays.arrays(
    np.int32,
    (16, 12),
    elements=st.one_of(st.integers(-2, 60), st.integers(-(2**31), 2**31 - 1)),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(any_tokens)
def test_any_answer_whatever_is_checked_and_proposal_read(tokens):
    for kind, check in CHECKS.items():
        right = jax.jit(check)(tasks_once(kind), tokens)
        assert right.shape == (16,)
        assert right.dtype == bool
    programs, inputs, valid = jax.jit(lang.parse_proposals)(tokens)
    assert np.asarray(lang.well_typed(programs))[np.asarray(valid)].all()
    assert np.asarray(inputs.is_list)[np.asarray(valid)].all()


ONCE = {}


def tasks_once(kind):
    if kind not in ONCE:
        ONCE[kind] = tasks_of(kind, rows=16)
    return ONCE[kind]


@pytest.mark.slow
def test_proposals_are_read_back_and_what_is_none_is_refused():
    programs = lang.draw_programs(jax.random.key(0), ROWS)
    inputs = lang.draw_inputs(jax.random.key(1), ROWS, shortest=0)
    tasks = lang.proposals(programs, inputs)
    assert tasks.answers.shape == (ROWS, lang.PROPOSAL_LENGTH)
    read, values_, valid = jax.jit(lang.parse_proposals)(tasks.answers)
    assert valid.all()
    for own, theirs in zip((*programs, *inputs), (*read, *values_), strict=True):
        np.testing.assert_array_equal(own, theirs)
    bad = ["sum <eos>", "sum : 3 <eos>", ": [ 1 ] <eos>", "sum : [ 1 ]", "sum <eos> : [ 1 ] <eos>"]
    bad += ["sum : : [ 1 ] <eos>", "sum : [ 1 ] : [ 1 ] <eos>", "sum | sum : [ 1 ] <eos>"]
    rows = [lang.WordTokenizer().encode(text) for text in bad]
    tokens = jnp.array([row + [lang.PAD] * (23 - len(row)) for row in rows])
    assert not lang.parse_proposals(tokens)[2].any()


def test_bad_input_is_named():
    programs, inputs = lang.programs_of(["sum"]), lang.values_of([[1]])
    several = jax.tree.map(lambda leaf: leaf[None], inputs)
    for wrong, number in ((inputs, 1), (several, 0), (several, 2)):
        with pytest.raises(ValueError, match="shown must be from 1 to the number of examples"):
            lang.induction(programs, wrong, shown=number)
    with pytest.raises(ValueError, match=r"tokens must be integers \[n, t\]"):
        lang.parse_proposals(jnp.zeros(3, int))
