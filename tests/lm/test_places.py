"""Logits where the targets are: the same loss and gradients as with all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import _marks, lm
from metajax.lm import lora
from metajax.models import Transformer, TransformerConfig

SIZES = {"vocab_size": 13, "width": 16, "n_layers": 2, "n_heads": 2}
CONFIGS = {
    "tied": TransformerConfig.gpt2(**SIZES),
    "llama": TransformerConfig.llama(**SIZES, scan=False),
    "gemma3": TransformerConfig.gemma3(**SIZES, head_dim=8, windows=(5, 0)),
}
LENGTH = 24


def rows_of(count=6, seed=0):
    """Packed texts, whose answers are their last tokens."""
    random = np.random.default_rng(seed)
    texts = [random.integers(0, 13, random.integers(9, 14)) for _ in range(2 * count)]
    lengths = random.integers(2, 4, len(texts))
    masks = [np.arange(len(text)) >= len(text) - n for text, n in zip(texts, lengths, strict=True)]
    return lm.pack(texts, LENGTH, masks=masks)


def wide(shape, tree):
    """Whether a program makes an array that ends in such a shape."""
    return f"{'x'.join(map(str, shape))}xf" in tree


def test_places_are_those_of_the_targets_that_count():
    rows = rows_of()
    placed = lm.with_places(rows)
    counted = rows.mask[:, 1:]
    assert placed.places.shape == (len(rows.tokens), counted.sum(axis=1).max())
    for row, places in zip(counted, placed.places.tolist(), strict=True):
        where = np.flatnonzero(row).tolist()
        assert places == where + [LENGTH] * (placed.places.shape[1] - len(where))
    # Other documents' first tokens are no targets, whatever the mask says.
    every = rows._replace(mask=np.ones_like(rows.mask))
    assert lm.with_places(every).places is None
    starts = np.diff(rows.segment_ids, axis=1, prepend=0) != 0
    with_starts = lm.with_places(rows._replace(mask=rows.mask | starts))
    np.testing.assert_array_equal(with_starts.places, placed.places)


def test_more_than_half_and_unknown_targets_are_computed_everywhere():
    tokens = np.zeros((2, 17), np.int32)
    few, many = (np.arange(17) > 16 - np.array([[n], [1]]) for n in (8, 9))
    assert lm.with_places(lm.TokenBatch(tokens, mask=few)).places.shape == (2, 8)
    assert lm.with_places(lm.TokenBatch(tokens, mask=many)).places is None
    assert lm.with_places(lm.TokenBatch(tokens)).places is None
    # Those that were there are found anew.
    again = lm.TokenBatch(tokens, mask=many, places=np.zeros((2, 1), np.int32))
    assert lm.with_places(again).places is None

    def traced(mask):
        return lm.with_places(lm.TokenBatch(tokens, mask=mask)).places

    assert jax.jit(traced)(few) is None
    nothing = lm.with_places(lm.TokenBatch(tokens, mask=np.zeros((2, 17))))
    assert nothing.places.tolist() == [[16]] * 2


def value_and_grads(apply, variables, batch):
    return jax.jit(jax.value_and_grad(lm.next_token_loss(apply), has_aux=True))(variables, batch)


def assert_close(found, wanted, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_all_logits(name):
    """Of parameters and factors."""
    model = Transformer(CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, params)
    factors = lora.init(params, jax.random.key(1), rank=2, targets=r"query|up|head")
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
    variables = {"params": params, "lora": factors}
    rows = jax.tree.map(jnp.asarray, rows_of())
    placed = jax.tree.map(jnp.asarray, lm.with_places(rows_of()))
    wanted = value_and_grads(model.apply, variables, rows)
    assert_close(value_and_grads(model.apply, variables, placed), wanted, 1e-6)
    assert float(wanted[0][0]) > 1
    frozen = value_and_grads(lora.frozen_base(model), variables, placed)
    assert_close(frozen[0], wanted[0], 1e-6)
    assert_close(frozen[1]["lora"], wanted[1]["lora"], 1e-6)


def bigrams(seen):
    """A model in float64 that computes logits where it is asked to, and notes where."""

    def apply(params, tokens, *, segment_ids=None, at=None):
        seen.append(None if at is None else at.shape)
        features = params["embed"][tokens]
        if at is not None:
            features = jnp.take_along_axis(features, at[:, :, None], axis=1)
        return features @ params["head"]

    return apply


def test_the_loss_in_float64_is_that_of_all_logits(x64):
    seen = []
    plain, marked = bigrams(seen), _marks.marked(bigrams(seen), at_places=True)
    random = np.random.default_rng(1)
    params = {"embed": random.normal(size=(13, 6)), "head": random.normal(size=(6, 13))}
    rows = rows_of()
    wanted = value_and_grads(plain, params, rows)
    # Also where places are known, but not taken.
    for apply in (marked, plain):
        assert_close(value_and_grads(apply, params, lm.with_places(rows)), wanted, 1e-12)
    assert seen == [None, lm.with_places(rows).places.shape, None]
    # A target that is at no place doesn't count, taken or not.
    part = lm.with_places(rows)
    part = part._replace(places=part.places[:, :1])
    first = value_and_grads(marked, params, part)
    assert float(first[0][1]["tokens"]) == len(rows.tokens)
    assert_close(first, value_and_grads(plain, params, part), 1e-12)


def test_all_logits_are_never_made():
    config = dataclasses.replace(CONFIGS["tied"], vocab_size=97)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 17))
    params, apply = metajax.from_linen(Transformer(config), jax.random.key(0), tokens)
    batch = lm.TokenBatch(tokens, mask=np.arange(17) > np.array([[12], [15]]))
    gradient = jax.jit(jax.grad(lm.next_token_loss(apply), has_aux=True))
    program = lambda batch: gradient.lower(params, batch).as_text()
    assert wide((2, 16, 97), program(batch))
    assert not wide((2, 16, 97), program(lm.with_places(batch)))
    assert wide((2, 4, 97), program(lm.with_places(batch)))


@pytest.mark.slow
def test_training_on_drawn_rows_is_the_same():
    model = Transformer(CONFIGS["llama"])
    params, apply = metajax.from_linen(model, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    trained = []
    for rows in (rows_of(), lm.with_places(rows_of())):
        trainer = metajax.meta_trainer(
            lm.supervised(lm.next_token_loss(apply)),
            optax.sgd(0.3),
            lm.as_episodes(lm.row_sampler(rows, batch=3)),
            meta_batch=2,
            mesh=metajax.task_mesh(2),
        )
        copy = jax.tree.map(jnp.copy, params)
        state, metrics = trainer.run(trainer.init(copy, jax.random.key(1)), 5)
        trained.append((state.params, metrics))
    assert_close(trained[1], trained[0], 1e-5)


def test_wrong_places_are_named():
    tokens = jnp.zeros((2, 5), jnp.int32)
    loss_fn = lm.next_token_loss(lambda params, tokens: jnp.zeros((*tokens.shape, 3)))
    for places in (jnp.zeros(2, jnp.int32), jnp.zeros((3, 1), jnp.int32)):
        with pytest.raises(ValueError, match=r"places must be \[batch, n\] = \[2, n\], got"):
            loss_fn(None, lm.TokenBatch(tokens, places=places))


def test_the_number_of_places_is_a_sixteenth_of_the_length():
    tokens = np.zeros((1, 97), np.int32)
    found = [
        lm.with_places(lm.TokenBatch(tokens, mask=np.arange(97)[None] > 96 - n)).places
        for n in (1, 6, 7, 48, 49)
    ]
    assert [None if places is None else places.shape[1] for places in found] == [6, 6, 12, 48, None]
