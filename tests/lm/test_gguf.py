"""GGUF files: each quantisation and architecture, tokenizers, and what is refused.

Logits beside transformers': tests/lm/test_parity.py.
"""

import dataclasses
import functools
import itertools
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from gguf_files import as_llama_cpp_has_them, fields_of, write
from random_params import params_of
from safetensors.numpy import load_file

from metajax.lm import (
    CheckpointError,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)
from metajax.models import Rotary, TransformerConfig

SIZES = {"vocab_size": 32, "width": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
SIZES |= {"mlp_width": 24, "max_length": 64}
CONFIGS = {
    "llama": TransformerConfig.llama(**SIZES),
    "llama-biases": TransformerConfig.llama(
        **SIZES, tied=True, qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "qwen2": TransformerConfig.qwen2(**SIZES),
    "qwen3": TransformerConfig.qwen3(**SIZES | {"head_dim": 8}),
    "gemma3": TransformerConfig.gemma3(
        **SIZES | {"n_layers": 7, "head_dim": 8}, rotary=Rotary(1e6, "linear", 8.0)
    ),
}


def tensors_of(config, folder, architecture):
    save_pretrained(folder, config, params_of(config))
    return as_llama_cpp_has_them(load_file(folder / "model.safetensors"), config, architecture)


@pytest.fixture
def made(tmp_path):
    """``made(config)`` writes a file, with other fields and tensors if given."""

    def make(config, architecture="qwen3", fields=None, tensors=None, quantisation=None):
        found = tensors_of(config, tmp_path / "folder", architecture) | (tensors or {})
        every = fields_of(config, architecture) | (fields or {})
        kept = lambda table: {k: v for k, v in table.items() if v is not None}
        path = tmp_path / "model.gguf"
        write(path, architecture, kept(every), kept(found), quantisation)
        return path

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_the_one_that_was_written(made, name):
    config = CONFIGS[name]
    path = made(config, name.split("-")[0])
    model, params = load_pretrained(path)
    assert model.config == config
    # Gemma's norms are stored as one plus the parameter.
    tolerance = 2e-7 if name == "gemma3" else 0
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    jax.tree.map(close, params, params_of(config))
    apart, separate = load_pretrained(path, scan=False, dtype=jnp.bfloat16)
    assert apart.config == dataclasses.replace(config, scan=False, dtype=jnp.bfloat16)
    assert separate["block_1"]["attention"]["query"]["kernel"].dtype == jnp.bfloat16


WIDE = {"vocab_size": 5, "width": 256, "n_layers": 1, "n_heads": 2, "head_dim": 128}
WIDE = TransformerConfig.qwen3(**WIDE, mlp_width=256)


@pytest.mark.parametrize(
    "name",
    [
        *("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"),
        *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"),
    ],
)
def test_a_quantisation_becomes_the_floats_of_the_library(tmp_path, monkeypatch, name):
    monkeypatch.setattr("metajax.lm._gguf._CHUNK", 600)  # a matrix is read in many parts
    tensors = tensors_of(WIDE, tmp_path / "folder", "qwen3")
    stored = write(tmp_path / "m.gguf", "qwen3", fields_of(WIDE, "qwen3"), tensors, name)
    _, params = load_pretrained(tmp_path / "m.gguf")
    block = params["blocks"]
    for ours, theirs in (
        (params["embed"]["embedding"], "token_embd"),
        (params["head"]["kernel"].T, "output"),
        (block["mlp"]["down"]["kernel"][0].T, "blk.0.ffn_down"),
        (block["attention"]["query"]["kernel"][0].T, "blk.0.attn_q"),
        (block["mlp_norm"]["scale"][0], "blk.0.ffn_norm"),
    ):
        assert np.isfinite(stored[f"{theirs}.weight"]).all()
        np.testing.assert_array_equal(ours, stored[f"{theirs}.weight"])


@pytest.mark.parametrize("original", [8192, 16])
def test_llama_3s_scaling_is_read_from_its_factors(made, original):
    rotary = Rotary(1e4, "llama3", 8.0, original_length=original)
    config = dataclasses.replace(CONFIGS["llama"], rotary=rotary, n_kv_heads=4, head_dim=16)
    factors = Rotary(1e4).frequencies(16) / rotary.frequencies(16)
    tensors = {"rope_freqs.weight": factors.astype(np.float32)}
    fields = {} if original == 8192 else {"llama.rope.scaling.original_context_length": original}
    model, _ = load_pretrained(made(config, "llama", fields, tensors))
    np.testing.assert_allclose(
        model.config.rotary.frequencies(16), rotary.frequencies(16), rtol=1e-5
    )
    tensors["rope_freqs.weight"][0] = 2
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight isn't Llama 3's scaling"):
        load_pretrained(made(config, "llama", fields, tensors))


def test_the_windows_of_gemma(made):
    config = CONFIGS["gemma3"]
    for field, windows in ((3, (512, 512, 0)), ([True, False] * 3 + [True], (512, 0))):
        path = made(config, "gemma3", {"gemma3.attention.sliding_window_pattern": field})
        found = load_pretrained(path)[0].config
        assert found == dataclasses.replace(config, windows=windows)
    for window in (None, 0):
        fields = {"gemma3.attention.sliding_window": window}
        with pytest.raises(CheckpointError, match=r"attention\.sliding_window must be at least 1"):
            load_pretrained(made(config, "gemma3", fields))
    large = dataclasses.replace(config, n_layers=62)  # as llama.cpp knows the largest
    assert load_pretrained(made(large, "gemma3"))[0].config.score_width == 16 // 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qwen3.embedding_length": None}, ["qwen3.embedding_length", "missing"]),
        ({"qwen3.embedding_length": "wide"}, ["embedding_length must be an integer", "'wide'"]),
        ({"qwen3.embedding_length": 24}, ["has shape", "(32, 16)", "(32, 24)"]),
        ({"qwen3.attention.head_count": 0}, ["attention.head_count must be at least 1"]),
        ({"qwen3.attention.head_count_kv": [2, 4]}, ["head_count_kv must be an integer", "[2, 4]"]),
        ({"qwen3.attention.value_length": 4}, ["attention.value_length=4", "8 is"]),
        ({"qwen3.rope.dimension_count": 4}, ["rope.dimension_count=4"]),
        ({"qwen3.rope.scaling.type": "yarn"}, ["rope.scaling.type='yarn'"]),
        ({"qwen3.attention.sliding_window": 128}, ["attention.sliding_window=128"]),
        ({"qwen3.expert_count": 8}, ["qwen3.expert_count=8"]),
        ({"qwen3.logit_scale": 0.5}, ["qwen3.logit_scale=0.5"]),
        ({"qwen3.block_count": 3}, ["missing: blk.2"]),
        ({"qwen3.block_count": 10**9}, ["block_count is 1000000000", "only 25 tensors"]),
        ({"split.count": 3}, ["split.count=3"]),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, ["tokenizer has 2 tokens", "has 32"]),
    ],
)
def test_metadata_that_is_not_supported_is_refused_by_name(made, fields, words):
    path = made(CONFIGS["qwen3"], fields=fields)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(path)
    assert all(word in str(error.value) for word in [*words, "model.gguf"])


