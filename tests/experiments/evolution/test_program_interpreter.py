"""The interpreter against plain Python, and its totality."""

import jax
import jax.numpy as jnp
import numpy as np
import program_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.evolution.programs import language as lang

ROWS = 4096
"""One size for all, so that little is compiled."""

draw_programs = jax.jit(lang.draw_programs, static_argnums=1)
draw_inputs = jax.jit(lang.draw_inputs, static_argnums=1, static_argnames=("shortest", "longest"))


def in_python(values):
    return reference.values(jax.tree.map(np.asarray, values))


def agree(programs, inputs):
    """Runs both; returns what they made, after asserting that it is the same."""
    expected = [
        reference.run(text, value)
        for text, value in zip(lang.texts_of(programs), in_python(inputs), strict=True)
    ]
    made = in_python(lang.run(programs, inputs))
    for text, value, ours, theirs in zip(
        lang.texts_of(programs), in_python(inputs), made, expected, strict=True
    ):
        assert ours == theirs, (text, value)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_programs_do_what_plain_python_does(seed):
    program_key, input_key = jax.random.split(jax.random.key(seed))
    programs = draw_programs(program_key, ROWS)
    inputs = draw_inputs(input_key, ROWS, shortest=0)
    made = agree(programs, inputs)
    assert any(isinstance(value, int) for value in made)
    assert max(len(value) for value in made if isinstance(value, list)) == lang.MAX_LENGTH


def single_operations():
    """Each operation with each of its arguments, on a digit behind ``sum``."""
    for operation in lang.OPERATIONS[1:]:
        before = "sum | " if operation.takes == "digit" else ""
        for k in reference.ARGUMENTS.get(operation.name, [None]):
            words = operation.name if k is None else f"{operation.name} {k}"
            yield before + words
            if operation.takes == "either":
                yield "last | " + words


def test_each_operation_with_each_argument_does_what_plain_python_does():
    texts = list(single_operations())
    programs = lang.programs_of((texts * (ROWS // len(texts) + 1))[:ROWS])
    agree(programs, draw_inputs(jax.random.key(7), ROWS, shortest=0))


def test_the_table_knows_the_arguments_of_plain_python():
    for operation in lang.OPERATIONS[1:]:
        own = operation.least, operation.most
        theirs = reference.ARGUMENTS.get(operation.name)
        assert own == ((theirs[0], theirs[-1]) if theirs else (None, None)), operation
    names = {operation.name for operation in lang.OPERATIONS[1:]}
    assert names == {*reference.LISTS, *reference.EACH, *reference.DIGITS}
    assert len(names) == len(lang.OPERATIONS) - 1 == 35


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("reverse | add 3 | keep_even | sum", [1, 2, 3], 0),
        ("rotate 3", [], []),
        ("rotate 7", [1, 2], [2, 1]),
        ("mirror", [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 5, 4, 3]),
        ("push 9", [1] * 8, [9, 1, 1, 1, 1, 1, 1, 1]),
        ("append 9", [1] * 8, [1] * 8),
        ("min", [], 0),
        ("keep_above 8 | max", [3], 0),
        ("length | range", [5] * 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("max | range", [9], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("min | range", [0], []),
        ("differences", [3], []),
        ("differences", [3, 1, 4], [8, 3]),
        ("swap", [1, 2, 3], [2, 1, 3]),
        ("fold", [1, 2, 9], [0, 4, 0]),
    ],
)
def test_edges_by_hand(text, value, expected):
    made = lang.run(lang.programs_of([text]), lang.values_of([value]))
    assert in_python(made) == [expected]
    assert reference.run(text, value) == expected


@pytest.mark.slow
def test_several_inputs_of_each_program_are_run_as_one_by_one():
    programs = draw_programs(jax.random.key(0), 6)
    inputs = draw_inputs(jax.random.key(1), 18)
    several = jax.tree.map(lambda leaf: leaf.reshape(6, 3, *leaf.shape[1:]), inputs)
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), programs)
    one_by_one = lang.run(repeated, inputs)
    together = lang.run(programs, several)
    for a, b in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(a, b.reshape(a.shape))


@pytest.mark.slow
def test_it_is_the_same_under_vmap_and_keeps_its_dtypes_in_float64(x64):
    programs = draw_programs(jax.random.key(0), 6)
    inputs = draw_inputs(jax.random.key(1), 6)
    made = lang.run(programs, inputs)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (programs, inputs))
    mapped = jax.vmap(lang.run)(*twice)
    for own, both in zip(made, mapped, strict=True):
        np.testing.assert_array_equal(both, jnp.stack([own, own]))
    assert [leaf.dtype for leaf in made] == [jnp.int32, jnp.int32, bool]


def test_a_second_call_compiles_nothing(recwarn):
    run = jax.jit(lang.run)
    for seed in range(3):
        programs = draw_programs(jax.random.key(seed), 16, operations=1 + seed)
        run(programs, draw_inputs(jax.random.key(seed), 16))
    assert run._cache_size() == 1


whole = st.integers(-(2**31), 2**31 - 1)
near = st.integers(-3, 40)


def int32(shape):
    return arrays.arrays(np.int32, shape, elements=st.one_of(near, whole))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(int32((16, 4)), int32((16, 4)), int32(16), int32((16, 8)), int32(16), st.booleans())
def test_any_integers_whatever_are_run(operations, arguments, lengths, digits, sizes, is_list):
    programs = lang.Programs(operations, arguments, lengths)
    made = lang.run(programs, lang.Values(digits, sizes, np.full(16, is_list)))
    digits, lengths, kinds = map(np.asarray, made)
    assert ((digits >= 0) & (digits <= 9)).all()
    assert ((lengths >= 0) & (lengths <= 8)).all()
    assert (digits[np.arange(8) >= lengths[:, None]] == 0).all()
    assert (lengths[~kinds] == 1).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(int32((64, 4)), arrays.arrays(np.int32, (64, 4), elements=st.integers(-1, 9)))
def test_what_is_well_typed_reads_back_as_text_and_nothing_else_does(operations, arguments):
    lengths = (operations > 0).sum(axis=1).astype(np.int32)
    programs = lang.Programs(operations, arguments, lengths)
    for row, valid in enumerate(np.asarray(lang.well_typed(programs))):
        numbers, values = operations[row, : lengths[row]], arguments[row, : lengths[row]]
        text = "?"
        if ((numbers > 0) & (numbers < 36)).all() and not arguments[row, lengths[row] :].any():
            named = [lang.OPERATIONS[number] for number in numbers]
            has = [operation.most is not None for operation in named]
            words = zip(named, values, has, strict=True)
            text = " | ".join(f"{o.name} {k}" if h else o.name for o, k, h in words)
            if any(k and not h for k, h in zip(values, has, strict=True)):
                text = "?"
        try:
            reference.read(text)
            expected = not operations[row, lengths[row] :].any()
        except ValueError:
            expected = False
        assert bool(valid) == expected, text


def test_shapes_that_do_not_fit_are_named():
    programs, inputs = lang.programs_of(["sum", "max"]), lang.values_of([[1]])
    with pytest.raises(ValueError, match=r"inputs must hold digits \[n, 8\]"):
        lang.run(programs, inputs)
    short = programs._replace(operations=programs.operations[:, :3])
    with pytest.raises(ValueError, match=r"programs must hold operations \[n, 4\]"):
        lang.run(short, lang.values_of([[1], [2]]))
