"""Held-out programs, sameness, degenerate programs, and what is drawn."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import program_reference as reference
import pytest

from experiments.evolution.programs import language as lang

draw_programs = jax.jit(lang.draw_programs, static_argnums=1)
draw_inputs = jax.jit(lang.draw_inputs, static_argnums=1, static_argnames=("shortest", "longest"))


def test_held_out_programs_are_many_well_typed_and_of_every_length():
    held_out = lang.held_out_programs()
    assert len(lang.HELD_OUT) == len(set(lang.HELD_OUT)) >= 200
    assert lang.well_typed(held_out).all()
    assert all(reference.read(text) for text in lang.HELD_OUT)
    assert lang.texts_of(held_out) == list(lang.HELD_OUT)
    counts = collections.Counter(map(int, held_out.lengths))
    assert counts[1] >= 10
    assert min(counts[length] for length in (2, 3, 4)) >= 50


def test_held_out_programs_use_every_operation():
    used = {word for text in lang.HELD_OUT for word in text.split()}
    names = {operation.name for operation in lang.OPERATIONS[1:]}
    missing = names - used
    assert not missing


@pytest.mark.slow
def test_held_out_programs_differ_in_what_they_do_and_are_not_degenerate():
    held_out = lang.held_out_programs()
    marks = np.asarray(lang.fingerprints(held_out))
    assert len(np.unique(marks, axis=0)) == len(marks)
    assert not lang.is_degenerate(held_out).any()


@pytest.mark.slow
def test_fingerprints_are_equal_exactly_where_outputs_are():
    programs = draw_programs(jax.random.key(0), 2048)
    outputs = lang.outputs_on_probes(programs)
    rows = np.concatenate(
        [np.asarray(leaf).reshape(len(programs.lengths), -1) for leaf in outputs], axis=1
    )
    _, by_outputs = np.unique(rows, axis=0, return_inverse=True)
    _, by_marks = np.unique(np.asarray(lang.fingerprints(programs)), axis=0, return_inverse=True)
    pairs = set(zip(by_outputs.ravel().tolist(), by_marks.ravel().tolist(), strict=True))
    assert len(pairs) == by_outputs.max() + 1 == by_marks.max() + 1
    assert by_marks.max() > 1000


def test_fingerprints_do_not_change_with_versions():
    # They decide what is held out of training, also of runs to come.
    marks = lang.fingerprints(lang.programs_of(["reverse", "sum | range"]))
    assert marks.tolist() == [[1639598641, 3163491716], [1047413377, 4078142614]]


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("reverse | reverse | sort", "sort", True),
        ("take 1 | sum", "head", True),
        ("add 4 | add 6 | length", "length", True),
        ("sort | head", "min", True),
        ("take 1", "head", False),  # a list of one isn't a digit
        ("keep_above 7", "keep_above 8", False),
        ("take 6", "take 7", False),
        ("rotate 6", "rotate 7", False),
        ("min", "sort | take 1 | max | add 1", False),
    ],
)
def test_sameness_is_of_behaviour(text, other, same):
    first, second = np.asarray(lang.fingerprints(lang.programs_of([text, other])))
    assert (first == second).all() == same


@pytest.mark.slow
def test_a_held_out_program_is_recognised_written_otherwise_too_and_others_are_not():
    hidden = ["add 3 | add 4", "complement | complement | rotate 3", "sort | sort | reverse"]
    free = ["add 6", "rotate 4", "sort | sums | sort"]
    found = jax.jit(lang.is_held_out)(lang.programs_of([*hidden, *free]))
    assert found.tolist() == [True] * 3 + [False] * 3
    assert lang.is_held_out(lang.held_out_programs()).all()


@pytest.mark.slow
def test_all_of_them_are_recognised_inside_a_program_that_was_traced_first():
    @jax.jit
    def kept(key):
        programs = lang.draw_programs(key, 512)
        return ~lang.is_held_out(programs) & ~lang.is_degenerate(programs)

    assert 0.8 < kept(jax.random.key(0)).mean() < 1


def test_degenerate_programs_are_recognised():
    bad = [
        "take 1 | length",
        "times 5 | times 2 | unique",
        "sum | times 2 | times 5",
        "reverse | reverse",
    ]
    bad += ["keep_even | keep_odd", "add 1 | add 9", "length | repeat 2 | length"]
    good = ["head", "reverse", "sum | modulo 2", "keep_even", "drop 7", "take 7"]
    programs = lang.programs_of([*bad, *good])
    assert lang.is_degenerate(programs).tolist() == [True] * len(bad) + [False] * len(good)


@pytest.mark.parametrize("operations", [None, 1, 4, jnp.arange(512) % 4 + 1])
def test_drawn_programs_are_well_typed_and_as_long_as_asked(operations):
    programs = draw_programs(jax.random.key(0), 512, operations=operations)
    assert lang.well_typed(programs).all()
    if operations is None:
        counts = np.bincount(programs.lengths, minlength=5)
        assert counts[0] == 0
        assert (counts[1:] > 90).all()
    else:
        np.testing.assert_array_equal(programs.lengths, jnp.broadcast_to(operations, (512,)))


def test_every_operation_and_argument_is_drawn_and_difficulty_is_brought_into_range():
    programs = jax.jit(lambda key: lang.draw_programs(key, 20_000))(jax.random.key(1))
    inside = np.arange(4) < np.asarray(programs.lengths)[:, None]
    drawn = set(
        zip(
            np.asarray(programs.operations)[inside].tolist(),
            np.asarray(programs.arguments)[inside].tolist(),
            strict=True,
        )
    )
    possible = {
        (number, k)
        for number, operation in enumerate(lang.OPERATIONS)
        for k in reference.ARGUMENTS.get(operation.name, [0])
        if number
    }
    assert drawn == possible
    wild = draw_programs(jax.random.key(2), 4, operations=jnp.array([-5, 0, 9, 2]))
    assert wild.lengths.tolist() == [1, 1, 4, 2]


def test_drawn_inputs_have_every_length_and_digit():
    inputs = draw_inputs(jax.random.key(0), 4096, shortest=0, longest=5)
    assert np.bincount(inputs.lengths).min() > 4096 / 6 * 0.8
    inside = np.arange(8) < np.asarray(inputs.lengths)[:, None]
    digits = np.asarray(inputs.digits)
    assert (digits[~inside] == 0).all()
    assert np.bincount(digits[inside]).min() > 0.8 * inside.sum() / 10
    assert inputs.is_list.all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda key: lang.draw_programs(key, 0), "n must be at least 1, got 0"),
        (lambda key: lang.draw_inputs(key, 0), "n must be at least 1, got 0"),
        (lambda key: lang.draw_inputs(key, 1, longest=9), "must be from 0 to 8, .* got 1 and 9"),
        (lambda key: lang.draw_inputs(key, 1, shortest=-1), "must be from 0 to 8, .* got -1 and 8"),
        (
            lambda key: lang.draw_inputs(key, 1, shortest=3, longest=2),
            "the first not above the last, got 3 and 2",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build(jax.random.key(0))
