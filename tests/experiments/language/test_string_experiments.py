"""Both experiments with string rules, at a tiny size, and what they share."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.language import meta_lora, test_time_training
from experiments.language.rules import base_model, config, evaluation, report
from experiments.language.rules import tasks as strings
from metajax.lm import lora

TINY = (
    "--letters", "4", "--length", "2", "--k-shot", "3", "--query", "2", "--width", "32",
    "--layers", "1", "--base-batch", "4", "--rank", "2",
    "--test-episodes", "12",
)  # fmt: skip


def test_no_rule_that_is_held_out_is_trained_on_but_each_of_its_parts_is():
    assert set(config.HELD_OUT) | set(config.SEEN) == set(strings.FAMILIES)
    assert not set(config.HELD_OUT) & set(config.SEEN)
    parts = {part for family in config.SEEN for part in family.split("+")}
    assert all(set(family.split("+")) <= parts for family in config.HELD_OUT)


def test_tasks_are_as_many_of_each_family_in_turn_and_always_the_same():
    options = meta_lora.Config(letters=5, length=3)
    families = ["keep+mirror", "reverse+plain"]
    first, again = (evaluation.draw_tasks(options, families, 5) for _ in range(2))
    tokens = np.asarray(first.query.tokens)
    assert tokens.shape == (8, 8, 8)  # an even number of each, at least five in all
    assert (tokens[:4, :, 4:7] == 4 - tokens[:4, :, :3]).all()
    assert (tokens[4:, :, 4:7] == tokens[4:, :, 2::-1]).all()
    np.testing.assert_array_equal(tokens, again.query.tokens)


@pytest.mark.slow
def test_a_document_has_every_line_of_the_support_set_in_some_order():
    options = meta_lora.Config(letters=6, length=3, k_shot=4, query=2)
    lines = evaluation.draw_tasks(options, ["keep+caesar"], 2)
    documents = test_time_training.as_documents(lines, jax.random.key(0), orders=5)
    assert documents.support.tokens.shape == (2, 5, 32)
    assert documents.query.tokens.shape == (2, 2, 40)
    for task in range(2):
        expected = sorted(np.asarray(lines.support.tokens[task]).tolist())
        found = np.asarray(documents.support.tokens[task]).reshape(5, 4, 8).tolist()
        assert all(sorted(document) == expected for document in found)
        assert len({str(document) for document in found}) > 1
        prompts = np.asarray(documents.query.tokens[task])
        np.testing.assert_array_equal(prompts[:, 32:], lines.query.tokens[task])
    assert int(documents.query.mask.sum()) == 2 * 2 * 3


def test_a_report_has_the_means_and_intervals_of_the_last_step(tmp_path):
    options = meta_lora.Config(out=tmp_path)
    run = common.open_run("meta-lora", options)
    common.create(run)
    words = np.stack([np.zeros(12), np.arange(12.0)], axis=1)
    found = evaluation.Scores(words, words / 2)
    table = report.write_results(
        run, options, {"held-out": {"ours": found}, "seen": {"ours": found.at(0)}},
        title="Title", module="experiments.language.meta_lora", curves=[found.curve("ours")],
        seconds={"tests": 61.0}, facts={"Fact": "it is"},
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    half = 1.96 * np.std(np.arange(12), ddof=1) / np.sqrt(12)
    assert result["summary"]["held-out"]["words"]["ours"] == pytest.approx([5.5, half])
    assert result["summary"]["held-out"]["letters"]["ours"] == pytest.approx([2.75, half / 2])
    assert result["summary"]["seen"]["words"]["ours"] == [0, 0]
    assert result["words_of_held_out_rules"]["ours"] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert f"5.5 ± {half:.1f}" in table
    assert "- Fact: it is" in table
    assert (tmp_path / "adaptation.png").stat().st_size > 1000


def test_each_kind_of_tasks_gets_its_own_scores_of_the_one_program(monkeypatch):
    """Where a task's score is a letter of its own, whole lists would show which rows went where."""

    def letters(learner, variables, tasks):
        found = np.asarray(tasks.query.tokens)[:, 0, :2].astype(float)
        return evaluation.Scores(found, found + variables)

    monkeypatch.setattr(evaluation, "score", letters)
    tasks = evaluation.test_tasks(meta_lora.Config(letters=5, length=3, test_episodes=24))
    found = evaluation.scores_by_kind({"a": (None, 0.0, tasks), "b": (None, 7.0, tasks)})
    assert {kind: list(scores) for kind, scores in found.items()} == {
        "held-out": ["a", "b"], "seen": ["a", "b"],
    }  # fmt: skip
    for kind, of_kind in tasks.items():
        alone = letters(None, 7.0, of_kind)
        np.testing.assert_array_equal(found[kind]["b"].words, alone.words)
        np.testing.assert_array_equal(found[kind]["b"].letters, alone.letters)


