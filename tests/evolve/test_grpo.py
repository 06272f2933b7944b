"""GRPO and its published variants beside sums by hand, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import COPY, solved

from metajax import evolve as ev
from metajax.evolve.grpo import _advantages, _scored
from metajax.trainer import episode_keys

PARAMS = {"table": 0.3 * jax.random.normal(jax.random.key(0), (14, 14)), "bias": jnp.zeros(14)}
SAMPLES = 3
RATE = 10.0
"""Large, so that a step takes ratios beyond the bounds of clipping."""


def apply(params, tokens, **_):
    """A bigram model."""
    return params["table"][tokens] + params["bias"]


def data_of(rewards=None):
    """Answers of three lengths; the first sample is right, of the last task all are, of the first
    two the second too. A wrong one of the fourth task doesn't end."""
    levels = [2, 3, 4, 2, 3, 4]
    tasks = COPY.draw(jax.random.key(0), levels)
    wrong = [(), (2, 3, 4), (0, 1, 2, 3, 4)]
    parts = [solved(COPY, tasks, wrong=rows) for rows in wrong]
    completions = ev.Completions(
        *(np.concatenate(leaves, axis=1) for leaves in zip(*parts, strict=True))
    )
    completions.ended[3, 2] = False
    verdict = ev.Verdict(np.zeros(6, int), np.ones(6), np.ones(6), rewards)
    rollouts = ev.Rollouts(tasks, completions, verdict)
    real = ev.real_examples(COPY, jax.random.key(1), [1, 2], 12)
    return ev.TrainingData(real, (), ev.labelled_examples(rollouts), rollouts)


def log_prob(params, before, token, temperature):
    logits = (params["table"][before] + params["bias"]) / temperature
    top = max(logits)
    return logits[token] - top - math.log(sum(math.exp(each - top) for each in logits))


def advantage_by_hand(data, task, sample, standardise):
    tokens, _, lengths, _ = data.rollouts.completions
    rewards = data.rollouts.verdict.rewards
    if rewards is None:
        own = lambda s: tokens[task, s, : lengths[task, s]].tolist()
        earned = [float(own(s) == own(0)) for s in range(SAMPLES)]
    else:
        earned = rewards[task].tolist()
    mean = sum(earned) / SAMPLES
    spread = math.sqrt(sum((each - mean) ** 2 for each in earned) / SAMPLES)
    return (earned[sample] - mean) / (spread if standardise else 1.0)


def texts_by_hand(data, rows, standardise):
    """Tokens, where the answer begins, and advantage; None for real data."""
    tasks, (tokens, _, lengths, _) = data.rollouts.tasks, data.rollouts.completions
    for row in rows:
        task, sample = divmod(int(row), SAMPLES)
        if task < len(tokens):
            prompt = tasks.prompts[task][-tasks.lengths[task] :].tolist()
            answer = tokens[task, sample, : lengths[task, sample]].tolist()
            advantage = advantage_by_hand(data, task, sample, standardise)
            yield prompt + answer, len(prompt), advantage
        else:
            place = int(row) - len(tokens) * SAMPLES
            real = data.real
            yield real.tokens[place, : real.lengths[place]].tolist(), real.prompt[place], None


def loss_by_hand(params, old, anchor, texts, *, temperature, kl, clip, normalise):
    """The loss, the mean of the divergence, and how many tokens were clipped on each side."""
    params, old, anchor = (
        {name: np.asarray(leaf, np.float64) for name, leaf in each.items()}
        for each in (params, old, anchor)
    )
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    answers, divergences, below, above = [], [], 0, 0
    for tokens, start, advantage in texts:
        losses = []
        for before, token in itertools.pairwise(tokens[start - 1 :]):
            if advantage is None:
                losses.append(-log_prob(params, before, token, 1.0))
                continue
            new, was, first = (
                log_prob(p, before, token, temperature) for p in (params, old, anchor)
            )
            ratio = math.exp(new - was)
            clipped = min(max(ratio, 1 - low), 1 + high)
            divergence = math.exp(first - new) - (first - new) - 1
            losses.append(-min(ratio * advantage, clipped * advantage) + kl * divergence)
            divergences.append(divergence)
            below += advantage < 0 and ratio < 1 - low
            above += advantage > 0 and ratio > 1 + high
        answers.append(losses)
    if normalise == "tokens":
        loss = sum(map(sum, answers)) / sum(map(len, answers))
    elif normalise == "answers":
        loss = sum(sum(losses) / len(losses) for losses in answers) / len(answers)
    else:
        loss = sum(sum(losses) / normalise for losses in answers) / len(answers)
    return loss, sum(divergences) / len(divergences), below, above


