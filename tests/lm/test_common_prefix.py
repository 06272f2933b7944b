"""Prompts that begin alike: generation is that of prompts computed one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import no_compilation

import metajax
from metajax import lm
from metajax.lm import SamplingParams, generation, lora
from metajax.models import Transformer, TransformerConfig

SIZES = {"vocab_size": 31, "width": 32, "n_layers": 2, "n_heads": 4, "max_length": 96}
CONFIGS = {
    "gpt2": TransformerConfig.gpt2(**SIZES),
    "llama": TransformerConfig.llama(**SIZES, n_kv_heads=2),
    "nope": TransformerConfig.nope(**SIZES),
    "narrow windows": TransformerConfig.gemma3(**SIZES, head_dim=8, windows=(5, 0)),
    "windows into the prefix": TransformerConfig.llama(**SIZES, windows=(20, 40)),
    "wide windows": TransformerConfig.gpt2(**SIZES, windows=(0, 94)),
}
PREFIX = np.random.default_rng(0).integers(0, 31, 37).tolist()  # 32 of them are shared
PROMPTS = [PREFIX + rest for rest in ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 1, 1])]


def model_of(config):
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Larger than an initialisation's, so that logits differ clearly.
    return model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf, params)


@pytest.fixture(scope="module")
def small():
    return model_of(CONFIGS["llama"])


@pytest.fixture
def both(monkeypatch):
    """``both(...)``: what ``lm.generate`` gives with the prefix shared, and without."""

    def run(*args, shared=32, **options):
        counts = []

        def spy(rows):
            counts.append(find(rows))
            return counts[-1]

        find = generation._common_prefix
        with monkeypatch.context() as patch:
            patch.setattr(generation, "_common_prefix", spy)
            found = lm.generate(*args, **options)
            patch.setattr(generation, "_common_prefix", lambda rows: 0)
            wanted = lm.generate(*args, **options)
        assert counts == [shared]
        return found, wanted

    return run


def assert_same(found, wanted, atol=1e-5):
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.lengths.tolist() == wanted.lengths.tolist()
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_the_same(both, name):
    model, params = model_of(CONFIGS[name])
    found, wanted = both(model, params, PROMPTS, max_new_tokens=24)
    assert_same(found, wanted)
    assert len({tuple(row) for row in found.tokens[:, 0].tolist()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_samples_masks_penalty_and_stop_tokens_are_the_same(both, small, devices):
    model, params = small
    allowed = np.ones((9, 4, 31), bool)
    allowed[:, 2, ::2] = False
    mesh = None if devices == 1 else metajax.task_mesh(4)
    assert mesh is None or mesh.size == devices
    found, wanted = both(
        model, params, PROMPTS, jax.random.key(5), max_new_tokens=9, samples=3, allowed=allowed,
        mesh=mesh,
        sampling=SamplingParams(1.0, top_k=9, stop_tokens=(3, 9, 17), repetition_penalty=1.3),
    )  # fmt: skip
    assert_same(found, wanted)
    assert len(np.unique(found.lengths)) > 1


@pytest.mark.slow
def test_a_penalty_sees_the_prefix(both, small):
    model, params = small
    sampling = SamplingParams(repetition_penalty=50.0)
    found, wanted = both(model, params, PROMPTS, max_new_tokens=3, sampling=sampling)
    assert_same(found, wanted)
    plain = lm.generate(model, params, PROMPTS, max_new_tokens=3)
    assert found.tokens.tolist() != plain.tokens.tolist()
    assert not set(found.tokens.ravel().tolist()) & set(PREFIX)


@pytest.mark.slow
def test_equal_prompts_arrays_and_samples_of_one_prompt_are_the_same(both, small):
    model, params = small
    drawn = {"max_new_tokens": 5, "samples": 4, "sampling": SamplingParams(1.0)}
    key = jax.random.key(2)
    for prompts, shared in (
        ([PREFIX[:33]] * 3, 32),
        ([PREFIX[:32]] * 3, 16),  # one token at least is each prompt's own
        (np.array([PREFIX, [*PREFIX[:20], *range(17)]]), 16),
        ([PREFIX], 32),
    ):
        assert_same(*both(model, params, prompts, key, shared=shared, **drawn))


def test_a_prompt_alone_and_short_prefixes_have_the_program_that_they_had(small, monkeypatch):
    model, params = small
    given = []
    generate = generation._decoding.generate
    monkeypatch.setattr(
        generation._decoding, "generate", lambda *args: given.append(args[-1]) or generate(*args)
    )
    for prompts in ([PREFIX], [PREFIX[:16], PREFIX[:20]], [[1, *PREFIX], [2, *PREFIX]]):
        lm.generate(model, params, prompts, max_new_tokens=2)
    mesh = metajax.task_mesh(2)
    lm.generate(model, params, [PREFIX] * 2, max_new_tokens=2, mesh=mesh)  # one a device
    assert given == [None] * 4
    lm.generate(model, params, [PREFIX] * 2, max_new_tokens=2)
    np.testing.assert_array_equal(given[-1], PREFIX[:32])


@pytest.mark.slow
def test_prompts_may_fill_the_model(both, small):
    model, params = small
    start = (PREFIX * 3)[:90]
    for prompts, shared in (([[*start, 1], [*start, 2, 3]], 80), ([start, start[:50]], 48)):
        assert_same(*both(model, params, prompts, shared=shared, max_new_tokens=4))


@pytest.mark.slow
def test_prefixes_up_to_a_multiple_share_a_program(small):
    model, params = small
    run = lambda count, rest: lm.generate(
        model, params, [PREFIX[:count] + [token] * rest for token in (1, 2)], max_new_tokens=3
    )
    run(33, 5)
    with no_compilation():
        run(34, 6)
        run(36, 2)


@pytest.mark.slow
def test_factors_and_half_precision(both, small):
    model, params = small
    factors = lora.init(params, jax.random.key(1), rank=2, targets=r"query|key|head")
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)
    assert_same(*both(model, params, PROMPTS, max_new_tokens=5, lora=factors))
    half = Transformer(dataclasses.replace(model.config, dtype="bfloat16"))
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    found, wanted = both(half, params, PROMPTS, max_new_tokens=1)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_a_stream_is_one_of_the_rows(small):
    model, params = small
    rows = lm.generate(model, params, PROMPTS, max_new_tokens=6).tokens[:, 0].tolist()
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert list(lm.stream(model, params, prompt, max_new_tokens=6)) == row
