"""Logits and checkpoints beside transformers' PyTorch models, with random weights."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="transformers' models need PyTorch")
    transformers = pytest.importorskip("transformers", reason="it is what is compared with")

from experiments.benchmarks.parity import (
    CASES,
    LENGTH,
    VOCABULARY,
    greedy_of,
    llama_like,
    logits_of,
    padded,
    reference,
)
from metajax import lm
from metajax.lm import load_pretrained, save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's and transformers' own


def tokens_of(seed=0, batch=3):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, LENGTH))


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    model = reference(*CASES[request.param])
    model.save_pretrained(tmp_path / "theirs")
    return model, tmp_path


def test_logits_agree_with_transformers_without_and_with_padding(case):
    theirs, path = case
    model, params = load_pretrained(path / "theirs")
    tokens = tokens_of()
    apply = jax.jit(model.apply)
    ours = apply({"params": params}, tokens)
    np.testing.assert_allclose(ours, logits_of(theirs, tokens), rtol=0, atol=1e-4)
    for side in ("left", "right"):
        mask, positions = padded(np.array([LENGTH, 7, 13]), side)
        ours = apply({"params": params}, tokens, segment_ids=mask)
        wanted = logits_of(theirs, tokens, mask, positions)
        np.testing.assert_allclose(ours[mask], wanted[mask], rtol=0, atol=1e-4)


def test_a_checkpoint_that_is_saved_again_is_the_same_to_the_bit(case):
    theirs, path = case
    model, params = load_pretrained(path / "theirs", scan=False)
    save_pretrained(path / "ours", model.config, params, shard_bytes=40_000)
    assert len(list((path / "ours").glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(path / "ours")
    assert type(again) is type(theirs)
    stored, wanted = again.state_dict(), theirs.state_dict()
    assert stored.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(stored[name], tensor), name
    # What config.json says is the same too: the loaded model computes the same.
    np.testing.assert_array_equal(logits_of(again, tokens_of()), logits_of(theirs, tokens_of()))
    _, reloaded = load_pretrained(path / "ours", scan=False)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, reloaded))


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_scan_and_no_scan_are_one_function(tmp_path, name):
    reference(*CASES[name]).save_pretrained(tmp_path)
    tokens = tokens_of()
    outputs = []
    for options in ({}, {"scan": False}, {"remat": True}):
        model, params = load_pretrained(tmp_path, **options)
        outputs.append(jax.jit(model.apply)({"params": params}, tokens))
    for other in outputs[1:]:
        np.testing.assert_allclose(outputs[0], other, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-grouped", "gemma3"])
def test_half_precision_is_read_and_written(tmp_path, name):
    theirs = reference(*CASES[name]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params = load_pretrained(tmp_path / "theirs")
    assert model.config.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    save_pretrained(tmp_path / "ours", model.config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    exact, exact_params = load_pretrained(tmp_path / "theirs", dtype=jnp.float32)
    tokens = tokens_of()
    rough = model.apply({"params": params}, tokens)
    assert rough.dtype == jnp.float32
    exactly = exact.apply({"params": exact_params}, tokens)
    assert float(jnp.abs(rough - exactly).max()) < 0.05 * float(jnp.abs(exactly).max())


def test_the_config_of_version_4_means_the_same(tmp_path):
    theirs = reference(*CASES["llama3-rope"])
    theirs.save_pretrained(tmp_path)
    new, _ = load_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    scaling = fields.pop("rope_parameters")
    fields["rope_theta"] = scaling.pop("rope_theta")
    fields["rope_scaling"] = scaling
    fields["torch_dtype"] = fields.pop("dtype")
    file.write_text(json.dumps(fields))
    old, _ = load_pretrained(tmp_path)
    assert old.config == new.config
    assert dataclasses.asdict(old.config.rotary)["scaling"] == "llama3"


def saved_like_a_checkpoint(folder, config_eos, generation_eos):
    """A small model in a folder with end tokens, and generation_config.json where they're given."""
    theirs = reference(*CASES["llama-grouped"])
    theirs.config.eos_token_id = config_eos
    theirs.save_pretrained(folder)
    generation = folder / "generation_config.json"
    generation.unlink(missing_ok=True)
    if generation_eos is not ...:
        generation.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": generation_eos}))