@pytest.mark.slow
def test_test_time_training_and_its_base_in_meta_lora(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meta_lora, "SGD_RATES", meta_lora.SGD_RATES[:1])
    monkeypatch.setattr(meta_lora, "ADAM_RATES", meta_lora.ADAM_RATES[:2])
    first, second = tmp_path / "first", tmp_path / "second"
    test_time_training.main(
        [*TINY, "--steps", "2", "--out", str(first), "--adapt-steps", "2", "--orders", "2"]
    )
    result = json.loads((first / "result.json").read_text())
    assert result["tasks"] == {"held-out": 12, "seen": 46}
    assert set(result["summary"]["seen"]["letters"]) == {
        "no adaptation", "in-context prompting", "test-time training", "both",
    }  # fmt: skip
    assert "reverse+caesar: " in (first / "answers.txt").read_text()

    base = first / "base" / "model"
    meta_lora.main(
        [*TINY, "--base", str(base), "--out", str(second), "--steps", "2", "--meta-batch", "2",
         "--tasks-per-chunk", "1", "--inner-steps", "2", "--scratch-width", "32"]
    )  # fmt: skip
    result = json.loads((second / "result.json").read_text())
    assert len(result["summary"]["held-out"]["words"]) == 4
    assert all(len(curve["mean"]) == 3 for curve in result["curves"])
    assert result["seconds"]["base model"] == 0
    assert "meta-learned factors" in capsys.readouterr().out


@pytest.mark.slow
def test_meta_training_leaves_the_base_weights_alone(tmp_path):
    options = meta_lora.Config(
        letters=4, length=2, k_shot=2, query=2, width=32, layers=1, base_batch=4,
        rank=2, steps=2, meta_batch=2, tasks_per_chunk=2, inner_steps=2, out=tmp_path / "run",
    )  # fmt: skip
    run = common.open_run("meta-lora", options)
    base = base_model.base_model(run, options, 1)
    before = jax.tree.map(jnp.copy, base.variables)
    trained = meta_lora.meta_train(
        run, options, "lora", meta_lora.factors_loss(base.model), before, lora.is_factor
    )
    after = trained.params.params
    jax.tree.map(np.testing.assert_array_equal, after["params"], base.variables["params"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after["lora"], base.variables["lora"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_batch": 6}, "base_batch must be a multiple of 4; got 6"),
        ({"width": 48}, "width must be a multiple of 32; got 48"),
        ({"test_episodes": 11}, "test_episodes must be at least 2 for each of 6 families; got 11"),
        ({"rank": 0}, "rank must be above zero; got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        meta_lora.Config(**options)


@pytest.mark.slow
def test_a_base_model_of_another_vocabulary_is_refused(tmp_path):
    options = meta_lora.Config(
        letters=4, length=2, k_shot=2, width=32, layers=1, base_batch=4, out=tmp_path
    )
    run = common.open_run("meta-lora", options)
    base_model.base_model(run, options, 1)
    other = meta_lora.Config(letters=5, length=2, k_shot=2, base=tmp_path / "base" / "model")
    with pytest.raises(common.RunError, match=r"base: .* has 6 tokens .*; 7 and at least"):
        base_model.base_model(run, other, 1)
