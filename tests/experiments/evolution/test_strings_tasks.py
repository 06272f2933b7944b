"""Strings of digits: every task against its definition in plain Python."""

import jax
import numpy as np
import pytest

from experiments.evolution.strings.tasks import BEGIN, EQUALS, NAMES, digits


def texts(problem, tasks):
    """Prompts, and right answers, as texts without their marks."""
    answers = problem.answer(tasks)
    for prompt, answer, length in zip(tasks.prompts, answers.tokens, answers.lengths, strict=True):
        question, answered = problem.show(prompt), problem.show(answer)
        assert question[0] == "<"
        assert question[-1] == "="
        assert answered[-1] == ">"
        assert len(answered) == length
        yield question[1:-1], answered[:-1]


def right_answer(name, question):
    if name == "copy":
        return question
    if name == "reverse":
        return question[::-1]
    first, second = (int(operand[::-1]) for operand in question.split("+"))
    return str(first + second).zfill(len(question) // 2 + 1)[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_and_levels_are_lengths(name):
    problem = digits(name)
    levels = np.array([7, 1, 4, 7, 2, 3] * 20)
    tasks = problem.draw(jax.random.key(0), levels)
    width = np.asarray(tasks.prompts).shape[1]
    assert problem.prompt_length(7) <= width == -(-problem.prompt_length(7) // 8) * 8
    for level, (question, answer) in zip(levels, texts(problem, tasks), strict=True):
        assert answer == right_answer(name, question)
        assert len(question) == problem.prompt_length(level) - 2
        assert len(answer) == problem.answer_length(level) - 1
        assert all(len(operand) == level for operand in question.split("+"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_is_read_back_and_what_is_changed_is_not(name):
    problem = digits(name)
    tasks = problem.draw(jax.random.key(1), [3, 5, 5, 1])
    valid, levels = problem.read(tasks.prompts, tasks.lengths)
    assert np.asarray(valid).all()
    np.testing.assert_array_equal(levels, [3, 5, 5, 1])
    width = tasks.prompts.shape[1]
    for column in range(1, width + 1):  # no digit where a mark was, no mark where a digit was
        broken = np.array(tasks.prompts)
        mark = broken[:, -column] >= 10
        broken[:, -column] = np.where(mark, 3, EQUALS)
        inside = column <= np.asarray(tasks.lengths)
        valid, _ = problem.read(broken, tasks.lengths)
        np.testing.assert_array_equal(np.asarray(valid)[inside], False)
    for lengths in (
        tasks.lengths - 1,
        tasks.lengths + 1,
        0 * tasks.lengths,
        0 * tasks.lengths + 99,
    ):
        assert not np.asarray(problem.read(tasks.prompts, lengths)[0]).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_allowed_tokens_is_a_task(name):
    problem = digits(name)
    mask = problem.allowed(4)
    rng = np.random.default_rng(0)
    rows = [[BEGIN, *(rng.choice(np.flatnonzero(step)) for step in mask)] for _ in range(50)]
    lengths = np.full(50, problem.prompt_length(4))
    valid, levels = problem.read(np.array(rows), lengths)
    assert np.asarray(valid).all()
    np.testing.assert_array_equal(levels, 4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"name must be one of 'copy', .* got 'sort'"):
        digits("sort")
    with pytest.raises(ValueError, match="levels must be integers of at least 1, got"):
        digits("copy").draw(jax.random.key(0), [2, 0])
