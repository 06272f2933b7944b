"""The loss of a language model, packed rows, samplers, and training as a learner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.lm import (
    TokenBatch,
    as_episodes,
    next_token_loss,
    pack,
    row_sampler,
    supervised,
    text_sampler,
)
from metajax.models import Transformer, TransformerConfig

CONFIG = TransformerConfig.gpt2(vocab_size=11, width=8, n_layers=1, n_heads=2, scan=False)


@pytest.fixture(scope="module")
def model():
    tokens = jnp.zeros((1, 8), jnp.int32)
    params, apply = metajax.from_linen(Transformer(CONFIG), jax.random.key(0), tokens)
    return jax.tree.map(lambda leaf: 5 * leaf, params), apply


def documents(*lengths):
    random = np.random.default_rng(0)
    return [random.integers(0, 11, length) for length in lengths]


@pytest.mark.slow
def test_the_loss_is_the_mean_over_targets_that_count(model):
    params, apply = model
    tokens = jnp.asarray(np.stack(documents(6, 6)))
    mask = jnp.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    logits = np.asarray(apply(params, tokens[:, :-1]), np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [logits[row, t - 1, tokens[row, t]] for row, t in ((0, 2), (0, 3), (1, 5))]
    loss, metrics = next_token_loss(apply)(params, TokenBatch(tokens, mask=mask))
    assert float(loss) == pytest.approx(-np.mean(expected), rel=1e-5)
    right = [logits[row, t - 1].argmax() == tokens[row, t] for row, t in ((0, 2), (0, 3), (1, 5))]
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(right))
    assert float(metrics["tokens"]) == 3
    nothing, metrics = next_token_loss(apply)(params, TokenBatch(tokens, mask=jnp.zeros((2, 6))))
    assert (float(nothing), float(metrics["tokens"])) == (0, 0)


def test_half_precision_logits_are_scored_in_float32():
    tokens = jnp.array([[0, 1, 2, 0]])
    apply = lambda params, tokens: params[tokens].astype(jnp.bfloat16)
    assert next_token_loss(apply)(jnp.zeros((3, 3)), TokenBatch(tokens))[0].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_packed_rows_lose_nothing(model, masked):
    """The loss on packed rows is the token-weighted mean of the documents' own, and so is its
    gradient."""
    params, apply = model
    texts = documents(7, 3, 9, 3, 7, 1)
    masks = [np.arange(len(text)) >= len(text) // 2 for text in texts] if masked else None
    packed = pack(texts, 8, masks=masks)
    assert packed.tokens.shape == (4, 9)
    loss_fn = next_token_loss(apply)

    def one_by_one(params):
        total, count = 0.0, 0.0
        for index, text in enumerate(texts[:-1]):
            mask = None if masks is None else jnp.asarray(masks[index])[None]
            loss, metrics = loss_fn(params, TokenBatch(jnp.asarray(text)[None], mask=mask))
            total, count = total + loss * metrics["tokens"], count + metrics["tokens"]
        return total / count, count

    (loss, metrics), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, packed)
    value_and_gradient = jax.jit(jax.value_and_grad(one_by_one, has_aux=True))
    (expected, count), gradient_expected = value_and_gradient(params)
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert float(metrics["tokens"]) == float(count) == packed.mask.sum()
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient, gradient_expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Without the mask, segment ids alone say the same where all tokens are targets.
    if not masked:
        alone, _ = loss_fn(params, packed._replace(mask=None))
        assert float(alone) == pytest.approx(float(loss), abs=1e-6)


def test_packing_is_first_fit():
    packed = pack([[1] * 3, [2] * 4, [3] * 2, [4] * 2, [5] * 5], 5, padding=9)
    assert packed.tokens.tolist() == [[1, 1, 1, 3, 3, 9], [2, 2, 2, 2, 4, 4], [5, 5, 5, 5, 5, 9]]
    assert packed.segment_ids.tolist() == [
        [1, 1, 1, 2, 2, 0],
        [1, 1, 1, 1, 2, 2],
        [1, 1, 1, 1, 1, 0],
    ]
    assert packed.mask.astype(int).tolist() == [
        [0, 1, 1, 0, 1, 0],
        [0, 1, 1, 1, 0, 1],
        [0, 1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("n", [2, 5, 9, 10, 13])
def test_a_long_document_is_split_and_every_target_is_kept(n):
    packed = pack([np.arange(n)], 4)
    targets = packed.tokens[packed.mask]
    assert sorted(targets) == list(range(1, n))
    # Each is preceded by the token before it.
    assert (packed.tokens[:, :-1][packed.mask[:, 1:]] == targets - 1).all()


def test_pieces_without_a_target_are_left_out():
    mask = np.arange(12) >= 10
    packed = pack([np.arange(12), [5, 6]], 4, masks=[mask, [True, False]])
    assert packed.tokens.tolist() == [[8, 9, 10, 11, 0]]
    assert packed.mask.tolist() == [[False, False, True, True, False]]


def test_wrong_documents():
    with pytest.raises(ValueError, match="none of the 2 has a target"):
        pack([[1], []], 4)
    with pytest.raises(ValueError, match=r"documents\[1\] must be integers \[n\], got float64"):
        pack([[1, 2], [0.5, 1.0]], 4)
    with pytest.raises(ValueError, match=r"masks\[0\] must have the shape of its document, \(2,\)"):
        pack([[1, 2]], 4, masks=[[True]])
    with pytest.raises(ValueError, match="masks must be as many as documents, 1, got 0"):
        pack([[1, 2]], 4, masks=[])
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        pack([[1, 2]], 0)


def test_wrong_batches(model):
    params, apply = model
    loss_fn, tokens = next_token_loss(apply), jnp.zeros((2, 5), jnp.int32)
    with pytest.raises(ValueError, match=r"tokens must be integers \[batch, length \+ 1\].*\(5,\)"):
        loss_fn(params, TokenBatch(tokens[0]))
    for name in ("segment_ids", "mask"):
        with pytest.raises(ValueError, match=rf"{name} must have the shape of tokens.*\(2, 4\)"):
            loss_fn(params, TokenBatch(tokens)._replace(**{name: tokens[:, 1:]}))
    with pytest.raises(ValueError, match=r"apply must return logits.*got shape \(2, 11\)"):
        next_token_loss(lambda params, tokens: jnp.zeros((2, 11)))(params, TokenBatch(tokens))
    with pytest.raises(ValueError, match=r"n > length=8, got int32 of shape \(8,\)"):
        text_sampler(jnp.arange(8), length=8, batch=1)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        row_sampler(TokenBatch(tokens), batch=0)
    with pytest.raises(ValueError, match="rows must hold at least one row"):
        row_sampler(TokenBatch(tokens[:0]), batch=1)


def test_windows_of_a_text_start_anywhere():
    draw = text_sampler(np.arange(6), length=3, batch=400)
    tokens = np.asarray(jax.jit(draw)(jax.random.key(0)).tokens)
    np.testing.assert_array_equal(tokens - tokens[:, :1], np.tile(np.arange(4), (400, 1)))
    starts, counts = np.unique(tokens[:, 0], return_counts=True)
    assert starts.tolist() == [0, 1, 2]  # the last reads 2, 3, 4 and predicts up to 5
    assert counts.min() > 100


def test_rows_are_drawn_whole():
    rows = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 3)
    batch = row_sampler(rows, batch=50)(jax.random.key(0))
    whole = {tuple(map(tuple, row)) for row in np.stack(rows[:3], axis=1).tolist()}
    drawn = {tuple(map(tuple, row)) for row in np.stack(batch[:3], axis=1).tolist()}
    assert drawn == whole


@pytest.mark.parametrize("name", ["text", "rows"])
def test_samplers_are_pytrees_of_one_structure(name):
    """So their arrays are arguments of a compiled program, which takes another sampler's too."""
    build = {
        "text": lambda start: text_sampler(np.arange(start, start + 9), length=3, batch=2),
        "rows": lambda start: row_sampler(pack([np.arange(start, start + 9)], 3), batch=2),
    }[name]
    first, second = (as_episodes(build(start)) for start in (0, 100))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    draw = jax.jit(lambda sample, key: sample(key).query.tokens)
    key = jax.random.key(0)
    tokens = [np.asarray(draw(sample, key)) for sample in (first, second)]
    np.testing.assert_array_equal(tokens[1], tokens[0] + 100)
    assert draw._cache_size() == 1


