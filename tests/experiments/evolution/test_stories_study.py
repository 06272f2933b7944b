"""Stories with given words: the checker, the guard, the reward, and a run."""

import itertools
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.evolution.pretrained import random_checkpoint
from experiments.evolution.pretrained.families import stories as family
from experiments.evolution.stories import fluency, own_stories, train
from experiments.evolution.stories.config import Config, kept_back, set_up
from metajax import evolve as ev

TINY = (
    "--stories", "4", "--imitated", "4", "--longest", "32", "--rounds", "3", "--round-steps", "1",
    "--proposals", "4", "--samples", "2", "--batch", "2", "--chunk", "4", "--held-out", "4",
    "--validation", "2", "--test-prompts", "2",
)  # fmt: skip
ASKED = (
    "Once upon a time, there was a dog. The dog saw a hat. The hat saw a tree. The tree liked the "
    "dog. The dog liked the hat. The hat liked the tree. One day, the dog, the hat and the tree "
    "were"
)


def test_a_question_names_three_different_known_words_in_the_alphabets_order():
    assert family.question(["tree", "dog", "hat"]) == ASKED
    assert family.words_of(ASKED) == ["dog", "hat", "tree"]
    for other in (
        ASKED[:-1],
        " " + ASKED,
        ASKED.replace("hat", "dog"),
        ASKED.replace("dog", "zebra"),
        ASKED.replace("dog", "x").replace("hat", "dog").replace("x", "hat"),
        ASKED.replace("The hat liked", "The tree liked"),
    ):
        assert family.read(other) is None
        assert family.check(other, "A dog, a hat, a tree.") == 0
    rng = np.random.default_rng(0)
    drawn = [family.write(rng, 1) for _ in range(200)]
    assert len(set(drawn)) > 190
    for text in drawn:
        words = family.words_of(text)
        assert len(set(words)) == 3
        assert family.question(words) == text
        assert len(text) <= family.stories().longest(1)[0]


@pytest.mark.parametrize(
    ("story", "right"),
    [
        ("The dog had a hat. It sat by a tree.", True),
        ('DOG and Hat. "Tree!"', True),
        ("The dogs had a hat. It sat by a tree.", False),
        ("The dog had a hat by a tree", False),
        ("The dog had a hat, she said by the tree,", False),
        ("The dog had a hat.", False),
        ("A dog sat by a tree. He liked his hat. He liked his hat. He liked his hat.", False),
        ("A dog sat by a tree. He liked his hat. He liked his hat. He ran.", True),
        ("", False),
    ],
)
def test_whole_words_and_an_ending_make_a_story_right(story, right):
    assert family.check(ASKED, story) == right
    assert family.check(ASKED, " " + story + "\n") == right


def test_losses_are_those_of_a_table_of_bigrams():
    table = np.random.default_rng(0).normal(size=(5, 5))
    losses = fluency.losses_of(lambda params, tokens: params[tokens], 6)
    texts = [[1, 2, 3], [4, 4], *[[0, 1, 2, 3, 4, 0]] * 20]
    sums, counts = losses(jnp.asarray(table), texts)
    log_probs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    wanted = [-sum(log_probs[a, b] for a, b in itertools.pairwise(text)) for text in texts]
    np.testing.assert_allclose(sums, wanted, rtol=1e-5)
    assert counts.tolist() == [2, 1] + 20 * [5]
    assert fluency.perplexity((sums, counts)) == pytest.approx(
        np.exp(sum(wanted) / (3 + 100)), rel=1e-5
    )


def verdict_of(rewards):
    """A verifier that gives these rewards, and tasks and completions of their shape."""
    rewards = np.array(rewards, np.float32)
    tokens = np.arange(rewards.size).reshape(*rewards.shape, 1) + 1
    one, lengths = np.ones(len(rewards), int), np.ones(rewards.shape, int)
    tasks = ev.Tasks(one[:, None], one, one, one > 0)
    completions = ev.Completions(tokens, 0.0 * tokens, lengths, lengths > 0)
    verifier = ev.Verifier("given", lambda tasks, completions: fluency.judged(rewards), True)
    return verifier, tasks, completions


