"""What must not change a number: other orders, halves, padding, names, types, a way to the disk.

Those of learners are checks of ``metajax.check_learner``, which tests/learners/test_contract.py
makes of every one.
"""

import functools
import tempfile
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

import metajax
from experiments import common
from metajax import data, lm, losses
from metajax.models import Transformer, TransformerConfig

SEEDS, SIZES = st.integers(0, 2**31), st.sampled_from([1, 4])
CLASSES, WIDTH = 4, 3
LOSSES = {
    "cross_entropy": losses.cross_entropy(lambda params, inputs: inputs @ params),
    "mean_squared_error": losses.mean_squared_error(lambda params, inputs: inputs @ params),
}


def batch_of(name, rng, size):
    targets = rng.integers(0, CLASSES, size)
    if name == "mean_squared_error":
        targets = rng.normal(size=(size, CLASSES)).astype(np.float32)
    return rng.normal(size=(size, WIDTH)).astype(np.float32), targets


def loss_of(name, params, batch):
    found = LOSSES[name](params, batch)
    return found[0] if isinstance(found, tuple) else found


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(name, params, batch):
    return jax.value_and_grad(lambda params: loss_of(name, params, batch))(params)


def same(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def same_bits(a, b):
    def equal(x, y):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(equal, a, b)


@pytest.mark.parametrize("name", LOSSES)
@examples(15)
@given(SEEDS, SIZES, SIZES)
def test_a_loss_is_the_mean_over_any_parts_in_any_order(name, seed, first, second):
    rng = np.random.default_rng(seed)
    params = jnp.asarray(rng.normal(size=(WIDTH, CLASSES)), jnp.float32)
    batch = metajax.Batch(*map(jnp.asarray, batch_of(name, rng, first + second)))
    whole = value_and_gradient(name, params, batch)
    order = rng.permutation(first + second)
    same(value_and_gradient(name, params, jax.tree.map(lambda leaf: leaf[order], batch)), whole)
    parts = [
        value_and_gradient(name, params, jax.tree.map(lambda leaf, at=at: leaf[at], batch))
        for at in (slice(first), slice(first, None))
    ]
    mean = lambda a, b: (first * a + second * b) / (first + second)
    same(jax.tree.map(mean, *parts), whole)


@pytest.mark.parametrize("name", LOSSES)
@examples(15)
@given(SEEDS, SIZES, SIZES, st.sampled_from([0.0, 1e6, np.nan, np.inf]))
def test_padding_counts_for_nothing_whatever_it_holds(name, seed, size, more, value):
    rng = np.random.default_rng(seed)
    params = jnp.asarray(rng.normal(size=(WIDTH, CLASSES)), jnp.float32)
    inputs, targets = batch_of(name, rng, size)
    padded = metajax.MaskedBatch(
        jnp.asarray(np.concatenate([inputs, np.full((more, WIDTH), value, np.float32)])),
        jnp.asarray(np.concatenate([targets, batch_of(name, rng, more)[1]])),
        jnp.arange(size + more) < size,
    )
    expected = value_and_gradient(name, params, metajax.Batch(inputs, jnp.asarray(targets)))
    if np.isfinite(value):
        same(value_and_gradient(name, params, padded), expected)
    else:  # of 0 · ∞ there is no gradient; the loss has none of it
        same(loss_of(name, params, padded), expected[0])


@examples(10)
@given(SEEDS, st.sampled_from(["int8", "int16", "int32", "uint8", "uint16"]))
def test_the_type_of_labels_and_images_is_no_matter(seed, dtype):
    rng = np.random.default_rng(seed)
    params = jnp.asarray(rng.normal(size=(WIDTH, CLASSES)), jnp.float32)
    inputs, targets = batch_of("cross_entropy", rng, 5)
    loss = lambda targets: loss_of("cross_entropy", params, metajax.Batch(inputs, targets))
    same(loss(jnp.asarray(targets.astype(dtype))), loss(jnp.asarray(targets)))
    images = rng.integers(0, 256, (12, 2, 2, 1), np.uint8)
    labels = np.repeat(np.arange(3), 4)
    draw = lambda images: data.episode_sampler(
        data.from_arrays(images, labels), n_way=2, k_shot=1, query=2
    )(jax.random.key(seed))
    same(draw(images), draw((images / 255).astype(np.float32)))


NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=2, unique=True)


