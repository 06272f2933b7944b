"""A model that invents programs, at a tiny size: it runs, resumes, and learns nothing forbidden."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evolution.programs import config, play, train
from experiments.evolution.programs import language as pg
from experiments.evolution.programs.tasks import (
    PROMPT_LENGTH,
    concatenate,
    draw_examples,
    make_tasks,
    may_be_learned,
    real_tasks,
    take_rows,
    taught_programs,
    whole_texts,
)
from metajax import evolve as ev

TINY = (
    "--layers", "1", "--steps", "4", "--rounds", "2", "--round-steps", "2", "--proposals", "64",
    "--texts", "16", "--samples", "2", "--rows", "6", "--taught", "256", "--texts-taught", "64",
    "--gate-tasks", "16", "--test-inputs", "1", "--test", "like", "--log-every", "2",
)  # fmt: skip


def texts(write_programs, inputs):
    """A writer that wrote these."""
    programs = pg.programs_of(write_programs)
    own, marks = may_be_learned(programs)
    return lambda params, key: play.Written(
        take_rows(programs, slice(None)),
        take_rows(pg.values_of(inputs), slice(None)),
        np.ones(len(own), bool),
        own,
        marks,
    )


def half_right(params, key, tasks):
    """Of two answers to a deduction one is the output, the other none; others have none."""
    first = take_rows(tasks.about.inputs, (slice(None), 0))
    outputs = np.asarray(pg.value_tokens(pg.run(tasks.about.programs, first)))
    tokens = np.zeros((len(outputs), 3, 16), np.int32)
    for sample in (1, 2):  # the last is what the interpreter shows
        tokens[tasks.about.kind == 0, sample, : outputs.shape[1]] = outputs[tasks.about.kind == 0]
    tokens[tasks.about.kind == 3, :, 0] = pg.EOS
    lengths = np.maximum((tokens != 0).sum(axis=2), 1)
    return ev.Completions(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 1)


def proposed(write, levels=(2, 4), count=64):
    propose = play.proposer(write, count=count, longest=5)
    return propose(None, jax.random.key(0), ev.Levels(*levels))


def taught():
    return taught_programs(jax.random.key(3), 300, 2)


@pytest.mark.slow
def test_no_held_out_program_is_taught_and_none_longer_than_two_operations():
    programs = taught()
    assert 100 < len(programs.lengths) < 300
    assert not np.asarray(pg.is_held_out(programs)).any()
    assert not np.asarray(pg.is_degenerate(programs)).any()
    assert set(programs.lengths.tolist()) == {1, 2}


@pytest.mark.slow
def test_no_held_out_program_is_proposed_not_even_joined():
    """Of these four, ``reverse | add 3`` and ``sort | reverse`` are held out, alone or joined."""
    written = ["reverse", "add 3", "sort", "sort | reverse", "swap | add 4"]
    tasks = proposed(texts(written, [[1, 2, 3]] * 5))
    valid = np.asarray(tasks.valid)
    programs = take_rows(tasks.about.programs, valid)
    assert valid.any()
    assert "swap | add 4" in pg.texts_of(programs)
    assert not np.asarray(pg.is_held_out(programs)).any()
    assert not np.asarray(pg.is_degenerate(programs)).any()
    assert np.asarray(tasks.about.joined)[valid].any()
    deduced = may_be_learned(take_rows(tasks.about.programs, valid & (tasks.about.kind == 0)))[1]
    assert len(np.unique(deduced)) == len(deduced), "no two do the same"


def test_joined_programs_are_one_after_the_other_with_the_input_of_the_first():
    programs = pg.programs_of(["reverse | take 2", "add 3", "sum", "drop 1 | swap | fold"])
    first, second = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 3])
    made, fits = play.joined_pairs(programs, first, second)
    assert fits.tolist() == [True, True, False, False]  # a digit isn't reversed; five are too many
    assert pg.texts_of(take_rows(made, fits)) == [
        "reverse | take 2 | add 3",
        "add 3 | sum",
    ]


@pytest.mark.slow
def test_nothing_usable_is_no_task():
    tasks = proposed(texts(["sort | reverse"] * 3, [[1]] * 3))
    assert not np.asarray(tasks.valid).any()
    assert tasks.prompts.shape == (64, PROMPT_LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(4))
def test_real_data_is_right_by_the_interpreter(kind):
    tasks, answers = real_tasks(jax.random.key(1), taught(), 64, 5)
    own = tasks.about.kind == kind
    tokens = np.asarray(answers.tokens)[:, None]
    completions = ev.Completions(tokens, 0.0 * tokens, answers.lengths[:, None], tokens > -1)
    assert play.right_answers(tasks, completions)[own].all()
    damaged = completions._replace(tokens=np.where(tokens == pg.EOS, 0, tokens))
    assert play.right_answers(tasks, damaged)[own].all() == (kind == 3)


@pytest.mark.slow
def test_a_label_is_a_right_sample_and_its_weight_what_can_be_learned():
    inputs = draw_examples(jax.random.key(0), pg.values_of([[1, 2]] * 4), 5)
    programs = pg.programs_of(["sum", "sum", "sum", "head | add 2"])
    deduction, _ = make_tasks(0, programs, inputs)
    proposal, _ = make_tasks(3, *take_rows((programs, inputs), slice(2)))
    tasks = concatenate([deduction, proposal])
    digit = lambda value: np.asarray(pg.value_tokens(pg.values_of([value])))[0]
    answered = [[3, 3], [4, 3], [4, 5], [4, 5], [0, 0], [0, 0]]
    tokens = np.array([[digit(value) for value in row] for row in answered])
    completions = ev.Completions(tokens, tokens, np.full((6, 2), 2), np.ones((6, 2), bool))
    verdict = play.by_interpreter().verify(tasks, completions)
    assert np.asarray(verdict.agreement).tolist() == [1.0, 0.5, 0.0, 0.0, 1.0, 0.5]
    assert np.asarray(verdict.weight).tolist() == [0.0, 0.5, 0.0, 0.0, 0.0, 0.5]
    assert np.asarray(verdict.choice)[1] == 1
    uncertain = play.by_interpreter("uncertain").verify(tasks, completions)
    assert np.asarray(uncertain.weight).tolist() == [0.0, 0.5, 0.0, 0.0, 0.0, 0.5]
    plain = play.by_interpreter("right").verify(tasks, completions)
    assert np.asarray(plain.weight).tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.slow
def test_what_the_interpreter_gives_is_the_label_of_a_deduction_that_no_sample_got_right():
    inputs = draw_examples(jax.random.key(0), pg.values_of([[1, 2]] * 2), 5)
    programs = pg.programs_of(["sum", "push 3 | reverse"])
    tasks = concatenate([make_tasks(kind, programs, inputs)[0] for kind in (0, 1, 3)])

    def wrong(params, key, asked):
        tokens = np.full((len(asked.lengths), 2, 16), pg.BOS)
        shape = tokens.shape[:2]
        return ev.Completions(tokens, 1.0 * tokens, np.full(shape, 16), np.zeros(shape, bool))

    solve = play.solver(wrong, 2, shown=True)
    completions = solve(None, jax.random.key(0), tasks)
    verdict = play.by_interpreter(shown=True).verify(tasks, completions)
    assert np.asarray(verdict.weight).tolist() == [1, 1, 0, 0, 0, 0]
    label = np.asarray(completions.tokens)[np.arange(2), np.asarray(verdict.choice)[:2]]
    assert [pg.WordTokenizer().decode(row) for row in label] == ["3 <eos>", "[ 2 1 3 ] <eos>"]
    left_out = play.solver(wrong, 2, shown=False)(None, jax.random.key(0), tasks)
    assert not np.asarray(play.by_interpreter().verify(tasks, left_out).weight).any()


@pytest.mark.slow
def test_of_a_proposal_all_is_learned_but_what_asks_for_it():
    inputs = draw_examples(jax.random.key(0), pg.values_of([[1, 2]]), 5)
    tasks, answers = make_tasks(3, pg.programs_of(["reverse | add 3"]), inputs)
    examples = whole_texts(ev.as_examples(tasks, answers, np.ones(1)))
    text = pg.WordTokenizer().decode(examples.tokens[0])
    assert text == "<bos> propose reverse | add 3 : [ 1 2 ] <eos>"
    assert examples.prompt.tolist() == [2]
    _, _, valid = pg.parse_proposals(jnp.asarray(examples.tokens[:, 2:]))
    assert valid.all()


@pytest.mark.slow
def test_a_run_that_was_interrupted_in_its_second_round_goes_on_and_ends(tmp_path, monkeypatch):
    accuracies, calls = play.accuracies, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:  # of round 0, of round 1, and then
            raise KeyboardInterrupt
        return accuracies(*arguments)

    written = ["swap | add 4", "fold | keep_odd", "square", "push 3 | sum", "drop 2", "halve"]
    monkeypatch.setattr(play, "writer", lambda *a, **k: texts(written, [[1, 2, 3]] * 6))
    monkeypatch.setattr(play, "solver", lambda *a, **k: half_right)
    arguments = [*TINY, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(play, "accuracies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    monkeypatch.setattr(play, "accuracies", accuracies)
    log = tmp_path / "run" / "rounds" / "metrics.jsonl"
    before = log.read_text().splitlines()[:2]
    train.main([*arguments, "--resume"])
    lines = log.read_text().splitlines()
    assert lines[:2] == before
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["tested"]) == {"round 0", "last round", "control"}
    assert [record["step"] for record in result["control_by_round"]] == [0, 1, 2]
    for line in map(json.loads, lines[1:]):
        assert line["uses_oracle"]
        assert line["kept"] > 0
        assert line["accepted"]
    assert "deduction" in (tmp_path / "run" / "table.md").read_text()
    assert (tmp_path / "run" / "rounds.png").stat().st_size > 0
    assert (tmp_path / "run" / "tasks.txt").exists()


def test_wrong_options_are_named():
    for option, value, message in (
        ("proposals", 12, "proposals must be a multiple of 8, and at least that; got 12"),
        ("rows", 5, "rows must be a multiple of 6; got 5"),
        ("floor", 1.5, r"floor must be in \[0, 1\]; got 1.5"),
        ("longest", 9, "longest must be at most 8; got 9"),
        ("gate_tasks", 2, "gate_tasks must be at least 8; got 2"),
        ("temperature", 0.0, r"temperature must be above zero; got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config.Config(), **{option: value})
