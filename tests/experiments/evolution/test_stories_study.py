"""Stories with given words: the checker, the guard, words put in front afterwards, and a run."""

import itertools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from experiments.evolution.pretrained import random_checkpoint
from experiments.evolution.pretrained.families import stories as family
from experiments.evolution.stories import fluency, own_stories, train
from experiments.evolution.stories.config import Config, kept_back, prompts, set_up
from metajax import evolve as ev

TINY = (
    "--stories", "16", "--longest", "32", "--learned", "144", "--steps", "1", "--rounds", "3",
    "--round-steps", "1", "--proposals", "4", "--samples", "2", "--batch", "2", "--chunk", "4",
    "--held-out", "4", "--validation", "2", "--test-prompts", "2",
)  # fmt: skip
ASKED = "The dog saw the hat and the tree. The dog liked the hat. The hat liked the tree.\n"


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
    tasks = ev.Tasks(np.ones((len(rewards), 1)), *np.ones((2, len(rewards)), int), rewards[:, 0] < 2)
    lengths = np.ones(rewards.shape, int)
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


def test_three_in_ten_verdicts_are_turned_round_in_one_round_alone():
    rewards = np.random.default_rng(1).random((300, 4)) < 0.4
    verifier, tasks, completions = verdict_of(rewards)
    damaged, round_is = train.turned_round(verifier, seed=0)
    for number in (1, 2, 3):
        assert round_is(number, completions) is completions
        found = damaged.verify(tasks, completions)
        share = float((np.asarray(found.rewards) != rewards).mean())
        assert (0.26 < share < 0.34) if number == 2 else share == 0
        assert (np.asarray(found.weight) == np.asarray(found.rewards).any(axis=1)).all()


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(folder, seed=1, layers=1, max_length=512)
    config = Config(checkpoint=folder, longest=200, learned=300, held_out=8, validation=4)
    return set_up(common.Run("evolve-stories", folder, config), config)


def test_words_in_front_are_those_of_the_story_and_held_out_ones_never(setup):
    texts = [
        " The dog had a hat. It sat by a tree.",
        " A cat ran",
        " A ball, a car, a bird and a frog.",
    ]
    encode = lambda text: setup.tokenizer.encode(text, add_special_tokens=False)
    rows = [[*encode(text), setup.problem.end] for text in texts]
    tokens = np.zeros((3, 60), int)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    stories = own_stories.OwnStories(tokens, np.array([len(r) for r in rows]), np.ones(3, bool))
    relabelled = own_stories.Relabelled(setup, stories, kept_back(setup))
    assert relabelled.count == 2
    asked = set()
    for seed in range(8):
        found = relabelled(jax.random.key(seed))
        assert len(found.tokens) == 5
        assert found.weights.sum() == pytest.approx(1)
        headed = found.prompt > 1
        assert found.weights[headed].sum() == pytest.approx(setup.config.asked)
        for row, prompt, length in zip(
            *(leaf[headed] for leaf in (found.tokens, found.prompt, found.lengths)), strict=True
        ):
            text = setup.tokenizer.decode(row[1:prompt].tolist())
            story = setup.tokenizer.decode(row[prompt : length - 1].tolist())
            assert row[length - 1] == setup.problem.end
            assert family.check(text, story) == 1
            asked.add(text)
    assert len(asked) > 2, "other words for each key"
    never = ev.fingerprints(prompts([[setup.problem.begin, *encode(ASKED)]]))
    found = own_stories.Relabelled(setup, stories, never)(jax.random.key(0))
    assert len(found.tokens) == 4


def test_the_tests_validation_and_held_out_tasks_are_kept_back(setup):
    never = kept_back(setup)
    assert np.isin(ev.fingerprints(setup.tests), never).all()
    assert np.isin(ev.fingerprints(setup.validation), never).all()
    assert len(never) == 300 + 8 + 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"asked": 1.0}, "asked must be between 0 and 1"),
        ({"test_prompts": 1}, "test_prompts must be at least 2"),
        ({"learned": 0}, "learned"),
    ],
)
def test_a_wrong_option_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        Config(**options)


def test_options_that_do_not_fit_the_checkpoint_are_named(setup, tmp_path):
    for longest, learned, named in (
        (600, 320, "longest: .* takes 512 tokens"),
        (100, 50, "learned must be above"),
    ):
        config = Config(checkpoint=setup.config.checkpoint, longest=longest, learned=learned)
        with pytest.raises(common.RunError, match=named):
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
    assert models["base"]["perplexity_own"] != models["round 0"]["perplexity_own"]
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif("METAJAX_STORIES" not in os.environ, reason="METAJAX_STORIES isn't set")
def test_a_model_of_stories_learns_and_a_resumed_run_gives_the_same_bits(tmp_path):
    out = tmp_path / "run"
    options = [
        "--checkpoint", os.environ["METAJAX_STORIES"], "--stories", "64", "--longest", "320",
        "--steps", "10", "--rounds", "1", "--round-steps", "2", "--proposals", "8", "--chunk", "32",
        "--held-out", "8", "--validation", "8", "--test-prompts", "8", "--gate", "none",
        "--out", str(out),
    ]  # fmt: skip
    train.main([*options, "--control", "no"])
    before = lines(out)
    assert before[1]["valid"] > 0, "it poses tasks"
    models = json.loads((out / "result.json").read_text())["tested"]["models"]
    assert models["base"]["perplexity_own"] == pytest.approx(3.8, abs=0.4)
    assert models["last round"]["perplexity_own"] < 1.5 * models["base"]["perplexity_own"]
    shutil.rmtree(out / "rounds" / "checkpoints" / "1")
    train.main([*options, "--control", "no", "--resume"])
    assert lines(out) == before