def test_another_architecture_or_quantisation_is_refused_by_name(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, "mamba", {}, {"token_embd.weight": np.zeros((4, 32), np.float32)})
    with pytest.raises(CheckpointError, match=r"general\.architecture='mamba'.* 'gemma3' is"):
        load_pretrained(path)
    write(path, "llama", {}, {"token_embd.weight": np.zeros((4, 256), np.float32)}, "TQ1_0")
    with pytest.raises(CheckpointError, match=r"token_embd.weight is stored as TQ1_0.*Q4_K"):
        load_pretrained(path)


def test_missing_and_unexpected_tensors_are_listed(made):
    experts = np.zeros((2, 2), np.float32)
    tensors = {"blk.1.ffn_up.weight": None, "blk.0.ffn_gate_exps.weight": experts}
    with pytest.raises(CheckpointError, match=r"1 missing: blk\.1\.ffn_up.*1 unexpected: .*_exps"):
        load_pretrained(made(CONFIGS["qwen3"], tensors=tensors))


def test_a_file_cut_short_or_changed_is_named(made):
    path = made(CONFIGS["qwen3"], fields={"tokenizer.ggml.scores": [0.0] * 32})
    whole = path.read_bytes()
    for kept in (0, 3, 10, 30, 100, 500, 700, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"model\.gguf is no GGUF file, or is cut short"):
            load_pretrained(path)
    for at, new in itertools.product((4, 8, 15, 16, 24), (b"\xff", b"\0\0\0\x7f", b"\xff" * 8)):
        path.write_bytes(whole[:at] + new + whole[at + len(new) :])
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            load_pretrained(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.gguf is missing"):
        load_pretrained(path)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(made, monkeypatch):
    path = made(CONFIGS["qwen3"])
    monkeypatch.setattr(os, "sysconf", lambda name: 30)
    monkeypatch.setattr("metajax.lm._gguf.GGUFFile.read", None)
    with pytest.raises(CheckpointError, match=r"in float32 would take .* GiB, more than"):
        load_pretrained(path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"gguf is needed.*metajax\[lm\]"):
        load_pretrained(tmp_path / "model.gguf")


PIECES = ["<unk>", "<s>", "</s>", "<0x41>", "<0xC3>", "<0xA9>", "▁", "a", "b", "n", "t", "an", "▁b"]
PIECES += ["ban", "▁ban", "ana", "na", "<turn>", "  "]
SCORES = [0, 0, 0, 0, 0, 0, -20, -21, -22, -23, -24, -3, -4, -1, -2, -5, -6, 0, 0]
TYPES = [2, 3, 3, 6, 6, 6, *[1] * 11, 3, 4]
PIECES += [f"<{number}>" for number in range(32 - len(PIECES))]
SCORES += [-100 - number for number in range(32 - len(SCORES))]
TYPES += [1] * (32 - len(TYPES))
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": list(map(float, SCORES)),
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
}