def their_greedy(folder, prompt, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return greedy_of(model, prompt, **options)


def our_greedy(folder, prompt, new, **options):
    model, params = load_pretrained(folder)
    found = lm.generate(
        model, params, [prompt], max_new_tokens=new, sampling=lm.SamplingParams(**options)
    )
    return found.tokens[0, 0, : int(found.lengths[0, 0])].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config", "generation", "both"])
def test_a_saved_checkpoint_stops_where_transformers_does(tmp_path, where):
    prompt = tokens_of()[0].tolist()
    saved_like_a_checkpoint(tmp_path / "free", None, ...)
    free = our_greedy(tmp_path / "free", prompt, 32)
    assert len(free) == 32
    stops = [free[9], free[5], 96]
    config = {"config": stops, "generation": None, "both": free[9]}[where]
    saved_like_a_checkpoint(tmp_path / "theirs", config, ... if where == "config" else stops)
    model, params = load_pretrained(tmp_path / "theirs")
    save_pretrained(tmp_path / "ours", model.config, params)
    wanted = free[: min(map(free.index, stops[:2])) + 1]
    for folder in ("theirs", "ours"):
        assert our_greedy(tmp_path / folder, prompt, 32) == wanted
        assert their_greedy(tmp_path / folder, prompt, max_new_tokens=32) == wanted
    again = transformers.GenerationConfig.from_pretrained(
        tmp_path / "ours", config_file_name="config.json" if where == "config" else None
    )
    assert again.eos_token_id == stops


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_a_repetition_penalty_is_that_of_transformers(tmp_path, penalty):
    saved_like_a_checkpoint(tmp_path, None, ...)
    for prompt in tokens_of().tolist():
        for part in (prompt, prompt[:5]):
            found = our_greedy(tmp_path, part, 32, repetition_penalty=penalty)
            assert len(found) == 32
            options = {"max_new_tokens": 32, "repetition_penalty": penalty}
            assert their_greedy(tmp_path, part, **options) == found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Qwen2Config", {"max_window_layers": 3, "sliding_window": 8, "use_sliding_window": True}),
        ("Qwen2Config", {"max_window_layers": 0, "sliding_window": 64, "use_sliding_window": True}),
        ("Qwen3Config", {"max_window_layers": 9, "sliding_window": 8, "use_sliding_window": True}),
        ("MistralConfig", {"sliding_window": None}),
        ("MistralConfig", {"sliding_window": 64}),
    ],
)
def test_windows_that_hide_nothing_change_nothing(tmp_path, kind, options):
    theirs = reference(kind, llama_like(num_key_value_heads=2, **options))
    theirs.save_pretrained(tmp_path)
    model, params = load_pretrained(tmp_path)
    tokens = tokens_of()
    ours = jax.jit(model.apply)({"params": params}, tokens)
    np.testing.assert_allclose(ours, logits_of(theirs, tokens), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "qwen2-window", "gemma3"])
def test_generation_across_the_window_is_that_of_transformers(tmp_path, name):
    """With and without a cache on both sides."""
    theirs = reference(*CASES[name])
    theirs.config.eos_token_id = None
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    model, params = load_pretrained(tmp_path)
    for length in (2, 12):
        prompt = tokens_of()[0, :length].tolist()
        row = list(prompt)
        for _ in range(24):
            row.append(int(logits_of(theirs, np.array([row]))[0, -1].argmax()))
        assert our_greedy(tmp_path, prompt, 24) == row[length:]
        assert their_greedy(tmp_path, prompt, max_new_tokens=24) == row[length:]
        full = jax.jit(model.apply)({"params": params}, np.array([row]))
        assert full[0, length - 1 : -1].argmax(axis=-1).tolist() == row[length:]


def test_the_config_of_gemma_3_in_version_4_means_the_same(tmp_path):
    """Its fields, read by transformers too."""
    reference(*CASES["gemma3-pattern"]).save_pretrained(tmp_path / "new")
    new, params = load_pretrained(tmp_path / "new")
    save_pretrained(tmp_path / "old", new.config, params)
    file = tmp_path / "old" / "config.json"
    fields = json.loads(file.read_text())
    for name in ("rope_parameters", "layer_types", "dtype"):
        del fields[name]
    file.write_text(json.dumps(fields))
    old, _ = load_pretrained(tmp_path / "old")
    assert old.config == new.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    ours = jax.jit(old.apply)({"params": params}, tokens_of())
    np.testing.assert_allclose(ours, logits_of(theirs, tokens_of()), rtol=0, atol=1e-4)


def test_float16_computes_as_in_transformers(tmp_path):
    theirs = reference(*CASES["qwen2"]).to(torch.float16)
    theirs.save_pretrained(tmp_path)
    model, params = load_pretrained(tmp_path)
    assert model.config.dtype == jnp.float16
    tokens = tokens_of()
    ours, wanted = model.apply({"params": params}, tokens), logits_of(theirs, tokens)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())
