"""The loop: what it learns from, when it goes back, when it stops, and that it can be resumed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from toys import COPY, solved

from metajax import evolve as ev
from metajax.models import Transformer, TransformerConfig
from metajax.trainer import TrainState


def counting(log=None):
    """An update whose parameters count rounds, by their scale."""

    def init(params, key):
        return TrainState(params, (), key, jnp.zeros((), jnp.int32))

    def update(state, data, key, scale):
        if log is not None:
            log.append(data)
        new = state._replace(params=state.params + scale, step=state.step + 1)
        return new, {"loss": jnp.zeros(3)}, 7

    return ev.Update("counting", init, update)


def solve(params, key, tasks):
    return solved(COPY, tasks)


def held_out(levels):
    return ev.held_out_tasks(
        COPY,
        jax.random.key(9),
        known=range(1, 3),
        frontier=range(levels.last, levels.last + 1),
        each=5,
    )


def config_of(**options):
    defaults = {
        "propose": ev.program_proposer(COPY, count=6),
        "solve": solve,
        "verifier": ev.must_end(),
        "update": counting(),
        "gate": ev.accept_all(),
        "curriculum": ev.one_harder(3),
        "real": lambda key: ev.real_examples(COPY, key, [1, 2], 4),
        "held_out": held_out,
        "oracle": COPY.answer,
    }
    return ev.EvolveConfig(**defaults | options)


def begin(config, rounds=4, proposals=6):
    return ev.init_state(
        config, jnp.zeros(()), jax.random.key(0), rounds=rounds, proposals=proposals, longest=20,
        vocab_size=14,
    )  # fmt: skip


def run(config, state=None, **options):
    return list(ev.evolve(config, begin(config) if state is None else state, **options))


def refuse(old, new, key, held_out):
    return ev.Decision(False, {}, {}, {}, "no")


@pytest.mark.slow
def test_a_round_is_proposed_answered_remembered_and_harder_than_the_one_before():
    seen = []
    outcome = run(config_of(update=counting(seen)))
    assert [report.levels for _, report in outcome] == [(3, 3), (4, 4), (5, 5), (6, 6)]
    assert all(report.accepted and report.kept == report.unique for _, report in outcome)
    assert [report.stopped for _, report in outcome] == [None] * 3 + ["all 4 rounds are done"]
    report = outcome[0][1]
    assert report.label_accuracy == report.raw_accuracy == report.valid == 1.0
    assert report.tokens == {"trained": 7, "generated": 6 * 4}
    assert set(report.seconds) >= {"propose", "solve", "verify", "update", "gate", "curriculum"}
    assert not report.uses_oracle
    assert [len(data.past) for data in seen] == [0, 1, 2, 3]
    for earlier, later in itertools.pairwise(seen):  # nothing learned from is thrown away
        np.testing.assert_array_equal(later.past[-1].tokens, earlier.new.tokens)
        np.testing.assert_array_equal(later.past[-1].weights, earlier.new.weights)
    assert all(len(data.real.tokens) == 4 for data in seen)
    assert float(outcome[-1][0].train.params) == 4.0


def test_held_out_prompts_are_never_learned_from():
    """Of the 100 two-digit prompts five are held out; 600 proposals meet all of them."""
    seen = []
    config = config_of(
        propose=ev.program_proposer(COPY, count=600),
        update=counting(seen),
        curriculum=ev.one_harder(2),
    )
    next(ev.evolve(config, begin(config, proposals=600)))
    marks = ev.held_out_fingerprints(held_out(ev.Levels(2, 2)))
    tasks, new = seen[0].rollouts.tasks, seen[0].new
    inside = np.isin(ev.fingerprints(tasks), marks)
    assert inside.any()
    assert (new.weights[inside] == 0).all()
    assert (new.weights > 0).sum() == 100 - len(
        np.unique(marks[np.isin(marks, ev.fingerprints(tasks))])
    )


def test_a_refused_round_leaves_no_trace_but_its_examples_and_half_the_step():
    scales = []
    base = counting()

    def update(state, data, key, scale):
        scales.append(scale)
        return base.update(state, data, key, scale)

    refused_once = iter([refuse, ev.accept_all(), refuse, ev.accept_all()])
    gate = lambda *arguments: next(refused_once)(*arguments)
    outcome = run(config_of(update=base._replace(update=update), gate=gate))
    assert scales == [1.0, 0.5, 1.0, 0.5]
    assert [report.accepted for _, report in outcome] == [False, True, False, True]
    assert [report.levels.last for _, report in outcome] == [3, 3, 4, 4]
    assert [float(state.train.params) for state, _ in outcome] == [0.0, 0.5, 0.5, 1.0]
    replay = outcome[-1][0].replay
    assert replay.weights.any(axis=1).tolist() == [False, True, False, True]
    assert replay.tokens.any(axis=(1, 2)).all(), "what was proposed is kept, at weight 0"


def test_a_levels_yield_is_that_of_its_own_tasks_where_held_out_has_easier_ones_beside_them():
    """Of three digits all answers end, of four none: seen together that would be a half."""
    seen = []

    def solve_three(params, key, tasks):
        found = solve(params, key, tasks)
        return found._replace(ended=found.ended & (np.asarray(tasks.levels) < 4)[:, None])

    def look(levels, keep_rate):
        seen.extend([keep_rate(3), keep_rate(4)])
        return ev.Levels(4, 4)

    config = config_of(
        solve=solve_three,
        held_out=lambda levels: ev.held_out_tasks(
            COPY, jax.random.key(9), known=range(1, 3), frontier=range(3, levels.last + 1), each=5
        ),
        curriculum=ev.Curriculum("looks", ev.Levels(3, 3), look),
    )
    next(ev.evolve(config, begin(config)))
    assert seen == [1.0, 0.0]


def test_refusals_in_a_row_stop_the_loop_with_a_word_and_nothing_lost():
    outcome = run(config_of(gate=refuse), patience=2)
    assert len(outcome) == 2
    state, report = outcome[-1]
    assert report.stopped == "2 rounds in a row brought nothing"
    assert float(state.train.params) == 0.0
    assert run(config_of(), state, patience=2) == []


def test_a_round_that_keeps_nothing_learns_nothing_and_does_not_advance():
    never = ev.Verifier(
        "never", lambda t, a: ev.must_end().verify(t, a)._replace(weight=np.zeros(6))
    )
    (state, report), *_ = run(config_of(verifier=never), patience=1)
    assert report.kept == 0
    assert report.decision is None
    assert report.label_accuracy is None
    assert not report.accepted
    assert state.levels.tolist() == [3, 3]
    assert report.stopped == "1 rounds in a row brought nothing"


@pytest.mark.parametrize("kind", ["nothing valid", "duplicates only"])
def test_a_proposer_that_brings_nothing_is_a_round_skipped(kind):
    def propose(params, key, levels):
        tasks = COPY.draw(jax.random.key(0), [levels.last] * 6)
        if kind == "nothing valid":
            return tasks._replace(valid=np.zeros(6, bool))
        return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[:1], 6, axis=0), tasks)

    (_, report), *_ = run(config_of(propose=propose), patience=1)
    if kind == "nothing valid":
        assert (report.valid, report.unique, report.kept, report.agreement) == (0, 0, 0, 0)
        assert not report.accepted
    else:
        assert (report.valid, report.unique, report.kept) == (1, 1 / 6, 1 / 6)
        assert report.accepted


def silent_in(rounds):
    """A proposer that writes nothing valid in some rounds."""
    count = itertools.count(1)

    def propose(params, key, levels):
        tasks = COPY.draw(key, [levels.last] * 6)
        return tasks._replace(valid=np.full(6, next(count) not in rounds))

    return propose


def test_three_rounds_without_a_valid_task_end_the_run_with_a_word_and_nothing_lost():
    config = config_of(propose=silent_in({1, 3, 4, 6, 7, 8}))
    outcome = run(config, begin(config, rounds=12), patience=10)
    assert [report.accepted for _, report in outcome] == [
        *(False, True, False, False, True, False, False, False)
    ]
    state, report = outcome[-1]
    assert report.stopped == "the proposer wrote no valid task in 3 rounds in a row"
    assert [each.stopped for _, each in outcome[:-1]] == [None] * 7
    assert (report.valid, report.unique, report.kept, report.decision) == (0, 0, 0, None)
    assert float(state.train.params) == 0.5 + 0.25
    assert state.replay.weights.any(axis=1).tolist() == [number in (1, 4) for number in range(12)]
    assert state.levels.tolist() == [5, 5]
    # It stays over after a restart, until somebody says that it may go on.
    assert run(config_of(), state, patience=10) == []
    resumed = run(config_of(), state._replace(refusals=jnp.zeros((), jnp.int32)))
    assert [report.round for _, report in resumed] == [9, 10, 11, 12]
    assert resumed[-1][1].stopped == "all 12 rounds are done"


def test_a_restart_counts_the_rounds_without_a_valid_task_before_it():
    config = config_of(propose=silent_in({1, 2, 3}))
    state = run(config, begin(config, rounds=9), patience=2)[-1][0]
    (_, report), *more = run(config_of(propose=silent_in({1})), state, patience=9)
    assert report.stopped == "the proposer wrote no valid task in 3 rounds in a row"
    assert more == []


def test_refusals_for_another_reason_are_said_to_be_that():
    config = config_of(gate=refuse, propose=silent_in({2, 3}))
    assert run(config)[-1][1].stopped == "3 rounds in a row brought nothing"


def test_rewards_of_a_verdict_are_checked():
    for rewards, message in (
        (np.ones((6, 2)), r"rewards \[6, 1\], got shape \(6, 2\)"),
        (np.full((6, 1), np.inf), "finite rewards, got inf"),
    ):
        bad = ev.Verifier(
            "bad", lambda t, a, r=rewards: ev.must_end().verify(t, a)._replace(rewards=r)
        )
        with pytest.raises(ValueError, match=message):
            run(config_of(verifier=bad))


def test_wrong_shapes_and_weights_are_named():
    few = lambda params, key, levels: COPY.draw(key, [3] * 5)
    with pytest.raises(ValueError, match=r"propose must return prompts \[6, width\].*\(5, 8\)"):
        run(config_of(propose=few))
    for value, shown in ((np.nan, "nan"), (1.5, "1.5"), (-0.1, "-0.1")):
        weights = np.array([1, 1, value, 1, 1, 1])
        bad = ev.Verifier(
            "bad", lambda t, a, w=weights: ev.must_end().verify(t, a)._replace(weight=w)
        )
        with pytest.raises(ValueError, match=rf"weights in \[0, 1\], got {shown}"):
            run(config_of(verifier=bad))
    short = ev.Verifier("s", lambda t, a: ev.must_end().verify(t, a)._replace(weight=np.ones(2)))
    with pytest.raises(ValueError, match=r"weights \[6\], got shape \(2,\)"):
        run(config_of(verifier=short))
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        begin(config_of(), rounds=0)


def test_texts_that_the_buffer_has_no_room_for_are_not_learned_from():
    config = config_of(curriculum=ev.one_harder(9))  # 11 and 10 tokens; there is room for 20
    (_, report), *_ = run(config, patience=1)
    assert report.kept == 0


def test_corrupting_happens_before_the_verifier_and_only_in_the_rounds_proposals():
    def corrupt(number, completions):
        return completions._replace(ended=completions.ended & (number != 2))

    outcome = run(config_of(corrupt=corrupt))
    assert [report.kept > 0 for _, report in outcome] == [True, False, True, True]


def test_without_an_oracle_nothing_is_said_of_what_is_right_and_with_one_in_the_loop_it_is_said():
    report = run(config_of(oracle=None))[0][1]
    assert report.label_accuracy is None
    assert report.raw_accuracy is None
    assert run(config_of(verifier=ev.exact_match(COPY.answer)))[0][1].uses_oracle


@pytest.mark.parametrize("by", ["arrays", "flax"])
def test_a_restored_state_goes_on_bit_for_bit(by):
    """As from a checkpoint: arrays alone, in the structure of a new state."""
    config = config_of()
    whole = run(config)
    arrays = jax.tree.leaves(whole[1][0])
    restored = jax.tree.structure(begin(config_of())).unflatten(arrays)
    if by == "flax":
        stored = serialization.to_bytes(whole[1][0])
        restored = serialization.from_bytes(begin(config_of()), stored)
    resumed = run(config_of(), restored)
    assert [report.round for _, report in resumed] == [3, 4]
    plain = lambda state: state._replace(
        key=jax.random.key_data(state.key),
        train=state.train._replace(key=jax.random.key_data(state.train.key)),
    )
    jax.tree.map(np.testing.assert_array_equal, plain(resumed[-1][0]), plain(whole[-1][0]))


def test_what_tasks_are_about_reaches_the_verifier_row_by_row_and_its_shape_is_checked():
    seen = []

    def propose(params, key, levels):
        tasks = COPY.draw(key, [levels.last] * 6)
        return tasks._replace(about={"first": tasks.prompts[:, 1], "rows": np.arange(6)})

    def verify(tasks, completions):
        seen.append(tasks)
        return ev.must_end().verify(tasks, completions)

    config = config_of(propose=propose, verifier=ev.Verifier("sees", verify))
    run(config, patience=1)
    tasks = next(tasks for tasks in seen if tasks.about is not None)
    np.testing.assert_array_equal(tasks.about["first"], tasks.prompts[:, 1])
    few = lambda params, key, levels: propose(params, key, levels)._replace(about=np.zeros(5))
    with pytest.raises(ValueError, match=r"about, 0.*\(5,\)"):
        run(config_of(propose=few))


def test_a_policy_gradient_at_another_temperature_than_the_solver_is_named():
    model = Transformer(TransformerConfig.nope(vocab_size=14, width=8, n_layers=1, n_heads=2))

    def first(drawn_at, learned_at):
        solver = ev.model_solver(
            model, answer_length=COPY.answer_length, end=COPY.end, samples=2, temperature=drawn_at
        )
        update = ev.grpo(lambda p, t: t, optax.sgd(0.1), steps=1, temperature=learned_at)
        config = config_of(solve=solver, update=update, propose=None)
        return next(ev.evolve(config, begin(config)))

    with pytest.raises(ValueError, match=r"update must be that of solve, 0\.7, got 1\.0"):
        first(0.7, 1.0)
    with pytest.raises(TypeError, match="NoneType"):  # the round begins
        first(0.7, 0.7)