@pytest.mark.slow
def test_four_micro_batches_are_one_batch_of_four_times_the_rows(model):
    params, apply = model
    learner = supervised(next_token_loss(apply))
    draw = text_sampler(documents(200)[0], length=8, batch=3)
    keys = jax.random.split(jax.random.key(0), 4)
    episodes = jax.vmap(as_episodes(draw))(keys)
    gradient_fn = jax.jit(metajax.meta_gradient(learner, tasks_per_chunk=1))
    accumulated, metrics = gradient_fn(params, episodes)
    whole = TokenBatch(episodes.query.tokens.reshape(12, 9))
    value_and_gradient = jax.jit(jax.value_and_grad(next_token_loss(apply), has_aux=True))
    (loss, aux), expected = value_and_gradient(params, whole)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(float(aux["accuracy"]), abs=1e-6)
    for ours, theirs in zip(*map(jax.tree.leaves, (accumulated, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_devices_share_the_micro_batches(model):
    params, apply = model
    sample = as_episodes(text_sampler(documents(200)[0], length=8, batch=3))
    states = []
    for mesh in (None, metajax.task_mesh(2)):
        trainer = metajax.meta_trainer(
            supervised(next_token_loss(apply)), optax.sgd(0.1), sample, meta_batch=2, mesh=mesh
        )
        states.append(trainer.run(trainer.init(params, jax.random.key(1)), 2)[0].params)
    assert len(metajax.task_mesh(2).devices) == 2
    for one, two in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_model_is_evaluated_without_adaptation(model):
    params, apply = model
    sample = as_episodes(text_sampler(documents(200)[0], length=8, batch=3))
    learner = supervised(next_token_loss(apply))
    scores = metajax.evaluate(learner, params, sample, jax.random.key(2), episodes=4)
    assert scores.curve["loss"].shape == (1,)
    assert scores.mean["loss"] == pytest.approx(float(scores.curve["loss"][0]))
