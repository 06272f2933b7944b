"""Generation: beside the full forward pass, its randomness, its bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import no_compilation

import metajax
from metajax import lm
from metajax.lm import SamplingParams, _decoding, lora
from metajax.lm._sampling import choose, filtered, row_keys
from metajax.models import Transformer, TransformerConfig, unstack_layers

SIZES = {"vocab_size": 31, "width": 32, "n_layers": 2, "n_heads": 4, "max_length": 160}
CONFIGS = {
    "gpt2": TransformerConfig.gpt2(**SIZES),
    "llama": TransformerConfig.llama(**SIZES, n_kv_heads=2),
    "qwen3": TransformerConfig.qwen3(**SIZES, head_dim=16),
    "nope": TransformerConfig.nope(**SIZES),
    "gemma3": TransformerConfig.gemma3(**SIZES, head_dim=8, windows=(5, 0)),
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13]]


def model_of(config):
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Larger than an initialisation's, so that logits differ clearly.
    return model, jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 2 else leaf, params)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return model_of(CONFIGS[request.param])


@pytest.fixture(scope="module")
def small():
    return model_of(CONFIGS["llama"])


@pytest.mark.ci
@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_full_forward_pass_over_128(model):
    full, params = model
    generated = lm.generate(full, params, PROMPTS, max_new_tokens=128)
    assert generated.lengths.tolist() == [[128]] * 3
    apply = jax.jit(full.apply)
    for prompt, row, log_probs in zip(
        PROMPTS, generated.tokens[:, 0], generated.log_probs[:, 0], strict=True
    ):
        text = jnp.concatenate([jnp.array(prompt), row])[None, :-1]
        logits = apply({"params": params}, text)[0, len(prompt) - 1 :]
        assert logits.argmax(axis=-1).tolist() == row.tolist()
        wanted = jax.nn.log_softmax(logits)[jnp.arange(128), row]
        np.testing.assert_allclose(log_probs, wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_prompt_does_not_depend_on_the_others(small):
    model, params = small
    together = lm.generate(model, params, PROMPTS, max_new_tokens=20)
    for number, prompt in enumerate(PROMPTS):
        alone = lm.generate(model, params, jnp.array([prompt]), max_new_tokens=20)
        assert alone.tokens[0].tolist() == together.tokens[number].tolist()


def test_a_model_without_scan_generates_the_same(small):
    model, params = small
    other = Transformer(dataclasses.replace(model.config, scan=False))
    options = {"max_new_tokens": 8, "sampling": SamplingParams(1.0), "samples": 2}
    first = lm.generate(model, params, PROMPTS, jax.random.key(3), **options)
    second = lm.generate(other, unstack_layers(params), PROMPTS, jax.random.key(3), **options)
    assert first.tokens.tolist() == second.tokens.tolist()


def test_nothing_follows_a_stop_token(small):
    model, params = small
    free = lm.generate(model, params, PROMPTS, max_new_tokens=20)
    stop = int(free.tokens[0, 0, 3])
    sampling = SamplingParams(stop_tokens=[stop])
    stopped = lm.generate(model, params, PROMPTS, max_new_tokens=20, sampling=sampling)
    for row, length, unstopped, log_probs in zip(
        stopped.tokens[:, 0], stopped.lengths[:, 0], free.tokens[:, 0], stopped.log_probs[:, 0],
        strict=True,
    ):  # fmt: skip
        unstopped = unstopped.tolist()
        wanted = unstopped.index(stop) + 1 if stop in unstopped else 20
        assert int(length) == wanted
        assert row.tolist() == unstopped[:wanted] + [0] * (20 - wanted)
        assert not log_probs[wanted:].any()


@pytest.mark.slow
def test_samples_across_a_window_have_the_models_log_probs():
    model, params = model_of(CONFIGS["gemma3"])
    drawn = lm.generate(
        model, params, PROMPTS, jax.random.key(0), max_new_tokens=12, samples=3,
        sampling=SamplingParams(1.0),
    )  # fmt: skip
    apply = jax.jit(model.apply)
    for prompt, samples, log_probs in zip(PROMPTS, drawn.tokens, drawn.log_probs, strict=True):
        rows = jnp.concatenate([jnp.tile(jnp.array(prompt), (3, 1)), samples], axis=1)
        wanted = jax.nn.log_softmax(apply({"params": params}, rows)[:, len(prompt) - 1 : -1])
        wanted = jnp.take_along_axis(wanted, samples[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(log_probs, wanted, atol=1e-4)


@pytest.mark.slow
def test_samples_have_the_models_frequencies(small):
    model, params = small
    prompt = [[5, 6, 7]]
    drawn = lm.generate(
        model, params, prompt, jax.random.key(0), max_new_tokens=1, samples=4000,
        sampling=SamplingParams(0.7),
    )  # fmt: skip
    logits = model.apply({"params": params}, jnp.array(prompt))[0, -1]
    wanted = jax.nn.softmax(logits / 0.7)
    found = jnp.bincount(drawn.tokens.ravel(), length=31) / 4000
    deviation = jnp.sqrt(wanted * (1 - wanted) / 4000)
    assert float(jnp.max(jnp.abs(found - wanted) / jnp.maximum(deviation, 1e-3))) < 4.5
    np.testing.assert_allclose(
        drawn.log_probs.ravel(), jax.nn.log_softmax(logits)[drawn.tokens.ravel()], atol=1e-4
    )


@pytest.mark.slow
def test_a_low_temperature_and_one_candidate_are_greedy(small):
    model, params = small
    greedy = lm.generate(model, params, PROMPTS, max_new_tokens=10).tokens
    for sampling in (
        SamplingParams(1e-4), SamplingParams(1.0, top_k=1), SamplingParams(1.0, top_p=1e-6)
    ):  # fmt: skip
        drawn = lm.generate(
            model, params, PROMPTS, jax.random.key(1), max_new_tokens=10, sampling=sampling
        )
        assert drawn.tokens.tolist() == greedy.tolist()


def test_filters_keep_the_likeliest():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.25, 0.05]))
    kept = lambda **options: (filtered(logits, **options) > -100).tolist()
    assert kept(top_k=9) == [True] * 5
    assert kept(top_k=2) == [False, True, False, True, False]
    assert kept(top_p=0.64) == [False, True, False, True, False]
    assert kept(top_p=0.66) == [False, True, True, True, False]
    assert kept(top_p=1.0) == [True] * 5
    assert kept(top_k=3, top_p=0.5) == [False, True, False, True, False]


def test_only_allowed_tokens_are_chosen(small):
    model, params = small
    steps = np.zeros((6, 31), bool)
    steps[np.arange(6), np.arange(6)] = True
    forced = lm.generate(model, params, PROMPTS, max_new_tokens=6, allowed=steps)
    assert forced.tokens[:, 0].tolist() == [list(range(6))] * 3
    each = np.zeros((4, 3, 31), bool)
    each[:, 0, 3] = each[:, 1, 4:6] = each[:, 2, 7] = True
    drawn = lm.generate(
        model, params, PROMPTS, jax.random.key(0), max_new_tokens=4, allowed=each,
        sampling=SamplingParams(1.0), samples=2,
    )  # fmt: skip
    assert set(drawn.tokens[0].ravel().tolist()) == {3}
    assert set(drawn.tokens[1].ravel().tolist()) <= {4, 5}
    assert set(drawn.tokens[2].ravel().tolist()) == {7}


def test_a_stream_is_what_generate_returns(small):
    model, params = small
    options = {"max_new_tokens": 12, "sampling": SamplingParams(1.0, stop_tokens=[4])}
    key = jax.random.key(7)
    whole = lm.generate(model, params, [[1, 2, 3]], key, **options)
    streamed = list(lm.stream(model, params, [1, 2, 3], key, **options))
    assert streamed == whole.tokens[0, 0, : int(whole.lengths[0, 0])].tolist()


@pytest.mark.slow
def test_devices_that_share_the_prompts_change_nothing(small):
    model, params = small
    prompts = [*PROMPTS, [14]]
    mesh = metajax.task_mesh(4)
    assert mesh.size == 2
    allowed = np.ones((6, 4, 31), bool)
    allowed[:, 2, ::2] = False
    sampling = SamplingParams(1.0, stop_tokens=[3, 9, 17], repetition_penalty=1.3)
    drawn = {"sampling": sampling, "samples": 3, "allowed": allowed}
    for options in ({}, drawn):
        one, both = (
            lm.generate(
                model, params, prompts, jax.random.key(5), max_new_tokens=6, mesh=where, **options
            )
            for where in (None, mesh)
        )
        assert both.tokens.tolist() == one.tokens.tolist()
        assert both.lengths.tolist() == one.lengths.tolist()
        np.testing.assert_allclose(both.log_probs, one.log_probs, rtol=0, atol=1e-5)
    assert not (one.tokens[2] % 2 == 0)[one.tokens[2] > 0].any()


@pytest.mark.slow
def test_decoding_params_generate_the_same(small):
    model, params = small
    wanted = lm.generate(model, params, [[1, 2], [3]], max_new_tokens=5)
    for mesh in (None, metajax.task_mesh(2)):
        ready = lm.decoding_params(params, mesh=mesh)
        found = lm.generate(model, ready, [[1, 2], [3]], max_new_tokens=5, mesh=mesh)
        assert found.tokens.tolist() == wanted.tokens.tolist()
    streamed = list(lm.stream(model, lm.decoding_params(params), [1, 2], max_new_tokens=5))
    assert streamed == wanted.tokens[0, 0].tolist()


def test_a_second_call_compiles_nothing(small):
    model, params = small
    lm.generate(model, params, [[1, 2]], max_new_tokens=3)
    with no_compilation():
        lm.generate(model, params, [[3, 4, 5]], max_new_tokens=3)


def test_lengths_up_to_a_multiple_share_a_program_and_give_the_same_tokens(small):
    model, params = small
    mask = np.ones((6, len(PROMPTS), 31), bool)
    mask[:, :, 7] = False
    whole = lm.generate(model, params, PROMPTS, max_new_tokens=6, allowed=mask)
    programs = _decoding.generate._cache_size()
    for count in (1, 3, 5):
        part = lm.generate(model, params, PROMPTS, max_new_tokens=count, allowed=mask[:count])
        assert part.tokens.shape == (3, 1, count)
        np.testing.assert_array_equal(part.tokens, whole.tokens[:, :, :count])
        np.testing.assert_array_equal(part.log_probs, whole.log_probs[:, :, :count])
        assert (part.lengths == count).all()
    assert _decoding.generate._cache_size() == programs
    full = lm.generate(model, params, [[1] * 150, [2]], max_new_tokens=10)  # no room for more
    assert full.tokens.shape == (2, 1, 10)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "prompts must hold at least one"),
        ([[1], []], {}, r"prompts\[1\] must be a list of at least one token"),
        (np.zeros(3, int), {}, r"prompts must be \[prompts, length\], got .* \(3,\)"),
        ([[1, 31]], {}, r"prompts\[0\] must hold tokens from 0 to 30, got 31"),
        ([[-1]], {}, r"got -1"),
        ([[0.5]], {}, "must hold integers"),
        ([[1] * 158], {}, "max_length=160, got 158 \\+ 3"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[1]], {"sampling": SamplingParams(1.0), "key": None}, "key must be given"),
        ([[1]], {"samples": 2}, "samples=2 would all be the same"),
        ([[1]], {"sampling": SamplingParams(stop_tokens=[31])}, "below vocab_size=31, got 31"),
        ([[1]], {"allowed": np.ones(30, bool)}, "allowed must be bools of shape"),
        ([[1]], {"allowed": np.zeros((3, 31), bool)}, "got none at step 0"),
        ([[1]], {"mesh": metajax.task_mesh(2)}, "prompts, 1, can't be shared equally by the 2"),
    ],
)
def test_bad_input_is_named(small, prompts, options, words):
    model, params = small
    arguments = {"max_new_tokens": 3, "key": jax.random.key(0), **options}
    with pytest.raises(ValueError, match=words):
        lm.generate(model, params, prompts, **arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be a positive"),
        ({"top_k": 3}, "top_k=3 .* need a temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1, got 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive"),
    ],
)
def test_bad_sampling_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        SamplingParams(**options)


def test_parameters_and_factors_of_another_model_are_named(small):
    model, params = small
    generate = lambda params, **options: lm.generate(
        model, params, [[1]], max_new_tokens=1, **options
    )
    with pytest.raises(
        ValueError, match=r"don't fit the model: .*kernel' is missing.* and \d+ more"
    ):
        generate({"embed": params["embed"]})
    embedding = {"embedding": jnp.zeros((31, 8))}
    with pytest.raises(ValueError, match=r"'embed/embedding' has shape \(31, 8\), not \(31, 32\)"):
        generate(params | {"embed": embedding})
    of = lambda *shapes: lora.Factors(*map(jnp.ones, shapes), 1.0)
    for name, factors, words in (
        ("bias", of((32, 1), (1, 31)), "'head/bias' which the model doesn't have"),
        ("kernel", of((3, 1), (1, 31)), r"don't fit 'head/kernel' of shape \(32, 31\)"),
        ("kernel", jnp.ones(3), "lora must hold Factors"),
    ):
        with pytest.raises(ValueError, match=words):
            generate(params, lora={"head": {name: factors}})
    with pytest.raises(ValueError, match="lora must be given to decoding_params"):
        generate(lm.decoding_params(params), lora={})


@pytest.mark.slow
def test_generation_stops_at_all_end_tokens_of_the_configuration(small):
    model, params = small
    free = lm.generate(model, params, PROMPTS, max_new_tokens=20).tokens[:, 0]
    stops = (int(free[0, 3]), int(free[1, 5]))
    other = Transformer(dataclasses.replace(model.config, stop_tokens=stops))
    found = lm.generate(other, params, PROMPTS, max_new_tokens=20)
    wanted = [next((i + 1 for i, t in enumerate(row) if t in stops), 20) for row in free.tolist()]
    assert found.lengths[:, 0].tolist() == wanted
    assert max(wanted[:2]) < 20
    streamed = list(lm.stream(other, params, PROMPTS[0], max_new_tokens=20))
    assert streamed == free[0, : wanted[0]].tolist()
    drawn = [
        lm.generate(model, params, PROMPTS, jax.random.key(0), max_new_tokens=20, sampling=sampling)
        for model, sampling in (
            (other, SamplingParams(1.0)), (model, SamplingParams(1.0, stop_tokens=stops))
        )
    ]  # fmt: skip
    assert drawn[0].tokens.tolist() == drawn[1].tokens.tolist()
    for own in ((), (stops[1],)):
        sampling = SamplingParams(stop_tokens=own)
        chosen = [
            lm.generate(each, params, PROMPTS, max_new_tokens=20, sampling=sampling)
            for each in (other, model)
        ]
        assert chosen[0].tokens.tolist() == chosen[1].tokens.tolist()
    unstopped = lm.generate(
        other, params, PROMPTS, max_new_tokens=20, sampling=SamplingParams(stop_tokens=())
    )
    assert unstopped.tokens[:, 0].tolist() == free.tolist()


def penalised_by_hand(logits, text, penalty):
    scores = np.array(logits, np.float64)
    for token in set(text):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_is_its_definition(small, penalty):
    """A loop by hand over the full forward pass; prompts of several lengths, so padded with 0."""
    model, params = small
    sampling = SamplingParams(repetition_penalty=penalty)
    found = lm.generate(model, params, PROMPTS, max_new_tokens=16, sampling=sampling)
    plain = lm.generate(model, params, PROMPTS, max_new_tokens=16)
    assert found.tokens.tolist() != plain.tokens.tolist()
    apply = jax.jit(model.apply)
    for prompt, row, log_probs in zip(
        PROMPTS, found.tokens[:, 0].tolist(), found.log_probs[:, 0], strict=True
    ):
        logits = apply({"params": params}, jnp.array([prompt + row]))[0]
        for step, token in enumerate(row):
            place = len(prompt) + step - 1
            text = prompt + row[:step]
            assert int(penalised_by_hand(logits[place], text, penalty).argmax()) == token
            wanted = jax.nn.log_softmax(logits[place])[token]
            assert float(log_probs[step]) == pytest.approx(float(wanted), abs=1e-4)
        assert list(lm.stream(model, params, prompt, max_new_tokens=16, sampling=sampling)) == row


def test_a_repetition_penalty_comes_before_temperature_and_filters():
    logits = jnp.array([[2.0, 1.9, -1.0, 0.5]])
    seen = jnp.array([[True, False, True, False]])
    penalised = penalised_by_hand(logits[0], [0, 2], 2.0)
    np.testing.assert_allclose(penalised, [1.0, 1.9, -2.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 4000)
    sampling = SamplingParams(0.5, top_k=3, repetition_penalty=2.0)
    rows = lambda leaf: jnp.repeat(leaf, 4000, axis=0)
    token, _, after = choose(rows(logits), keys, 0, None, rows(seen), sampling)
    wanted = np.exp(np.array([1.0, 1.9, -np.inf, 0.5]) / 0.5)
    np.testing.assert_allclose(
        np.bincount(token, minlength=4) / 4000, wanted / wanted.sum(), atol=0.03
    )
    assert after[0].tolist() == [True, int(token[0]) == 1, True, int(token[0]) == 3]
    mask = jnp.array([[False, False, True, True]])
    token, *_ = choose(logits, keys[:1], 0, mask, seen, SamplingParams(repetition_penalty=2.0))
    assert token.tolist() == [3]


@pytest.mark.slow
def test_samples_of_a_prompt_are_penalised_apart(small):
    model, params = small
    key, sampling = jax.random.key(0), SamplingParams(1.0, repetition_penalty=3.0)
    found = lm.generate(
        model, params, [[1, 2], [3, 4]], key, max_new_tokens=6, sampling=sampling, samples=3
    )
    apply, keys = jax.jit(model.apply), row_keys(key, 6)
    for number, row in enumerate(found.tokens.reshape(6, 6).tolist()):
        text = [[1, 2], [3, 4]][number // 3] + row
        logits = apply({"params": params}, jnp.array([text]))[0]
        for step, token in enumerate(row):
            seen = jnp.isin(jnp.arange(31), jnp.array(text[: 2 + step]))[None]
            one = slice(number, number + 1)
            again, *_ = choose(logits[None, 1 + step], keys[one], step, None, seen, sampling)
            assert again.tolist() == [token]


def test_without_a_penalty_the_program_has_none(small):
    model, params = small
    ready = lm.decoding_params(params)
    config = dataclasses.replace(model.config, scan=False)

    def program(**options):
        sampling = SamplingParams(1.0, stop_tokens=(), **options)
        tokens = np.ones((2, 8), np.int32)
        return _decoding.generate.lower(
            ready.variables,
            tokens,
            tokens,
            jax.random.key(0),
            None,
            8,
            config,
            sampling,
            8,
            1,
            None,
        ).as_text()

    plain, penalised = program(), program(repetition_penalty=1.5)
    assert plain == program(repetition_penalty=1)
    assert "1.500000e+00" in penalised
    assert "1.500000e+00" not in plain


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_generates(small, dtype):
    """Tokens of a float16 or bfloat16 cache, beside the full pass in the same dtype."""
    model, params = small
    half = Transformer(dataclasses.replace(model.config, dtype=dtype))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    found = lm.generate(half, params, PROMPTS, max_new_tokens=12)
    assert np.isfinite(found.log_probs).all()
    for prompt, row in zip(PROMPTS, found.tokens[:, 0].tolist(), strict=True):
        logits = jax.jit(half.apply)({"params": params}, jnp.array([prompt + row]))[0]
        chosen = logits[jnp.arange(len(prompt) - 1, len(prompt) + 11), jnp.array(row)]
        best = logits[len(prompt) - 1 : -1].max(axis=-1)
        np.testing.assert_allclose(chosen, best, rtol=0.05, atol=0.05)
