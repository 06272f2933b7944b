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

from metajax import lm
from metajax.lm import load_pretrained, save_pretrained

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's and transformers' own

VOCABULARY, LENGTH = 97, 24
FULL, SLIDING = "full_attention", "sliding_attention"


def llama_like(**options):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
        **options,
    }


def gpt2_like(**options):
    return {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **options,
    }


def rope(kind, **options):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **options}}


def gemma3_like(**options):
    return llama_like(
        num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=40, sliding_window=5, **options
    )


WINDOW = {"use_sliding_window": True, "sliding_window": 5}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "gpt2": ("GPT2Config", gpt2_like()),
    "gpt2-untied": ("GPT2Config", gpt2_like(tie_word_embeddings=False)),
    "gpt2-other-mlp": ("GPT2Config", gpt2_like(n_inner=48, activation_function="gelu")),
    "llama2": ("LlamaConfig", llama_like()),
    "llama-grouped": ("LlamaConfig", llama_like(num_key_value_heads=2)),
    "llama-one-kv-head": ("LlamaConfig", llama_like(num_key_value_heads=1)),
    "llama-tied": ("LlamaConfig", llama_like(tie_word_embeddings=True)),
    "llama-biases": ("LlamaConfig", llama_like(attention_bias=True, mlp_bias=True)),
    "llama-head-dim": ("LlamaConfig", llama_like(head_dim=20)),
    "llama3-rope": ("LlamaConfig", llama_like(**rope("llama3", **LLAMA3))),
    "llama-linear-rope": ("LlamaConfig", llama_like(**rope("linear", factor=2.0))),
    "qwen2": ("Qwen2Config", llama_like(num_key_value_heads=2)),
    "qwen2-tied": ("Qwen2Config", llama_like(tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", llama_like(num_key_value_heads=2, head_dim=24)),
    "qwen3-default-head": ("Qwen3Config", llama_like(tie_word_embeddings=True)),
    "mistral": ("MistralConfig", llama_like(num_key_value_heads=2, sliding_window=5)),
    "qwen2-window": ("Qwen2Config", llama_like(**WINDOW, max_window_layers=1)),
    "qwen3-window": ("Qwen3Config", llama_like(**WINDOW, layer_types=[SLIDING, FULL, SLIDING])),
    "gemma3": ("Gemma3TextConfig", gemma3_like(layer_types=[SLIDING, FULL, SLIDING])),
    "gemma3-pattern": ("Gemma3TextConfig", gemma3_like() | {"num_hidden_layers": 7}),
    "gemma3-other": (
        "Gemma3TextConfig",
        gemma3_like(
            tie_word_embeddings=False,
            attention_bias=True,
            rope_parameters={
                FULL: {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
            layer_types=[SLIDING, FULL, FULL],
        ),
    ),
}


def reference(kind, options, seed=0):
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases and scales matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens_of(seed=0, batch=3):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, LENGTH))


def logits_of(model, tokens, mask=None, positions=None):
    options = {}
    if mask is not None:
        options = {
            "attention_mask": torch.tensor(mask.astype(np.int64)),
            "position_ids": torch.tensor(positions),
        }
    with torch.no_grad():
        return model(torch.tensor(tokens), **options).logits.numpy()


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
        lengths = np.array([LENGTH, 7, 13])
        places = np.arange(LENGTH)
        offset = LENGTH - lengths[:, None] if side == "left" else np.zeros((3, 1), int)
        mask = (places >= offset) & (places < offset + lengths[:, None])
        positions = np.where(mask, places - offset, 0)
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
    with torch.no_grad():
        row = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, pad_token_id=0, **options,
        )  # fmt: skip
    return row[0, len(prompt) :].tolist()


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
