"""A checker on strings as a verifier: rewards against those by hand."""

import numpy as np
import pytest
from toys import completions_of

from metajax import evolve as ev
from metajax import lm

TOKENIZER = lm.CharTokenizer.of("0123456789+=.", specials=("<",))
BEGIN, [END] = 0, TOKENIZER.encode(".")


def tasks_of(*texts, begin=False, valid=None):
    rows = [[BEGIN] * begin + TOKENIZER.encode(text) for text in texts]
    width = max(map(len, rows))
    prompts = np.array([[0] * (width - len(row)) + row for row in rows])
    valid = np.ones(len(rows), bool) if valid is None else np.array(valid)
    return ev.Tasks(prompts, np.array([len(row) for row in rows]), np.ones(len(rows), int), valid)


def answers_of(*rows):
    return completions_of([[TOKENIZER.encode(text) for text in row] for row in rows], end=END)


def larger_sums(prompt, answer):
    """The reward falls with the distance from the sum; any text that isn't a number has 0."""
    if not answer.isdigit():
        return 0.0
    return max(0.0, 1 - abs(int(answer) - sum(map(int, prompt[:-1].split("+")))) / 10)


@pytest.mark.parametrize("begin", [False, True])
def test_each_sample_is_checked_behind_its_prompt(begin):
    tasks = tasks_of("1+2=", "12+30=", "4+4=", begin=begin, valid=[True, True, False])
    samples = answers_of(["3.", "4.", "3"], ["+.", "43.", "42."], ["8.", "8.", "8."])
    verifier = ev.checked(TOKENIZER, larger_sums, end=END, begin=BEGIN)
    verdict = verifier.verify(tasks, samples)
    # Without an end token, and for what is no task, there is nothing.
    np.testing.assert_allclose(verdict.rewards, [[1, 0.9, 0], [0, 0.9, 1], [0, 0, 0]], rtol=1e-6)
    assert verdict.choice.tolist() == [0, 2, 0]
    np.testing.assert_allclose(verdict.agreement, [2 / 3, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_array_equal(verdict.weight, [1, 1, 0])
    assert verifier.uses_oracle
    rewards = ev.rewards_of(ev.Rollouts(tasks, samples, verdict))
    np.testing.assert_allclose(rewards, verdict.rewards)


def test_weights_may_depend_on_how_often_a_task_was_solved():
    tasks = tasks_of("1+2=", "1+3=", "2+2=")
    samples = answers_of(["3.", "9."], ["4.", "4."], ["5.", "5."])
    exact = lambda prompt, answer: larger_sums(prompt, answer) == 1
    verdict = ev.checked(TOKENIZER, exact, end=END, weigh=ev.learnability).verify(tasks, samples)
    np.testing.assert_allclose(verdict.weight, [0.5, 0, 0])
    verdict = ev.checked(TOKENIZER, exact, end=END, weigh=ev.uncertainty).verify(tasks, samples)
    np.testing.assert_allclose(verdict.weight, [0.5, 0, 0])


def test_equal_texts_are_checked_once():
    asked = []
    check = lambda prompt, answer: asked.append((prompt, answer)) or 1.0
    samples = answers_of(["3.", "3.", "4."])
    ev.checked(TOKENIZER, check, end=END).verify(tasks_of("1+2="), samples)
    assert asked == [("1+2=", "3"), ("1+2=", "4")]


@pytest.mark.parametrize("reward", [1.5, -1, float("nan")])
def test_a_reward_out_of_bounds_is_an_error(reward):
    verifier = ev.checked(TOKENIZER, lambda prompt, answer: reward, end=END)
    with pytest.raises(ValueError, match=r"check must return a reward in \[0, 1\], got"):
        verifier.verify(tasks_of("1+2="), answers_of(["3."]))