GRADED = np.array([[0.5, 1, 0], [0, 0, 0.1], [1, 1, 0], [2, 1, -1], [0.1, 0.1, 0.1], [0, 1, 1]])
VARIANTS = {
    "default": {},
    "GRPO": {"normalise": "answers", "kl": 0.04},
    "DAPO": {"normalise": "tokens", "clip": (0.2, 0.28), "kl": 0.0, "only_ended": True},
    "Dr. GRPO": {"normalise": 6, "kl": 0.0},
    "Dr. GRPO with divergence": {"normalise": 6.0, "kl": 0.1, "clip": 0.1, "temperature": 1.0},
    "graded": {"normalise": "answers", "clip": (0.1, 0.4)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_sums_by_hand(name):
    """In the second round, where anchor, old policy and new policy are three, at two steps: before
    and after ratios have left the bounds."""
    data = data_of(GRADED if name == "graded" else None)
    options = {"temperature": 0.7, "kl": 0.05, "clip": 0.2, "normalise": "tokens"} | VARIANTS[name]
    only_ended = options.pop("only_ended", False)
    standardise = isinstance(options["normalise"], str)
    build = lambda steps: ev.grpo(
        apply, optax.sgd(RATE), steps=steps, batch=48, micro_batches=2, real_share=0.3,
        **options, only_ended=only_ended,
    )  # fmt: skip
    one, two = build(1), build(2)
    middle, *_ = one.update(one.init(PARAMS, jax.random.key(4)), data, jax.random.key(0))
    after, *_ = one.update(middle, data, jax.random.key(0))
    last, metrics, _ = two.update(middle, data, jax.random.key(0))
    *_, chances = _scored(
        data.rollouts, data.real, 0.3, standardise=standardise, only_ended=only_ended
    )
    beyond = np.zeros(2, int)
    for number, (params, moved) in enumerate(((middle, after), (after, last))):
        parts = []
        for key in episode_keys(jax.random.key(4), 1 + number, 2):
            rows = jax.random.categorical(key, jnp.log(chances), shape=(24,))
            parts.append(list(texts_by_hand(data, rows, standardise)))

        def by_hand(at, parts=parts):
            found = [loss_by_hand(at, middle.params, PARAMS, part, **options) for part in parts]
            return np.mean(found, axis=0), np.sum(found, axis=0)

        (loss, divergence, *_), (*_, below, above) = by_hand(params.params)
        beyond += int(below), int(above)
        assert float(metrics["loss"][number]) == pytest.approx(loss, rel=1e-4, abs=1e-5)
        if options["kl"]:
            assert float(metrics["kl"][number]) == pytest.approx(divergence, rel=1e-3)
        gradient = jax.tree.map(
            lambda a, b: (np.asarray(a, np.float64) - b) / RATE, params.params, moved.params
        )
        rng = np.random.default_rng(number)
        for _ in range(3):
            ahead = {each: rng.normal(size=gradient[each].shape) for each in gradient}
            shifted = lambda by, ahead=ahead, at=params.params: {
                each: np.asarray(at[each], np.float64) + by * ahead[each] for each in at
            }
            slope = (by_hand(shifted(1e-5))[0][0] - by_hand(shifted(-1e-5))[0][0]) / 2e-5
            along = sum(float((gradient[each] * ahead[each]).sum()) for each in gradient)
            assert along == pytest.approx(slope, rel=2e-3, abs=2e-5)
    assert (beyond > 0).all(), "clipping acts on both sides"


def test_what_is_drawn():
    data = data_of()
    *_, chances = _scored(data.rollouts, data.real, 0.25)
    drawn = chances[:18].reshape(6, 3) > 0
    assert drawn[:5].all()
    assert not drawn[5].any(), "all are right"
    *_, chances = _scored(data.rollouts, data.real, 0.25, only_ended=True)
    assert np.argwhere(drawn != (chances[:18].reshape(6, 3) > 0)).tolist() == [[3, 2]]
    alike = data_of(np.full((6, 3), 0.1))
    assert not _advantages(alike.rollouts).any(), "rounding makes nothing of equal rewards"


def test_a_standard_deviation_of_a_sample_makes_advantages_smaller_by_a_factor():
    rollouts = data_of(GRADED).rollouts
    other = GRADED[:4] - GRADED[:4].mean(axis=1, keepdims=True)
    other /= GRADED[:4].std(axis=1, ddof=1, keepdims=True)
    np.testing.assert_allclose(_advantages(rollouts)[:4] * math.sqrt(2 / 3), other, rtol=1e-12)


def test_rewards_of_untrusted_and_invalid_tasks_are_nothing():
    rollouts = data_of(GRADED).rollouts
    verdict = rollouts.verdict._replace(weight=np.array([1, 0, 1, 1, 1, 1.0]))
    tasks = rollouts.tasks._replace(valid=np.array([1, 1, 0, 1, 1, 1], bool))
    found = ev.rewards_of(rollouts._replace(tasks=tasks, verdict=verdict))
    np.testing.assert_array_equal(found, GRADED * np.array([1, 0, 0, 1, 1, 1])[:, None])


@pytest.mark.parametrize("normalise", ["answers", "tokens", 6.0])
def test_tokens_without_any_probability_leave_the_gradient_finite(normalise):
    """Real ones and padding of which the model is sure that they can't be."""
    params = {"table": 300 * PARAMS["table"], "bias": PARAMS["bias"]}
    update = ev.grpo(
        apply, optax.sgd(0.1), steps=1, batch=48, micro_batches=1, kl=0.1, normalise=normalise
    )
    new, metrics, _ = update.update(update.init(params, jax.random.key(0)), data_of(), None)
    assert jnp.isfinite(metrics["loss"]).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "clip must be a positive finite number, got 0.0"),
        ({"clip": (0.2,)}, r"clip must be a number or a pair \(low, high\), got \(0.2,\)"),
        ({"clip": (0.2, -1.0)}, r"clip\[1\] must be a positive finite number, got -1.0"),
        ({"clip": "0.2"}, "clip must be a positive number, got '0.2'"),
        ({"normalise": "dapo"}, "normalise must be one of 'answers', 'tokens', got 'dapo'"),
        ({"normalise": 0}, "normalise must be a positive finite number, got 0"),
        ({"normalise": None}, "normalise must be a positive number, got None"),
        ({"only_ended": 1}, "only_ended must be True or False, got int 1"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ev.grpo(apply, optax.sgd(1.0), steps=1, **options)
