"""Self-evolution on strings of digits: a tiny run, its resume, and what damages labels."""

import json
import shutil

import numpy as np
import pytest

from experiments.evolution import study
from experiments.evolution.strings import train
from experiments.evolution.strings.config import SIZES
from metajax import evolve as ev

TINY = (
    "--steps", "40", "--rounds", "3", "--round-steps", "4", "--proposals", "16", "--rows", "6",
    "--base-levels", "2", "--test-prompts", "8", "--confidence", "0.05", "--row-length", "32",
    "--log-every", "20", "--views", "0",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_model():
    """Most of a test's time is compilation: a model of one block."""
    size = SIZES["small"]
    model = {"width": 16, "n_layers": 1, "n_heads": 2, "mlp_width": 16}
    SIZES["small"] = size._replace(model=model)
    yield
    SIZES["small"] = size


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolve") / "run"
    train.main([*TINY, "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_a_run_leaves_its_table_its_curves_and_some_of_its_tasks(finished):
    result = json.loads((finished / "result.json").read_text())
    assert set(result["tested"]) == {"round 0", "last round", "control"}
    assert set(result["tested"]["control"]) == {f"exact_{level}" for level in range(1, 8)}
    table = (finished / "table.md").read_text()
    assert "no oracle" in table
    assert "a program (as published)" in table
    assert (finished / "lengths.png").stat().st_size > 5000
    assert "=" in (finished / "tasks.txt").read_text()
    lines = [
        json.loads(line) for line in (finished / "rounds/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all("exact_3" in line for line in lines)
    assert lines[-1]["stopped"]


@pytest.mark.slow
def test_the_control_trains_as_many_steps_of_as_many_tokens(finished):
    tokens = json.loads((finished / "result.json").read_text())["tokens"]
    learned = [
        json.loads(line).get("tokens_trained", 0)
        for line in (finished / "rounds/metrics.jsonl").read_text().splitlines()
    ]
    assert tokens["rounds"] == sum(learned)
    if tokens["rounds"]:
        ratio = tokens["control, after the base model"] / tokens["rounds"]
        assert 0.8 < ratio < 1.25


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_bit_for_bit(finished, tmp_path):
    folder = tmp_path / "run"
    original = study.evolve

    class Stopped(Exception):
        pass

    def stopping(parts, state, **options):
        for outcome in original(parts, state, **options):
            yield outcome
            if int(outcome[0].round) == 1:
                raise Stopped

    checkpoints = folder / "rounds" / "checkpoints"
    study.evolve = stopping
    try:
        with pytest.raises(Stopped):
            train.main([*TINY, "--out", str(folder)])
        # As a kill leaves it that comes while the first is written.
        shutil.rmtree(checkpoints / "1")
        (checkpoints / "0" / "SHA256SUMS").unlink()
        with pytest.raises(Stopped), pytest.warns(UserWarning, match="was not written to its end"):
            train.main([*TINY, "--out", str(folder), "--resume"])
    finally:
        study.evolve = original
    train.main([*TINY, "--out", str(folder), "--resume", "--control", "no"])
    timed = lambda line: {
        name: value for name, value in json.loads(line).items() if not name.startswith("seconds")
    }
    ours, wanted = (
        [timed(line) for line in (path / "rounds/metrics.jsonl").read_text().splitlines()]
        for path in (folder, finished)
    )
    assert ours == wanted


@pytest.mark.parametrize("damage", ["once", "always"])
def test_damage_drops_a_digit_from_half_of_the_answers(damage):
    config = train.Config(damage=damage)
    answers = np.array([[[1, 2, 3, 4, 13, 0]], [[5, 6, 7, 8, 13, 0]]])
    completions = ev.Completions(answers, -answers / 10, np.array([[5], [5]]), np.ones((2, 1), bool))
    damaged = train.damage_of(config)
    assert damaged(2, completions) is completions
    tokens, log_probs, lengths, _ = damaged(3, completions)
    assert tokens[:, 0].tolist() == [[1, 2, 4, 13, 0, 0], [5, 6, 7, 8, 13, 0]]
    np.testing.assert_allclose(log_probs, -tokens / 10)
    assert lengths.tolist() == [[4], [5]]
    assert (damaged(4, completions) is completions) == (damage == "once")


@pytest.mark.parametrize("task", ["copy", "addition"])
def test_evaluation_prompts_are_not_those_of_the_gate_nor_of_the_proposer(task):
    """Of the lengths that the model teaches itself; there are too few short strings."""
    setting = train.setting_of(train.Config(task=task, proposals=64))
    parts = train.parts_of(setting)
    first = setting.config.base_levels + 1
    levels = ev.Levels(first, first + 1)
    proposed = ev.fingerprints(parts.propose(None, train.jax.random.key(0), levels))
    held_out = ev.gates.held_out_fingerprints(parts.held_out(levels))
    tests = ev.fingerprints(
        setting.problem.draw(
            train.jax.random.fold_in(train.jax.random.key(train.TEST_SEED), first),
            np.full(64, first),
        )
    )
    assert not np.isin(tests, held_out).any()
    assert not np.isin(tests, proposed).any()


def test_each_task_is_asked_in_other_words_and_only_what_agrees_is_kept():
    setting = train.setting_of(train.Config(proposals=16, views=2))
    parts = train.parts_of(setting)
    tasks = parts.propose(None, train.jax.random.key(0), ev.Levels(9, 9))
    completions = parts.solve(setting.params, train.jax.random.key(1), tasks)
    assert completions.tokens.shape[:2] == (16, 3)
    alike = (completions.tokens == completions.tokens[:, :1]).all(axis=(1, 2))
    kept = np.asarray(parts.verifier.verify(tasks, completions).weight) > 0
    assert not kept[~alike].any()
    assert "100% of the samples agree" in parts.verifier.name
    once = train.parts_of(setting._replace(config=train.Config(**{
        **vars(setting.config), "views": 0,
    })))  # fmt: skip
    assert once.solve(setting.params, train.jax.random.key(1), tasks).tokens.shape[1] == 1


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
            train.Config(**options)


def test_where_views_agree_less_confidence_and_a_higher_yield_are_asked_for():
    views, alone = (train.setting_of(train.Config(views=count)).config for count in (3, 0))
    assert (views.confidence, views.min_keep_rate) == (0.5, 0.5)
    assert (alone.confidence, alone.min_keep_rate) == (0.98, 0.3)
    own = train.setting_of(train.Config(confidence=0.7, min_keep_rate=0.6)).config
    assert (own.confidence, own.min_keep_rate) == (0.7, 0.6)


@pytest.mark.slow
def test_the_published_size_of_each_task():
    copying, adding = (
        train.setting_of(train.Config(size="paper", task=task)) for task in ("copy", "addition")
    )
    assert (copying.config.base_levels, copying.config.steps) == (10, 2000)
    assert (adding.config.base_levels, adding.config.steps) == (16, 10_000)
    assert adding.config.proposals == 50_000
    parameters = sum(leaf.size for leaf in train.jax.tree.leaves(copying.params))
    assert 14.0e6 < parameters < 14.4e6