def test_the_guard_refuses_right_but_unlikely_answers():
    verifier, tasks, completions = verdict_of([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    asked = []

    def likelihood(answers):
        asked.extend(answers)
        return np.array([-float(answer[0]) for answer in answers])

    verdict = fluency.fluent(verifier, likelihood, -2.0).verify(tasks, completions)
    assert asked == [[1], [2], [5]], "wrong answers aren't scored"
    assert np.asarray(verdict.rewards).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert np.asarray(verdict.weight).tolist() == [1, 0, 0]
    assert verdict.agreement == pytest.approx([2 / 3, 0, 0])


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(folder, seed=1, n_layers=1, max_length=1024)
    config = Config(checkpoint=folder, longest=200, held_out=8, validation=4)
    return set_up(common.Run("evolve-stories", folder, config), config)


def test_a_part_of_the_words_earns_a_part():
    for story, earned in (
        ("The dog had a hat. It sat by a tree.", 1),
        ("The dog sat by a tree.", 4 / 9),
        ("A dog ran.", 1 / 9),
        ("A cat ran.", 0),
        ("The dog had a hat by a tree", 0),
    ):
        assert train.reward(ASKED, story) == pytest.approx(earned)
    assert train.reward("Another question.", "The dog had a hat. It sat by a tree.") == 0


def test_free_stories_are_imitated_but_for_their_first_token():
    found = own_stories.examples([[1, 2, 3], [1, 4]])
    assert found.tokens.tolist() == [[1, 2, 3], [1, 4, 0]]
    assert (found.prompt.tolist(), found.lengths.tolist()) == ([1, 1], [3, 2])
    assert found.weights.tolist() == [1, 1]


def test_the_tests_validation_and_held_out_tasks_are_kept_back(setup):
    never = kept_back(setup)
    assert np.isin(ev.fingerprints(setup.tests), never).all()
    assert np.isin(ev.fingerprints(setup.validation), never).all()
    assert len(never) == 300 + 8 + 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"doubtful": 1.0}, "doubtful must be between 0 and 1"),
        ({"test_prompts": 1}, "test_prompts must be at least 2"),
        ({"imitation": 0}, "imitation must be between 0 and 1"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"steps": 5}, "steps must be 0"),
    ],
)
def test_a_wrong_option_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        Config(**options)


def test_options_that_do_not_fit_the_checkpoint_are_named(setup, tmp_path):
    config = Config(checkpoint=setup.config.checkpoint, longest=1100)
    with pytest.raises(common.RunError, match=r"longest: .* takes 1024 tokens"):
        set_up(common.Run("evolve-stories", tmp_path, config), config)


def lines(out):
    """The rounds' metrics without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in common.read_metrics(out / "rounds" / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_random_weights_pose_nothing_and_the_run_says_so(tmp_path, capsys):
    out, real = tmp_path / "run", tmp_path / "real.txt"
    real.write_text("A dog ran.\n\nThe cat sat on a hat.\n")
    train.main([*TINY, "--real", str(real), "--out", str(out)])
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "the proposer wrote no valid task in 3 rounds in a row" in table
    assert "random weights" in table
    assert "perplexity, real stories" in table
    assert str(tmp_path) not in table
    result = json.loads((out / "result.json").read_text())
    models = result["tested"]["models"]
    assert set(models) == {"base", "round 0", "last round"}
    assert models["base"]["perplexity_real"] > 10
    assert models["base"]["perplexity_own"] == models["round 0"]["perplexity_own"]
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif("METAJAX_STORIES" not in os.environ, reason="METAJAX_STORIES isn't set")
def test_a_model_of_stories_learns_and_a_resumed_run_gives_the_same_bits(tmp_path):
    out = tmp_path / "run"
    options = [
        "--checkpoint", os.environ["METAJAX_STORIES"], "--stories", "32", "--imitated", "32",
        "--rounds", "1", "--round-steps", "2", "--proposals", "8", "--samples", "2", "--batch", "8",
        "--chunk", "32",
        "--held-out", "8", "--validation", "8", "--test-prompts", "8", "--gate", "none",
        "--out", str(out),
    ]  # fmt: skip
    train.main(options)
    before = lines(out)
    assert before[1]["valid"] > 0, "it poses tasks"
    models = json.loads((out / "result.json").read_text())["tested"]["models"]
    assert 2.5 < models["base"]["perplexity_own"] < 4.5
    assert models["last round"]["perplexity_own"] < 1.5 * models["base"]["perplexity_own"]
    shutil.rmtree(out / "rounds" / "checkpoints" / "1")
    train.main([*options, "--resume"])
    assert lines(out) == before
