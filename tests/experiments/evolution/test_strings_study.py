"""Self-evolution on strings of digits: a tiny run and its resume, the presets, and the damage."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.evolution import study
from experiments.evolution.strings import train
from experiments.evolution.strings.config import SIZES, Config, parse, preset, set_up
from metajax import evolve as ev

TINY = (
    "--steps", "40", "--rounds", "3", "--round-steps", "4", "--proposals", "16", "--rows", "6",
    "--base-levels", "2", "--test-prompts", "8", "--confidence", "0.05", "--row-length", "32",
    "--log-every", "20", "--views", "0", "--gate", "none",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """Most of a test's time is compilation: a model of one block."""
    model = {"width": 16, "n_layers": 1, "n_heads": 2, "mlp_width": 16}
    monkeypatch.setitem(SIZES, "small", SIZES["small"]._replace(model=model))


def records(folder):
    """The lines of the rounds without what depends on the clock."""
    lines = (folder / "rounds/metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("seconds")}
        for line in lines
    ]


class Stopped(Exception):
    pass


def stopping(config, state, evolve=ev.evolve):
    """A loop that is killed after its first round."""
    yield next(evolve(config, state))
    raise Stopped


@pytest.mark.ci
@pytest.mark.slow
def test_a_run_leaves_its_results_and_a_stopped_one_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train.main([*TINY, "--out", str(whole)])
    result = json.loads((whole / "result.json").read_text())
    assert set(result["tested"]) == {"round 0", "last round", "control"}
    assert set(result["tested"]["control"]) == {f"exact_{level}" for level in range(1, 8)}
    table = (whole / "table.md").read_text()
    assert "no oracle" in table
    assert "a program (as published)" in table
    assert "`python -m experiments.evolution.strings --" in table
    assert (whole / "lengths.png").stat().st_size > 5000
    assert "=" in (whole / "tasks.txt").read_text()
    expected = records(whole)
    assert [line["step"] for line in expected] == [0, 1, 2, 3]
    assert all("exact_3" in line for line in expected)
    assert any(line.get("accepted") for line in expected)
    tokens = result["tokens"]
    assert tokens["rounds"] == sum(line.get("tokens_trained", 0) for line in expected)
    assert 0.8 < tokens["control"] / tokens["rounds"] < 1.25

    with monkeypatch.context() as patch:
        patch.setattr(study.ev, "evolve", stopping)
        with pytest.raises(Stopped):
            train.main([*TINY, "--out", str(halves)])
    train.main([*TINY, "--out", str(halves), "--resume", "--control", "no"])
    assert records(halves) == expected


@pytest.mark.parametrize("damage", ["once", "always"])
def test_damage_drops_a_digit_from_half_of_the_answers(damage):
    config = Config(damage=damage)
    answers = np.array([[[1, 2, 3, 4, 13, 0]], [[5, 6, 7, 8, 13, 0]]])
    completions = ev.Completions(
        answers, -answers / 10, np.array([[5], [5]]), np.ones((2, 1), bool)
    )
    damaged = train.damage(config)
    assert damaged(2, completions) is completions
    tokens, log_probs, lengths, _ = damaged(3, completions)
    assert tokens[:, 0].tolist() == [[1, 2, 4, 13, 0, 0], [5, 6, 7, 8, 13, 0]]
    np.testing.assert_allclose(log_probs, -tokens / 10)
    assert lengths.tolist() == [[4], [5]]
    assert (damaged(4, completions) is completions) == (damage == "once")


@pytest.mark.parametrize("task", ["copy", "addition"])
def test_evaluation_prompts_are_not_those_of_the_gate_nor_of_the_proposer(task):
    """Of the lengths that the model teaches itself; there are too few short strings."""
    setup = set_up(Config(task=task, proposals=64))
    loop = train.loop_config(setup)
    first = setup.config.base_levels + 1
    levels = ev.Levels(first, first + 1)
    proposed = ev.fingerprints(loop.propose(None, jax.random.key(0), levels))
    held_out = ev.held_out_fingerprints(loop.held_out(levels))
    tests = ev.fingerprints(
        setup.problem.draw(
            jax.random.fold_in(jax.random.key(train.TEST_SEED), first),
            np.full(64, first),
        )
    )
    assert not np.isin(tests, held_out).any()
    assert not np.isin(tests, proposed).any()


@pytest.mark.slow
def test_each_task_is_posed_in_other_words_and_only_what_agrees_is_kept():
    setup = set_up(Config(proposals=16, views=2))
    loop = train.loop_config(setup)
    tasks = loop.propose(None, jax.random.key(0), ev.Levels(9, 9))
    completions = loop.solve(setup.params, jax.random.key(1), tasks)
    assert completions.tokens.shape[:2] == (16, 3)
    alike = (completions.tokens == completions.tokens[:, :1]).all(axis=(1, 2))
    kept = np.asarray(loop.verifier.verify(tasks, completions).weight) > 0
    assert not kept[~alike].any()
    assert "100% of the samples agree" in loop.verifier.name
    once = train.loop_config(setup._replace(config=dataclasses.replace(setup.config, views=0)))
    assert once.solve(setup.params, jax.random.key(1), tasks).tokens.shape[1] == 1


def test_bad_options_are_named():
    for options, message in (
        ({"rows": 5}, "rows must be a multiple of 6; got 5"),
        ({"confidence": 0.0}, "confidence must be above 0 and at most 1; got 0.0"),
        ({"min_keep_rate": 1.5}, "min_keep_rate must be above 0 and at most 1; got 1.5"),
        ({"views": -1}, "views must be at least 0; got -1"),
        ({"rounds": 0}, "rounds must be above zero; got 0"),
        ({"test_prompts": 2}, "test_prompts must be at least 8; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Config(**options)


def test_what_a_command_line_does_not_give_is_the_presets():
    assert parse([], "") == preset() == Config()
    one_view = parse(["--views", "0"], "")
    assert (one_view.confidence, one_view.min_keep_rate) == (0.98, 0.3)
    assert parse(["--views", "0", "--confidence", "0.7"], "").confidence == 0.7
    paper = parse(["--size=paper", "--task", "addition", "--rounds", "2"], "")
    assert (paper.base_levels, paper.steps, paper.rounds) == (16, 10_000, 2)
    assert paper == preset("paper", "addition", rounds=2)
    assert preset("paper").steps == 2000


@pytest.mark.slow
def test_the_published_size():
    params = set_up(preset("paper")).params
    assert 14.0e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 14.4e6
