"""Layers that see a window of the latest tokens: what they see, and each form of computing it.

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

SIZES = {"vocab_size": 31, "width": 16, "n_heads": 2, "max_length": 40}
SEGMENTS = np.array(
    [
        [1] * 12,
        [0] * 3 + [1] * 9,  # padded on the left
        [1] * 8 + [0] * 4,  # and on the right
        [1] * 5 + [2] * 6 + [3],  # packed
        [0] + [4] * 2 + [2] * 7 + [0] * 2,
    ]
)


@functools.cache
def params_of(config):
    params = jax.jit(Transformer(config).init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    # Larger than an initialisation's, so that each token matters; scales other than 0 and 1.
    return jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 2 else leaf + 0.1, params)


def run(config, params, tokens, segment_ids):
    params = params if config.scan else unstack_layers(params)
    return jax.jit(Transformer(config).apply)({"params": params}, tokens, segment_ids=segment_ids)


def seen_by(window, segment):
    """Which token sees which, by a loop."""
    seen = np.zeros((len(segment), len(segment)), bool)
    for query, its in enumerate(segment):
        for key in range(query + 1):
            near = window == 0 or query - key < window
            seen[query, key] = its != 0 and segment[key] == its and near
    return seen


@pytest.mark.parametrize("windows", [(1,), (5,), (12,), (3, 0), (2, 4)])
@pytest.mark.parametrize("scan", [True, False])
def test_a_token_sees_those_of_its_window(windows, scan):
    config = TransformerConfig.llama(**SIZES, n_layers=len(windows), windows=windows, scan=scan)
    params = params_of(dataclasses.replace(config, scan=True))
    tokens = np.random.default_rng(0).integers(0, 31, 12)
    # Row j + 1 has another token at j: what changes in its logits sees j, through all layers.
    rows = np.tile(tokens, (13, 1))
    rows[1:][np.eye(12, dtype=bool)] += 1
    every = run(config, params, np.tile(rows % 31, (len(SEGMENTS), 1)), SEGMENTS.repeat(13, axis=0))
    for segment, logits in zip(SEGMENTS, np.split(np.asarray(every), len(SEGMENTS)), strict=True):
        found = np.abs(logits[1:] - logits[0]).max(axis=-1).T > 1e-6
        wanted = np.eye(12, dtype=bool)
        for window in windows:
            seen = seen_by(window, segment) | np.eye(12, dtype=bool)  # the residual stream
            wanted = seen @ wanted
        real = segment != 0
        np.testing.assert_array_equal(found[real], wanted[real])


CONFIGS = {
    "gemma3": TransformerConfig.gemma3(
        **SIZES, n_layers=4, n_kv_heads=1, head_dim=8, windows=(3, 3, 0), score_width=20
    ),
    "mistral": TransformerConfig.llama(**SIZES, n_layers=2, windows=(4,)),
    "several": TransformerConfig.llama(
        **SIZES, n_layers=3, windows=(2, 0, 5), local_rotary=Rotary(theta=100.0)
    ),
    "learned": TransformerConfig.gpt2(**SIZES, n_layers=2, windows=(3, 0)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_and_separate_blocks_are_one_function(name):
    config = CONFIGS[name]
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 0, 31)
    stacked, separate = (
        run(dataclasses.replace(config, scan=scan), params_of(config), tokens, SEGMENTS)
        for scan in (True, False)
    )
    real = SEGMENTS != 0
    np.testing.assert_allclose(stacked[real], separate[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_separate_blocks_and_of_remat(name):
    config = CONFIGS[name]
    params = params_of(config)
    tokens = jax.random.randint(jax.random.key(1), SEGMENTS.shape, 0, 31)
    real = (SEGMENTS != 0)[..., None]

    def gradient(**options):
        model = Transformer(dataclasses.replace(config, **options))

        def loss(params):
            given = params if model.config.scan else unstack_layers(params)
            logits = model.apply({"params": given}, tokens, segment_ids=SEGMENTS)
            return jnp.where(real, jnp.sin(logits), 0).sum()

        return jax.jit(jax.grad(loss))(params)

    wanted = gradient()
    for options in ({"scan": False}, {"remat": True}, {"scan": False, "remat": True}):
        found = gradient(**options)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
        jax.tree.map(close, found, wanted)


@pytest.mark.parametrize(
    ("name", "side"), [("gemma3", "left"), ("gemma3", "right"), ("several", "left")]
)
def test_decoding_with_a_cache_sees_the_same(name, side):
    """Prompts of two lengths, padded, and then nine tokens more: as without padding or cache."""
    config = dataclasses.replace(CONFIGS[name], scan=False)
    params = {"params": unstack_layers(params_of(CONFIGS[name]))}
    tokens = np.random.default_rng(2).integers(0, 31, (2, 16))
    lengths = [7, 4]
    apply = jax.jit(Transformer(config).apply)
    wanted = apply(params, tokens)  # causal: what comes after a token changes nothing
    prompts, ids = np.zeros((2, 2, 7), np.int32)
    for row, length in enumerate(lengths):
        at = slice(7 - length, None) if side == "left" else slice(length)
        prompts[row, at], ids[row, at] = tokens[row, :length], 1
    positions = positions_in_segments(jnp.asarray(ids))
    cache = KVCache.empty(config, 2, 20)
    logits, cache = apply(params, prompts, segment_ids=ids, positions=positions, cache=cache)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row][ids[row] == 1], wanted[row][:length], atol=2e-4)
    for step in range(9):
        at = np.array(lengths)[:, None] + step
        new = np.take_along_axis(tokens, at, axis=1)
        logits, cache = apply(params, new, positions=jnp.asarray(at), cache=cache)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(logits[row, 0], wanted[row][length + step], atol=2e-4)


def test_a_window_that_hides_nothing_costs_nothing():
    plain = TransformerConfig.llama(**SIZES, n_layers=2)
    params = jax.eval_shape(lambda: params_of(plain))
    tokens = jnp.zeros((2, 12), int)
    wanted = jax.make_jaxpr(Transformer(plain).apply)({"params": params}, tokens)
    for windows in ((12,), (0, 40), (0, 0)):
        model = Transformer(dataclasses.replace(plain, windows=windows))
        assert str(jax.make_jaxpr(model.apply)({"params": params}, tokens)) == str(wanted)
    narrow = dataclasses.replace(plain, windows=(12,), scan=False)
    assert KVCache.empty(narrow, 1, 12).positions is None
    assert KVCache.empty(narrow, 1, 13).positions is not None


def test_a_cache_of_a_model_without_windows_is_refused():
    plain = TransformerConfig.llama(**SIZES, n_layers=2, scan=False)
    model = Transformer(dataclasses.replace(plain, windows=(4,)))
    cache, tokens = KVCache.empty(plain, 1, 8), jnp.zeros((1, 1), int)
    with pytest.raises(ValueError, match="cache has no positions, which a window of 4 tokens"):
        jax.eval_shape(
            functools.partial(model.init, positions=tokens, cache=cache), jax.random.key(0), tokens
        )


def test_windows_are_repeated_or_cut():
    config = TransformerConfig(**SIZES, n_layers=5, windows=(4, 0))
    assert config.windows == (4, 0, 4, 0, 4)
    assert dataclasses.replace(config, n_layers=3).windows == (4, 0, 4)
    assert TransformerConfig(**SIZES, n_layers=2, windows=[0, 0, 7]).windows == ()
    assert TransformerConfig.gemma3(**SIZES, n_layers=12).windows == 2 * (*[512] * 5, 0)


def test_embeddings_are_scaled_in_the_models_dtype():
    """The square root of 640 is 25.25 in bfloat16."""
    sizes = {"vocab_size": 5, "width": 640, "n_layers": 1, "n_heads": 1, "head_dim": 2}
    # A large epsilon, so that the last normalisation doesn't cancel the scale.
    config = TransformerConfig(
        **sizes, mlp_width=2, scaled_embedding=True, norm_eps=1e4, dtype=jnp.bfloat16
    )
    embedding = np.random.default_rng(0).normal(size=(5, 640)).astype(jnp.bfloat16)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 5), int))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes["params"])  # silent blocks
    params |= {"embed": {"embedding": embedding}, "norm": {"scale": jnp.ones(640)}}
    found = Transformer(config).apply({"params": params}, jnp.arange(5)[None])[0]
    x = (embedding.astype(np.float32) * 25.25).astype(jnp.bfloat16).astype(np.float32)
    wanted = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e4) @ embedding.T
    np.testing.assert_allclose(found.diagonal(), wanted.diagonal(), rtol=5e-4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"windows": (4, -1)}, "windows must be at least 0, got -1"),
        ({"windows": (4.5,)}, "windows must be an integer of at least 0, got 4.5"),
        ({"windows": 4}, "windows must be a tuple of integers, got int 4"),
        ({"score_width": -2}, "score_width must be at least 0, got -2"),
        ({"norm": "rms_minus_one"}, "norm must be one of"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises((ValueError, TypeError), match=word):
        TransformerConfig(**SIZES, n_layers=2, **options)
