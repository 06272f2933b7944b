"""The gate: its bound in closed form, what it refuses, and what it asks for."""

import math

import jax
import numpy as np
import pytest
from toys import COPY, solved

from metajax import evolve as ev

HELD_OUT = ev.held_out_tasks(
    COPY, jax.random.key(0), known=range(1, 4), frontier=range(5, 7), each=100
)


def oracle_but(wrong):
    """A solver whose parameters say which share of the frontier's, and known, answers is wrong."""

    def solve(params, key, tasks):
        known, frontier = params
        share = known if len(tasks.lengths) == 100 else frontier
        count = round(share * len(tasks.lengths))
        return solved(COPY, tasks, wrong=range(wrong, wrong + count))

    return solve


def decide(old, new, *, verifier=None, **options):
    gate = ev.non_inferior(oracle_but(0), verifier or ev.keep_all(), **options)
    return gate(old, new, jax.random.key(0), HELD_OUT)


def test_held_out_tasks_of_a_level_are_the_same_whatever_the_range():
    other = ev.held_out_tasks(
        COPY, jax.random.key(0), known=range(1, 4), frontier=range(6, 7), each=100
    )
    np.testing.assert_array_equal(other.frontier.prompts, HELD_OUT.frontier.prompts[100:])
    np.testing.assert_array_equal(other.known.prompts, HELD_OUT.known.prompts)
    assert set(np.asarray(HELD_OUT.known.levels).tolist()) == {1, 2, 3}


def test_the_same_model_is_no_worse():
    decision = decide((0, 0), (0, 0))
    assert decision.accepted
    assert decision.before == decision.after == {"known": 1.0, "frontier": 1.0}
    assert decision.lowest == {"known": 0.0, "frontier": 0.0}


def test_the_bound_is_that_of_the_mean_difference():
    decision = decide((0, 0), (0.1, 0), confidence=0.95)
    change = -np.repeat([1.0, 0.0], [10, 90])
    expected = change.mean() - 1.6449 * change.std(ddof=1) / math.sqrt(100)
    np.testing.assert_allclose(decision.lowest["known"], expected, rtol=1e-3)
    assert not decision.accepted
    assert "known tasks may be worse by 15" in decision.reason
    assert decide((0, 0), (0.1, 0), margin=0.16).accepted
    assert not decide((0, 0), (0.1, 0), margin=0.16, confidence=0.999).accepted


def test_a_model_that_answers_the_frontier_otherwise_is_refused():
    """As one does that learned from damaged labels, though it is still sure of what it knows."""
    decision = decide((0, 0), (0, 0.5))
    assert not decision.accepted
    assert decision.after == {"known": 1.0, "frontier": 0.5}


def test_where_the_old_answer_was_not_trusted_another_one_is_no_loss():
    verifier = ev.most_common_length()  # an answer that lacks a digit isn't trusted
    decision = decide((0, 0.2), (0, 0), verifier=verifier)
    assert decision.accepted
    np.testing.assert_allclose(decision.before["frontier"], 0.8)
    np.testing.assert_allclose(decision.after["frontier"], 1.0)
    assert not decide((0, 0), (0, 0.2), verifier=verifier).accepted


def test_known_tasks_may_be_answered_by_a_solver_of_their_own():
    asked = []

    def once(params, key, tasks):
        asked.append(len(tasks.lengths))
        return solved(COPY, tasks, wrong=range(params[0]))

    gate = ev.non_inferior(oracle_but(0), ev.keep_all(), known=once, margin=0.5)
    decision = gate((0, 0), (9, 0.1), jax.random.key(0), HELD_OUT)
    assert asked == [100, 100]  # not the frontier
    assert decision.after == {"known": 0.91, "frontier": 0.9}


def test_no_gate_accepts_anything():
    assert ev.accept_all()(None, None, None, None).accepted


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="margin must lie between 0 and 1, got 0"):
        ev.non_inferior(None, ev.keep_all(), margin=0)
    with pytest.raises(ValueError, match=r"confidence must lie between 0\.5 and 1, got 1\.0"):
        ev.non_inferior(None, ev.keep_all(), confidence=1.0)
    nothing = jax.tree.map(lambda leaf: leaf[:0], HELD_OUT.frontier)
    gate = ev.non_inferior(oracle_but(0), ev.keep_all())
    with pytest.raises(ValueError, match=r"held_out\.frontier must have at least 2 tasks, got 0"):
        gate((0, 0), (0, 0), jax.random.key(0), HELD_OUT._replace(frontier=nothing))


def test_a_verifier_that_knows_scores_both_groups_and_any_of_its_right_answers_will_do():
    """The answers of the known group are not looked at."""
    other = HELD_OUT._replace(answers=ev.Answers(np.zeros((0, 1), int), np.zeros(0, int)))
    gate = ev.non_inferior(oracle_but(0), ev.exact_match(COPY.answer))
    same = gate((0, 0), (0, 0), jax.random.key(0), other)
    assert same.accepted
    assert same.before == {"known": 1.0, "frontier": 1.0}
    worse = gate((0, 0), (0.3, 0.5), jax.random.key(0), other)
    assert not worse.accepted
    assert worse.after == {"known": 0.7, "frontier": 0.5}
