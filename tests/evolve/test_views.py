"""Views of a task: the same question in other words, and the answer back in its own."""

import jax
import numpy as np
import pytest

import metajax
from experiments.evolution.strings.tasks import END, digits, operands_swapped
from metajax import evolve as ev

KEY = jax.random.key(5)
LEVELS = np.array([1, 4, 7, 3, 6, 2, 5, 7])


def oracle(problem, calls=None):
    """A solver that is always right; it notes the prompts that it saw."""

    def solve(params, key, tasks, /):
        if calls is not None:
            calls.append(np.asarray(tasks.prompts))
        tokens, lengths = (np.asarray(leaf) for leaf in problem.answer(tasks))
        shape = (len(lengths), 1)
        log_probs = np.zeros((*shape, tokens.shape[1]), np.float32)
        return ev.Completions(tokens[:, None], log_probs, lengths[:, None], np.ones(shape, bool))

    return solve


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("copy", ev.permuted_tokens(0, 10)),
        ("reverse", ev.permuted_tokens(0, 10)),
        ("addition", operands_swapped()),
    ],
)
def test_right_answers_agree_in_every_view(name, view):
    problem, calls = digits(name), []
    tasks = problem.draw(KEY, LEVELS)
    completions = ev.solve_in_views(oracle(problem, calls), [view, view])(None, KEY, tasks)
    tokens = np.asarray(completions.tokens)
    assert tokens.shape[1] == 3
    np.testing.assert_array_equal(tokens, np.repeat(tokens[:, :1], 3, axis=1))
    assert ev.is_correct(completions, problem.answer(tasks)).all()
    for other in calls[1:]:  # each view is another task, of the same level
        valid, levels = problem.read(other, tasks.lengths)
        assert np.asarray(valid).all()
        np.testing.assert_array_equal(levels, LEVELS)
        assert (other != np.asarray(tasks.prompts)).any(axis=1).mean() > 0.8


def test_what_depends_on_the_digits_as_such_does_not_agree():
    """A solver that writes a 4 for every 7 errs in one view only, or elsewhere in the other."""
    problem = digits("copy")
    right = oracle(problem)

    def biased(params, key, tasks, /):
        found = right(params, key, tasks)
        return found._replace(tokens=np.where(found.tokens == 7, 4, found.tokens))

    tasks = problem.draw(KEY, np.full(256, 6))
    solve = ev.solve_in_views(biased, [ev.permuted_tokens(0, 10)] * 3)
    completions = solve(None, KEY, tasks)
    verdict = ev.majority_vote(1.0).verify(tasks, completions)
    kept = np.asarray(verdict.weight) > 0
    correct = np.asarray(ev.is_correct(completions, problem.answer(tasks)))[:, 0]
    assert 0 < kept.sum() < correct.sum()
    assert correct[kept].all()
    assert correct.mean() < 0.6


def test_renaming_is_a_permutation_of_these_tokens_alone_and_differs_between_tasks():
    problem, view = digits("copy"), ev.permuted_tokens(2, 5)
    tasks = problem.draw(KEY, np.full(64, 20))
    other, memo = view.pose(KEY, tasks)
    before, after = np.asarray(tasks.prompts), np.asarray(other.prompts)
    outside = (before < 2) | (before > 6)
    np.testing.assert_array_equal(before[outside], after[outside])
    tables = set()
    for row, new in zip(before, after, strict=True):
        pairs = set(zip(row.tolist(), new.tolist(), strict=True))
        assert len(pairs) == len(set(row.tolist())) == len({name for _, name in pairs})
        tables.add(tuple(sorted(pairs)))
    assert len(tables) > 32
    np.testing.assert_array_equal(view.undo(memo, after[:, None])[:, 0], before)


def test_the_padding_stays_and_nothing_stands_behind_the_end():
    problem, view = digits("copy"), ev.permuted_tokens(0, 10)
    tasks = problem.draw(KEY, LEVELS)
    other, _ = view.pose(KEY, tasks)
    padding = np.arange(16) < 16 - np.asarray(tasks.lengths)[:, None]
    assert (np.asarray(other.prompts)[padding] == 0).all()
    tokens = np.asarray(ev.solve_in_views(oracle(problem), [view])(None, KEY, tasks).tokens)
    ends = (tokens == END).argmax(axis=-1)
    assert (tokens[np.arange(tokens.shape[-1]) > ends[..., None]] == 0).all()


def test_bad_input_is_named():
    with pytest.raises(metajax.ArgumentError, match="count must be at least 2, got 1"):
        ev.permuted_tokens(0, 1)
    with pytest.raises(metajax.ArgumentError, match="first must be at least 0, got -1"):
        ev.permuted_tokens(-1, 3)
    with pytest.raises(metajax.ArgumentError, match="views must have at least one view"):
        ev.solve_in_views(oracle(digits("copy")), [])
    copy = digits("copy")
    with pytest.raises(metajax.ArgumentError, match="tasks must be sums of two operands"):
        operands_swapped().pose(KEY, copy.draw(KEY, [5]))

    def twice(params, key, tasks, /):
        found = oracle(copy)(params, key, tasks)
        return ev.Completions(*(np.concatenate([leaf, leaf], axis=1) for leaf in found))

    with pytest.raises(
        metajax.ArgumentError, match="solve must give one completion for each task, got 2"
    ):
        ev.solve_in_views(twice, [ev.permuted_tokens(0, 10)])(None, KEY, copy.draw(KEY, [5]))