def merged(text):
    """SentencePiece by a loop: the pair of neighbours whose union has the highest score merges."""
    pieces, scores = list(text), dict(zip(PIECES, SCORES, strict=True))
    while True:
        pairs = [(scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(pieces))
                 if a + b in scores]  # fmt: skip
        if not pairs:
            return [PIECES.index(piece) for piece in pieces]
        _, at = max(pairs, key=lambda pair: (pair[0], -pair[1]))
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]


def test_a_tokenizer_of_sentencepiece(made):
    path = made(CONFIGS["qwen3"], fields=SENTENCEPIECE)
    assert load_pretrained(path)[0].config.stop_tokens == (2,)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 32
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    for text in ("banana", "ban ana tan", "nnabt", "b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == merged("▁" + text.replace(" ", "▁"))
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a") == [1, *merged("▁a")]
    assert tokenizer.encode("né") == [1, *merged("▁n"), 4, 5]  # the bytes of what has no piece
    assert tokenizer.decode(tokenizer.encode("né")[1:]) == "né"
    assert tokenizer.encode("<turn>") == [1, 17]
    assert tokenizer.decode([17, 7], skip_special_tokens=True) == "a"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ana"}]) == "<s>ana"
    fields = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    fields |= {"tokenizer.ggml.add_eos_token": True}
    tokenizer = load_tokenizer(made(CONFIGS["qwen3"], fields=SENTENCEPIECE | fields))
    assert tokenizer.encode("ana") == [*merged("ana"), 2]
    assert tokenizer.encode("a  b") == [7, 18, 8, 2]  # two spaces are a piece of their own
    assert tokenizer.decode([7, 18, 8]) == "a  b"


TEXT = "the cat's on the mat, and 12345 dogs sat\n\n  on the log; naïve café — 東京"


def byte_level(cut):
    """A tokenizer that is trained here, and the fields of the same one in a file."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 5, trainer)
    stored = json.loads(backend.to_str())["model"]
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]]
    return backend, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": sorted(stored["vocab"], key=stored["vocab"].get),
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.token_type": [3] + [1] * (len(stored["vocab"]) - 1),
        "tokenizer.ggml.eos_token_id": 0,
    }


def test_a_tokenizer_of_bytes(made):
    backend, fields = byte_level("gpt-2")
    config = dataclasses.replace(CONFIGS["qwen3"], vocab_size=backend.get_vocab_size())
    tokenizer = load_tokenizer(made(config, fields=fields))
    for text in (TEXT, "", " a  b\t", "mat<|end|>", "don't 1 22 333 4444"):
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == 0
    # SmolLM and Qwen cut between all digits, Llama 3 after three.
    for cut, most in (("smollm", 1), ("qwen2", 1), ("llama-bpe", 3)):
        tokenizer = load_tokenizer(made(config, fields=fields | {"tokenizer.ggml.pre": cut}))
        pieces = [word for word, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str("12345 ab")]
        assert [len(piece) for piece in pieces if piece.isdigit()] == (
            [1] * 5 if most == 1 else [3, 2]
        )
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_a_model_is_saved_as_a_folder_with_its_tokenizer(made, tmp_path):
    tokens = {"tokenizer.ggml.eot_token_id": 17, "tokenizer.ggml.padding_token_id": 0}
    path = made(CONFIGS["gemma3"], "gemma3", SENTENCEPIECE | tokens)
    model, params = load_pretrained(path)
    assert model.config.stop_tokens == (2, 17)
    save_pretrained(tmp_path / "new", model.config, params)
    again, stored = load_pretrained(tmp_path / "new")
    assert again.config == model.config
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, stored))
    fields = json.loads((tmp_path / "new" / "config.json").read_text())
    ids = [fields[f"{name}_token_id"] for name in ("bos", "eos", "pad")]
    assert ids == [1, [2, 17], 0]
    found, wanted = load_tokenizer(tmp_path / "new"), load_tokenizer(path)
    for text in ("banana", "ban ana", "né<turn>", ""):
        assert found.encode(text) == wanted.encode(text)
    assert found.special_tokens == wanted.special_tokens
    assert found.chat_templates == wanted.chat_templates
    # A tokenizer that can't be read doesn't keep the weights from being saved.
    model, params = load_pretrained(made(CONFIGS["gemma3"], "gemma3"))
    with pytest.warns(UserWarning, match=r"has no tokenizer\. No tokenizer is written to"):
        save_pretrained(tmp_path / "other", model.config, params)
    assert load_pretrained(tmp_path / "other")[0].config == model.config
    other = {"tokenizer.ggml.add_space_prefix": False}
    model, _ = load_pretrained(made(CONFIGS["gemma3"], "gemma3", SENTENCEPIECE | other))
    with pytest.warns(UserWarning, match="new has a tokenizer of its own, which stays"):
        save_pretrained(tmp_path / "new", model.config, params)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tokenizer.ggml.tokens": None}, ["has no tokenizer"]),
        ({"tokenizer.ggml.tokens": PIECES[:-1]}, ["31 tokens", "has 32"]),
        ({"tokenizer.ggml.tokens": ["a", *PIECES[:-1]]}, ["tokens must hold each of them once"]),
        ({"tokenizer.ggml.tokens": [1] * 32}, ["tokens must be a list of texts"]),
        ({"tokenizer.ggml.scores": ["1"] * 32}, ["scores must be a list of numbers"]),
        ({"tokenizer.ggml.merges": [1], "tokenizer.ggml.model": "gpt2"}, ["merges must be a list"]),
        ({"tokenizer.ggml.model": "bert"}, ["tokenizer.ggml.model='bert'", "'llama' or 'gpt2' is"]),
        ({"tokenizer.ggml.scores": None}, ["scores must have 32 numbers, got 0"]),
        ({"tokenizer.ggml.token_type": [1, 2]}, ["token_type has 2 numbers for 32 tokens"]),
        ({"tokenizer.ggml.bos_token_id": 32}, ["bos_token_id must be below 32, got 32"]),
        ({"tokenizer.ggml.model": "gpt2"}, ["merges must be pairs"]),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a n"]}
            | {"tokenizer.ggml.pre": "tekken"},
            ["tokenizer.ggml.pre='tekken'", "'qwen2'"],
        ),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["x y"]}
            | {"tokenizer.ggml.pre": "qwen2"},
            ["merges don't fit its tokens"],
        ),
    ],
)
def test_a_tokenizer_that_does_not_serve_is_refused_by_name(made, fields, words):
    path = made(CONFIGS["qwen3"], fields=SENTENCEPIECE | fields)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(path)
    assert all(word in str(error.value) for word in [*words, "model.gguf"])