@examples(8)
@given(SEEDS, NAMES)
def test_the_names_of_parameters_are_no_matter(seed, names):
    def gradient(body, head):
        predict = lambda params, inputs: inputs @ params[body] @ params[head]
        learner = metajax.maml(losses.mean_squared_error(predict), optax.sgd(0.1), steps=2)
        first, second, *rest = jax.random.split(jax.random.key(seed), 4)
        params = {body: jax.random.normal(first, (3, 3)), head: jax.random.normal(second, (3, 1))}
        batch = lambda key: metajax.Batch(jax.random.normal(key, (2, 4, 3)), jnp.ones((2, 4, 1)))
        found, _ = metajax.meta_gradient(learner)(params, metajax.Episode(*map(batch, rest)))
        return found[body], found[head]

    same(gradient(*names), gradient("body", "head"))


ARRAYS = st.builds(
    lambda seed, shape, dtype: jnp.asarray(
        np.random.default_rng(seed).normal(size=shape) * 100
    ).astype(dtype),
    SEEDS,
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["float32", "float16", "bfloat16", "int32", "int8", "uint32", "bool"]),
)
TREES = st.dictionaries(
    st.text("abc/. é", min_size=1, max_size=6),
    ARRAYS | st.lists(ARRAYS, min_size=1, max_size=2) | st.just(jax.random.key(3)),
    min_size=1,
    max_size=3,
)


@examples(15)
@given(TREES)
def test_a_checkpoint_reads_back_bit_for_bit(tree):
    plain = lambda tree: jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf, tree
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with common.Checkpoints(Path(folder)) as checkpoints:
            checkpoints.save(1, tree)
        with common.Checkpoints(Path(folder)) as checkpoints:
            found, _ = checkpoints.restore(jax.tree.map(jnp.copy, tree))
    same_bits(plain(found), plain(tree))


@examples(4)
@given(SEEDS, st.integers(1, 4))
def test_a_training_goes_on_from_flaxs_bytes_bit_for_bit(seed, steps):
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1)
    trainer = metajax.meta_trainer(learner, optax.adam(0.1), toy.make_sampler(), meta_batch=2)
    state, _ = trainer.run(trainer.init(toy.init_params(), jax.random.key(seed)), steps)
    again = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    expected = jax.device_get(trainer.step(state)[0].params)
    same_bits(jax.device_get(trainer.step(again)[0].params), expected)


@pytest.mark.parametrize("make", ["gpt2", "llama", "qwen3", "gemma3"])
@examples(4)
@given(SEEDS, st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.integers(200, 10**6))
def test_a_language_model_reads_back_bit_for_bit(make, seed, dtype, scan, shard_bytes):
    sizes = {"vocab_size": 8, "width": 8, "n_layers": 2, "n_heads": 2, "max_length": 8}
    config = getattr(TransformerConfig, make)(**sizes, dtype=jnp.dtype(dtype), scan=scan)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 2), int))
    draw = lambda leaf: np.random.default_rng(seed).normal(size=leaf.shape).astype(config.dtype)
    params = jax.tree.map(draw, shapes["params"])
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder, config, params, shard_bytes=shard_bytes)
        model, found = lm.load_pretrained(folder, scan=scan)
    assert model.config.dtype == config.dtype
    same_bits(jax.device_get(found), params)


@examples(30)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=5), max_size=2, unique=True))
def test_a_character_tokenizer_reads_back_and_says_what_it_was_told(text, specials):
    tokenizer = lm.CharTokenizer.of(text, specials=tuple(specials))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "characters.json")
        found = lm.CharTokenizer.load(Path(folder) / "characters.json")
    assert found == tokenizer
    assert found.decode(found.encode(text)) == text
