"""Verifiers: each against its definition, and how they are combined."""

import jax
import numpy as np
import pytest
from toys import COPY, completions_of, solved, tasks_of

from metajax import evolve as ev


def weights(verifier, tasks, completions):
    return np.asarray(verifier.verify(tasks, completions).weight).tolist()


def test_everything_is_trusted_and_what_has_no_end_is_not():
    completions = completions_of([[[1, 13]], [[1, 2, 3]]])
    tasks = tasks_of([1, 1])
    assert weights(ev.keep_all(), tasks, completions) == [1, 1]
    assert weights(ev.must_end(), tasks, completions) == [1, 0]


def test_a_majority_is_counted_over_whole_answers():
    completions = completions_of(
        [
            [[4, 13], [5, 13], [5, 13], [5, 13]],
            [[4, 13], [4, 4, 13], [5, 13], [6, 13]],
            [[0, 13], [0, 0, 13], [0, 0, 0], [0, 13]],  # as tokens, padding is a 0
        ]
    )
    verdict = ev.majority_vote(0.7).verify(tasks_of([1, 1, 1]), completions)
    assert np.asarray(verdict.choice)[0] in (1, 2, 3)
    np.testing.assert_allclose(verdict.agreement, [0.75, 0.25, 0.5])
    np.testing.assert_array_equal(verdict.weight, [1, 0, 0])
    assert weights(ev.agreement_band(0.3, 0.6), tasks_of([1, 1, 1]), completions) == [0, 0, 1]


def test_the_least_likely_token_counts():
    log_probs = np.log([[[0.99, 0.5, 1.0]], [[0.8, 0.8, 0.8]]])
    completions = completions_of([[[1, 2, 13]], [[1, 2, 13]]], log_probs=log_probs)
    tasks = tasks_of([2, 2])
    verdict = ev.confident(0.7).verify(tasks, completions)
    np.testing.assert_allclose(verdict.agreement, [0.5, 0.8], rtol=1e-5)
    np.testing.assert_array_equal(verdict.weight, [0, 1])


def test_lengths_are_compared_within_a_level_and_among_valid_tasks():
    answers = [[1, 2, 13], [1, 2, 13], [1, 13], [1, 2, 3, 13], [1, 13], [1, 13], [1, 13]]
    completions = completions_of([[answer] for answer in answers])
    levels, valid = [2, 2, 2, 3, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]
    found = weights(
        ev.most_common_length(), tasks_of(levels, valid=np.array(valid, bool)), completions
    )
    assert found[:4] == [1, 1, 0, 1]


def test_the_exact_verifier_takes_the_first_right_sample_and_says_that_it_knows():
    tasks = COPY.draw(jax.random.key(0), [2, 2])
    right = solved(COPY, tasks)
    wrong = right._replace(tokens=(right.tokens + 1) % 10)
    both = ev.Completions(
        *(
            np.stack([np.stack([b[0], a[0]]), np.stack([b[1], b[1]])])
            for a, b in zip(
                (leaf[:, 0] for leaf in right), (leaf[:, 0] for leaf in wrong), strict=True
            )
        )
    )
    verifier = ev.exact_match(COPY.answer)
    verdict = verifier.verify(tasks, both)
    assert verifier.uses_oracle
    assert np.asarray(verdict.choice)[0] == 1
    np.testing.assert_array_equal(verdict.weight, [1, 0])
    np.testing.assert_allclose(verdict.agreement, [0.5, 0])


def test_all_of_multiplies_what_each_says_of_the_chosen_answer():
    completions = completions_of(
        [
            [[9, 9, 9], [4, 13], [4, 13]],  # the chosen answer ends, the first doesn't
            [[4, 13], [9, 9, 9], [9, 9, 9]],
            [[4, 13], [4, 13], [5, 13]],
        ]
    )
    verifier = ev.all_of(ev.majority_vote(0.6), ev.must_end())
    verdict = verifier.verify(tasks_of([1, 1, 1]), completions)
    np.testing.assert_array_equal(verdict.weight, [1, 0, 1])
    np.testing.assert_allclose(verdict.agreement, [2 / 3] * 3)
    assert not verifier.uses_oracle
    assert ev.all_of(ev.must_end(), ev.exact_match(COPY.answer)).uses_oracle


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ev.majority_vote(0.0), "at_least must be above 0 and at most 1, got 0.0"),
        (lambda: ev.agreement_band(0.8, 0.3), "low must be at most high, got 0.8 and 0.3"),
        (lambda: ev.confident(1.5), "at_least must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
