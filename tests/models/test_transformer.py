"""The transformer: its cache beside the full forward pass, and bad input.

Logits beside those of transformers: tests/lm/test_parity.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import KVCache, Rotary, Transformer, TransformerConfig, unstack_layers
from metajax.models._attention import positions_in_segments

SIZES = {"vocab_size": 31, "width": 32, "n_layers": 2, "n_heads": 4, "max_length": 40}
CONFIG = TransformerConfig.llama(**SIZES, n_kv_heads=2)
CONFIGS = {
    "gpt2": TransformerConfig.gpt2(**SIZES),
    "llama": CONFIG,
    "qwen3": TransformerConfig.qwen3(**SIZES | {"head_dim": 16}),
    "nope": TransformerConfig.nope(**SIZES),
    "gemma3": TransformerConfig.gemma3(**SIZES | {"head_dim": 16}, windows=(7, 0)),
}


@functools.cache
def model_of(config):
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Larger than an initialisation's, so that logits differ clearly.
    return model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_are_those_of_the_full_forward_pass(name):
    full, params = model_of(CONFIGS[name])
    config = dataclasses.replace(full.config, scan=False)
    tokens = jax.random.randint(jax.random.key(1), (2, 40), 0, 31)
    segment_ids = jnp.arange(40) >= jnp.array([[0], [5]])  # the second is padded on the left
    wanted = jax.jit(full.apply)({"params": params}, tokens, segment_ids=segment_ids)
    positions = positions_in_segments(segment_ids.astype(jnp.int32))
    variables = {"params": unstack_layers(params)}
    apply = jax.jit(Transformer(config).apply)
    cache, found = KVCache.empty(config, 2, 48), []
    for start, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        logits, cache = apply(
            variables,
            tokens[:, start:end],
            segment_ids=segment_ids[:, start:end],
            positions=positions[:, start:end],
            cache=cache,
        )
        found.append(logits)
    real = np.asarray(segment_ids)
    difference = jnp.abs(jnp.concatenate(found, axis=1) - wanted)[real]
    assert float(difference.max()) <= 1e-5 * max(1.0, float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"width": 9}, "width"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"),
        ({"head_dim": 3}, "head_dim"),
        ({"norm": "batch"}, "norm"),
        ({"positions": "sinusoid"}, "positions"),
        ({"activation": "tanh"}, "activation"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"width": 8.0}, "width must be a positive integer, got 8.0"),
        ({"dtype": "float33"}, "dtype"),
        ({"dtype": "int32"}, "dtype"),
    ],
)
def test_a_bad_configuration_is_named(options, word):
    with pytest.raises(ValueError, match=word):
        TransformerConfig(**SIZES | options)


def test_bad_arguments_of_the_model_are_named():
    model, params = model_of(CONFIG)
    params, tokens = {"params": params}, jnp.zeros((2, 4), jnp.int32)
    with pytest.raises(ValueError, match="tokens must be integers"):
        model.apply(params, tokens.astype(float))
    with pytest.raises(ValueError, match=r"\[batch, length\], got int32\[4\]"):
        model.apply(params, tokens[0])
    with pytest.raises(ValueError, match="at most max_length=40 long, got 41"):
        model.apply(params, jnp.zeros((1, 41), jnp.int32))
    with pytest.raises(ValueError, match="segment_ids must have the shape"):
        model.apply(params, tokens, segment_ids=jnp.ones((2, 3), bool))


def test_bad_rotary_scaling_is_named():
    with pytest.raises(ValueError, match="theta must be a positive finite number, got nan"):
        Rotary(theta=float("nan"))
    with pytest.raises(ValueError, match="low_freq_factor must be below high_freq_factor"):
        Rotary(scaling="llama3", low_freq_factor=4.0)


def test_a_cache_needs_separate_blocks_and_positions():
    model, params = model_of(CONFIG)
    cache = KVCache.empty(CONFIG, 1, 8)
    tokens = jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="cache needs a model without scan"):
        model.apply({"params": params}, tokens, cache=cache)
    other = Transformer(dataclasses.replace(model.config, scan=False))
    with pytest.raises(ValueError, match="positions must be given"):
        other.apply({"params": unstack_layers(params)}, tokens, cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_logits_and_gradients_of_half_precision_are_near_those_of_float32(name):
    full, params = model_of(CONFIG)
    model = Transformer(dataclasses.replace(CONFIG, dtype=name))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 31)

    def loss(params, model):
        logits = model.apply({"params": params}, tokens)
        assert logits.dtype == jnp.float32
        return -jax.nn.log_softmax(logits)[..., 0].mean(), logits

    half = jax.tree.map(lambda leaf: leaf.astype(name), params)
    wanted, ours = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(*arguments)
        for arguments in ((params, full), (half, model))
    )
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(ours), strict=True):
        scale = float(jnp.abs(one).max())
        np.testing.assert_allclose(other.astype(jnp.float32), one, rtol=0, atol=0.05 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_at_places_are_those_there(name):
    model, params = model_of(CONFIGS[name])
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 31)
    at = jnp.array([[0, 7, 7], [11, 3, 4]])
    apply = jax.jit(model.apply)
    wanted = apply({"params": params}, tokens)[jnp.arange(2)[:, None], at]
    np.testing.assert_allclose(apply({"params": params}, tokens, at=at), wanted, atol=1e-5)
    for wrong in (at[0], at[:1]):
        with pytest.raises(ValueError, match=r"at must be \[batch, n\] = \[2, n\], got \("):
            model.apply({"params": params}, tokens, at=wrong)
