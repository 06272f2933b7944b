"""Draws of tokens: beside the inverse of the distribution in NumPy, its frequencies, its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.lm import SamplingParams
from metajax.lm._sampling import choose, drawn, row_keys

ROWS = 4000


def logits_of(vocabulary, rows=1, seed=0):
    return jnp.array(np.random.default_rng(seed).normal(0, 2, (rows, vocabulary)), jnp.float32)


def softmax(scores):
    weights = np.exp(np.array(scores, np.float64) - np.max(scores))
    return weights / weights.sum()


def by_hand(probabilities, size, uniforms):
    """Block by block, then within the block: the first whose cumulated share is above a number."""
    shares = probabilities.reshape(-1, size)
    cumulated = np.cumsum(shares.sum(axis=1))
    block = int(np.argmax(cumulated > uniforms[0] * cumulated[-1]))
    within = np.cumsum(shares[block])
    return block * size + int(np.argmax(within > uniforms[1] * within[-1]))


@pytest.mark.parametrize(("vocabulary", "size"), [(1, 1), (2, 1), (31, 1), (60, 6), (4096, 64)])
def test_draws_are_the_inverse_of_the_distribution(vocabulary, size):
    logits, keys = logits_of(vocabulary, 50), row_keys(jax.random.key(1), 50)
    tokens, log_probs, _ = choose(logits, keys, 3, None, None, SamplingParams(0.7))
    for row in range(50):
        uniforms = jax.random.uniform(jax.random.fold_in(keys[row], 3), (2,))
        wanted = by_hand(softmax(logits[row] / 0.7), size, np.array(uniforms, np.float64))
        assert int(tokens[row]) == wanted
        assert float(log_probs[row]) == pytest.approx(
            np.log(softmax(logits[row])[wanted]), abs=1e-5
        )


@pytest.mark.parametrize(
    ("vocabulary", "options"),
    [
        (3, {}),
        (31, {}),
        (48, {"temperature": 0.6}),
        (48, {"top_k": 9}),
        (48, {"top_p": 0.8, "temperature": 1.4}),
        (48, {"allowed": True, "top_k": 20, "top_p": 0.9}),
        (48, {"seen": True, "repetition_penalty": 1.5, "allowed": True}),
    ],
)
def test_frequencies_are_the_probabilities(vocabulary, options):
    options = dict(options)
    logits = logits_of(vocabulary)
    allowed = jnp.arange(vocabulary) % 3 != 1 if options.pop("allowed", False) else None
    seen = jnp.arange(vocabulary) % 2 == 0 if options.pop("seen", False) else None
    temperature = options.pop("temperature", 1.0)
    sampling = SamplingParams(temperature, **options)
    rows = lambda leaf: None if leaf is None else jnp.broadcast_to(leaf, (ROWS, vocabulary))
    tokens, *_ = choose(
        rows(logits), row_keys(jax.random.key(0), ROWS), 0, rows(allowed), rows(seen), sampling
    )

    scores = np.array(logits[0], np.float64)
    if seen is not None:
        penalty = sampling.repetition_penalty
        penalised = np.where(scores < 0, scores * penalty, scores / penalty)
        scores = np.where(seen, penalised, scores)
    if allowed is not None:
        scores[~np.array(allowed)] = -np.inf
    if sampling.top_k is not None:
        scores[np.argsort(-scores)[sampling.top_k :]] = -np.inf
    wanted = softmax(scores / temperature)
    if sampling.top_p is not None:
        order = np.argsort(-wanted)
        ahead = np.cumsum(wanted[order]) - wanted[order]
        wanted[order[ahead >= sampling.top_p]] = 0
        wanted /= wanted.sum()
    counts = np.bincount(tokens, minlength=vocabulary)
    assert not counts[wanted == 0].any()
    order = np.argsort(wanted)[: np.count_nonzero(np.cumsum(np.sort(wanted)) * ROWS < 8)]
    groups = np.arange(vocabulary)
    groups[order] = vocabulary  # the rarest are one group
    count = lambda of: np.bincount(groups, of, minlength=vocabulary + 1)
    found, expected = count(counts), count(ROWS * wanted)
    kept = expected > 0
    statistic = ((found - expected)[kept] ** 2 / expected[kept]).sum()
    assert scipy.stats.chi2.sf(statistic, kept.sum() - 1) > 1e-3


def test_a_weight_of_zero_is_never_drawn():
    last = np.nextafter(np.float32(1), np.float32(0))
    uniforms = jnp.array([0, 1e-38, 0.5, 1 - 2**-23, last], jnp.float32)[:, None]
    generator = np.random.default_rng(0)
    for _ in range(50):
        weights = generator.exponential(size=(1, 700)).astype(np.float32) ** 4
        weights[:, generator.random(700) < 0.7] = 0
        weights[:, -3:] = weights[:, :3] = 0
        found = drawn(jnp.repeat(weights, 5, axis=0), uniforms)
        assert (weights[0, found] > 0).all()
        places = np.flatnonzero(weights[0])
        assert found[0] == places[0]
        assert found[-1] == places[-1] or weights[0, places[-1]] < 1e-5 * weights.sum()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("temperature", [1e-4, 1.0, 50.0])
def test_a_token_that_is_not_allowed_is_never_drawn(dtype, temperature):
    logits = logits_of(60, 500).astype(dtype) * 30
    allowed = jnp.arange(60) >= 59
    tokens, log_probs, _ = choose(
        logits, row_keys(jax.random.key(0), 500), 0, allowed, None, SamplingParams(temperature)
    )
    assert (tokens == 59).all()
    wanted = jax.nn.log_softmax(logits.astype(jnp.float32))[:, 59]
    np.testing.assert_allclose(log_probs, wanted, rtol=1e-6, atol=1e-4)


def test_a_row_is_drawn_alike_whatever_the_others():
    logits, keys = logits_of(4096, 64), row_keys(jax.random.key(2), 64)
    together, *_ = choose(logits, keys, 0, None, None, SamplingParams(1.0))
    for rows in (slice(0, 1), slice(5, 16), slice(32, 64)):
        some, *_ = choose(logits[rows], keys[rows], 0, None, None, SamplingParams(1.0))
        assert some.tolist() == together[rows].tolist()


@pytest.mark.parametrize("vocabulary", [1, 31, 60, 4096])
def test_the_likeliest_is_the_first_of_the_highest(vocabulary):
    logits = jnp.round(logits_of(vocabulary, 200))  # with ties
    tokens, log_probs, _ = choose(
        logits, row_keys(jax.random.key(0), 200), 0, None, None, SamplingParams()
    )
    assert tokens.tolist() == np.argmax(logits, axis=1).tolist()
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits).max(axis=1), atol=1e-5)
