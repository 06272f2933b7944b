"""Bad checkpoints, and what loading and saving leave behind."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_params import params_of
from safetensors.numpy import load_file, save_file

from metajax.lm import CheckpointError, checkpoints, load_pretrained, lora, save_pretrained
from metajax.lm._folder import JsonFile
from metajax.lm._hf_config import from_hf, to_hf
from metajax.models import Rotary, TransformerConfig

SIZES = {"vocab_size": 16, "width": 8, "n_layers": 2, "n_heads": 2, "max_length": 16}
CONFIG = TransformerConfig.llama(**SIZES)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path, CONFIG, params_of(CONFIG))
    return tmp_path


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mamba"}, ["model_type", "mamba", "llama"]),
        ({"model_type": ...}, ["model_type", "None"]),
        ({"num_hidden_layers": ...}, ["num_hidden_layers", "missing"]),
        ({"rms_norm_eps": ...}, ["rms_norm_eps", "missing"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_type", "yarn"]),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["rope_scaling", "type", "dynamic"],
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, ["factor", "missing"]),
        ({"sliding_window": 128}, ["sliding_window", "128"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_attention"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"dtype": "int8"}, ["dtype", "int8"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"hidden_size": "wide"}, ["hidden_size must be an integer", "'wide'"]),
        ({"tie_word_embeddings": 1}, ["tie_word_embeddings must be true or false", "1"]),
        ({"num_attention_heads": 0}, ["n_heads must be at least 1"]),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(fields, words):
    fields = to_hf(CONFIG, CONFIG.dtype) | fields
    fields = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(CheckpointError) as error:
        from_hf(JsonFile(fields, "config.json"))
    assert all(word in str(error.value) for word in [*words, "config.json"])


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "tanh"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
    ],
)
def test_a_gpt2_of_another_kind_is_refused_by_name(fields):
    config = TransformerConfig.gpt2(**SIZES)
    with pytest.raises(CheckpointError, match=next(iter(fields))):
        from_hf(JsonFile(to_hf(config, config.dtype) | fields, "config.json"))


def test_a_model_that_hugging_face_does_not_know_is_not_saved(tmp_path):
    config = TransformerConfig.nope(**SIZES)
    with pytest.raises(CheckpointError, match="none of gpt2, llama, mistral, qwen2, qwen3"):
        save_pretrained(tmp_path / "new", config, params_of(config))
    assert not (tmp_path / "new").exists()


def test_missing_and_unexpected_tensors_are_listed(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros(3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.norm.*1 unexpected: .*layers\.7"):
        load_pretrained(folder)


def test_a_tensor_of_another_shape_is_named(folder):
    edit(folder, intermediate_size=24)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*mlp.*\(32, 8\).*\(24, 8\)"):
        load_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -3])
def test_a_file_cut_short_is_named(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_pretrained(folder)


def test_missing_files_are_named(folder, tmp_path):
    params = params_of(CONFIG)
    save_pretrained(folder, CONFIG, params, shard_bytes=2000)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert "model.safetensors" not in [file.name for file in shards]  # of the save before
    assert max(file.stat().st_size for file in shards) < 2000 + 2000
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="isn't JSON"):
        load_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object, got list"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_pretrained(folder)


def test_an_index_may_not_name_files_elsewhere(folder):
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"weight_map must be an object .* beside it"):
        load_pretrained(folder)


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path):
    config = TransformerConfig.llama(**SIZES, tied=True)
    save_pretrained(tmp_path, config, params_of(config))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, file)
    load_pretrained(tmp_path)
    tensors["lm_head.weight"] = 2 * tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        load_pretrained(tmp_path)


def test_the_names_of_old_gpt2_files_are_read(tmp_path):
    config = TransformerConfig.gpt2(**SIZES)
    params = params_of(config)
    save_pretrained(tmp_path, config, params)
    file = tmp_path / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
    tensors["h.0.attn.bias"] = np.zeros((1, 1, 4, 4), np.float32)
    save_file(tensors, file)
    _, loaded = load_pretrained(tmp_path)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, loaded))


def test_a_name_that_is_no_folder_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is no folder"):
        load_pretrained(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"huggingface_hub is needed.*metajax\[lm\]"):
        load_pretrained("someone/model")

    class Offline:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            raise ConnectionError(f"no route to {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Offline)
    with pytest.raises(CheckpointError, match=r"no route to someone/model.*pass their folder"):
        load_pretrained("someone/model")


def test_a_hub_id_is_read_from_where_the_client_puts_it(folder, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            assert name == "someone/model"
            assert "*.safetensors" in allow_patterns
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    model, _ = load_pretrained("someone/model")
    assert model.config == CONFIG


def test_params_that_do_not_fit_the_config_are_not_saved(tmp_path):
    params = params_of(CONFIG)
    with pytest.raises(CheckpointError, match=r"params: norm/scale is missing"):
        save_pretrained(tmp_path, CONFIG, {k: v for k, v in params.items() if k != "norm"})
    with pytest.raises(CheckpointError, match=r"head/kernel has shape \(8, 5\)"):
        save_pretrained(tmp_path, CONFIG, params | {"head": {"kernel": jnp.zeros((8, 5))}})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="shard_bytes"):
        save_pretrained(tmp_path, CONFIG, params, shard_bytes=0)


@pytest.mark.slow
def test_loading_takes_about_one_copy_of_memory(tmp_path):
    config = TransformerConfig.llama(
        vocab_size=4096, width=512, n_layers=8, n_heads=8, max_length=64
    )
    params = params_of(config)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_pretrained(tmp_path, config, params)
    # The most that NumPy held at once; JAX's own arrays replace these leaf by leaf.
    code = (
        "import sys, tracemalloc\n"
        "from metajax.lm import load_pretrained\n"
        "tracemalloc.start()\n"
        "load_pretrained(sys.argv[1])\n"
        "print(tracemalloc.get_traced_memory()[1])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 1.3 * size


def test_the_description_of_a_configuration_reads_back():
    for config in (
        TransformerConfig.gpt2(**SIZES),
        TransformerConfig.llama(**SIZES, n_kv_heads=1),
        TransformerConfig.qwen2(**SIZES),
        TransformerConfig.qwen3(**SIZES),
    ):
        assert from_hf(JsonFile(to_hf(config, config.dtype), "config.json")) == config


GENERATION = {"eos_token_id": [2, 5], "temperature": 0.6, "transformers_version": "4.51.0"}
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/rag.jinja",
)


@pytest.fixture
def complete(folder):
    """A checkpoint as it comes: tokens, generation_config.json, a tokenizer, and other files."""
    edit(folder, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "additional_chat_templates").mkdir()
    for name in (*TOKENIZER, "README.md"):
        (folder / name).write_text(f"of {name}")
    return folder


def fields_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def test_what_was_read_is_written_again_and_again(complete, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    model, params = load_pretrained(complete)
    assert model.config.stop_tokens == (2, 5)
    tuned = jax.tree.map(lambda leaf: leaf + 1, params)
    save_pretrained(first, model.config, tuned, shard_bytes=2000)
    save_pretrained(first, model.config, tuned)  # over it
    again, stored = load_pretrained(first, scan=False)
    save_pretrained(second, again.config, stored)
    for written in (first, second):
        tokens = {k: v for k, v in fields_of(written).items() if k.endswith("_token_id")}
        assert tokens == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        assert fields_of(written, "generation_config.json") == GENERATION
        for name in TOKENIZER:
            assert (written / name).read_text() == f"of {name}"
        assert not (written / "README.md").exists()
        found, _ = load_pretrained(written)
        assert found.config == model.config


def test_merged_factors_are_saved_with_the_tokenizer(complete, tmp_path):
    model, params = load_pretrained(complete)
    factors = lora.init(params, jax.random.key(0), rank=2, targets="attention/query/kernel")
    save_pretrained(tmp_path / "merged", model.config, lora.merge(params, factors))
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == "of tokenizer.json"
    assert load_pretrained(tmp_path / "merged")[0].config.stop_tokens == (2, 5)


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        (2, ..., (2,)),
        ([2, 5], ..., (2, 5)),
        (None, ..., ()),
        (..., ..., ()),
        (2, {"eos_token_id": [5, 2, 9]}, (2, 5, 9)),
        (2, {"temperature": 0.6}, (2,)),
        (2, {"eos_token_id": None}, (2,)),
        (None, {"eos_token_id": 5}, (5,)),
        (50256, {"eos_token_id": [16, -1, 3]}, (3,)),  # the vocabulary has 16
    ],
)
def test_the_end_tokens_of_both_files_are_kept(folder, tmp_path, config, generation, stops):
    fields = fields_of(folder) | {"eos_token_id": config}
    fields = {name: value for name, value in fields.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    if generation is not ...:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    model, params = load_pretrained(folder)
    assert model.config.stop_tokens == stops
    save_pretrained(tmp_path / "copy", model.config, params)
    written = fields_of(tmp_path / "copy")
    assert written["eos_token_id"] == (None if config is ... else config)
    assert (tmp_path / "copy" / "generation_config.json").exists() == (generation is not ...)
    if generation is not ...:
        assert fields_of(tmp_path / "copy", "generation_config.json") == generation


def test_other_end_tokens_replace_those_that_were_read(complete, tmp_path):
    model, params = load_pretrained(complete)
    for stops, eos in (((7,), 7), ((3, 4), [3, 4]), ((), None)):
        config = dataclasses.replace(model.config, stop_tokens=stops)
        save_pretrained(tmp_path / "copy", config, params)
        assert fields_of(tmp_path / "copy")["eos_token_id"] == eos
        generation = fields_of(tmp_path / "copy", "generation_config.json")
        assert generation == GENERATION | {"eos_token_id": eos}
        assert load_pretrained(tmp_path / "copy")[0].config.stop_tokens == stops


def test_end_tokens_of_a_new_model_are_saved(tmp_path):
    config = TransformerConfig.llama(**SIZES, stop_tokens=[3])
    save_pretrained(tmp_path, config, params_of(config))
    assert fields_of(tmp_path)["eos_token_id"] == 3
    assert load_pretrained(tmp_path)[0].config == config
    with pytest.raises(ValueError, match="stop_tokens must be below vocab_size=16, got 16"):
        TransformerConfig.llama(**SIZES, stop_tokens=[16])


def test_a_checkpoint_saved_over_itself_keeps_its_files(complete):
    model, params = load_pretrained(complete)
    save_pretrained(complete, model.config, params, shard_bytes=2000)
    assert fields_of(complete)["pad_token_id"] == 0
    assert fields_of(complete, "generation_config.json") == GENERATION
    assert (complete / "merges.txt").read_text() == "of merges.txt"


def test_another_tokenizer_in_the_folder_stays_and_is_named(complete, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "tokenizer.json").write_text("mine")
    model, params = load_pretrained(complete)
    with pytest.warns(UserWarning, match="own has a tokenizer of its own, which stays"):
        save_pretrained(own, model.config, params)
    assert (own / "tokenizer.json").read_text() == "mine"
    assert not (own / "merges.txt").exists()
    assert fields_of(own)["eos_token_id"] == 2


def test_a_source_that_is_gone_is_named_and_the_weights_are_saved(complete, tmp_path):
    model, params = load_pretrained(complete)
    (complete / "config.json").rename(complete / "elsewhere.json")
    with pytest.warns(UserWarning, match="is gone: its tokenizer and generation_config"):
        save_pretrained(tmp_path / "copy", model.config, params)
    found, again = load_pretrained(tmp_path / "copy")
    assert found.config.stop_tokens == (2, 5)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, again))


def test_the_source_changes_no_program(complete):
    """It isn't compared: the same model from two folders shares compiled programs."""
    config = load_pretrained(complete)[0].config
    moved = dataclasses.replace(config, source=None)
    assert config.source is not None
    assert config == moved
    assert hash(config) == hash(moved)
    assert "source" not in repr(config)


@pytest.mark.parametrize("fields", [{"eos_token_id": "2"}, {"eos_token_id": [1, True]}])
def test_end_tokens_that_are_none_are_named(folder, fields):
    (folder / "generation_config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be an"):
        load_pretrained(folder)


QWEN = TransformerConfig.qwen2(**SIZES)  # two layers, at most 16 tokens


@pytest.mark.parametrize("config", [QWEN, TransformerConfig.qwen3(**SIZES | {"head_dim": 8})])
@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 4},  # from layer 28 on
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
        | {"layer_types": ["full_attention"] * 2},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 0},  # of 4096
        {"use_sliding_window": True, "sliding_window": 16}
        | {"layer_types": ["full_attention", "sliding_attention"]},
        {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0},
        {"sliding_window": 4, "max_window_layers": 0},
    ],
)
def test_windows_that_hide_nothing_are_read(config, fields):
    assert from_hf(JsonFile(to_hf(config, config.dtype) | fields, "config.json")) == config


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": 4, "max_window_layers": 1}, (0, 4)),
        ({"sliding_window": 15, "max_window_layers": 0}, (15, 15)),
        (
            {"sliding_window": 4, "max_window_layers": 0}
            | {"layer_types": ["sliding_attention", "full_attention"]},
            (4, 0),
        ),
    ],
)
def test_windows_that_hide_tokens_are_read_and_written(fields, windows):
    for config in (QWEN, TransformerConfig.qwen3(**SIZES)):
        whole = to_hf(config, config.dtype) | {"use_sliding_window": True} | fields
        found = from_hf(JsonFile(whole, "config.json"))
        assert found == dataclasses.replace(config, windows=windows)
        written = to_hf(found, found.dtype)
        assert from_hf(JsonFile(written, "config.json")) == found
        if windows[0] == 0:  # as version 4 reads it, which has no layer_types
            assert from_hf(JsonFile(written | {"layer_types": None}, "config.json")) == found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention"]},
            ["layer_types='sliding_attention'"],
        ),
        ({"layer_types": ["chunked_attention"] * 2}, ["layer_types='chunked_attention'"]),
        ({"layer_types": ["full_attention"]}, ["num_hidden_layers=2", "got 1"]),
        ({"sliding_window": "4"}, ["sliding_window must be an integer", "'4'"]),
        ({"sliding_window": 0}, ["sliding_window=0"]),
        ({"max_window_layers": True}, ["max_window_layers must be an integer"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers=1000000000000"]),
    ],
)
def test_windows_that_make_no_sense_are_refused_by_name(fields, words):
    fields = {"use_sliding_window": True, "sliding_window": 4} | fields
    with pytest.raises(CheckpointError) as error:
        from_hf(JsonFile(to_hf(QWEN, QWEN.dtype) | fields, "config.json"))
    assert all(word in str(error.value) for word in [*words, "config.json"])


def test_a_mistral_is_a_llama_with_a_window():
    fields = to_hf(CONFIG, CONFIG.dtype) | {"model_type": "mistral"}
    for window in ({"sliding_window": None}, {"sliding_window": 16}, {}):
        assert from_hf(JsonFile(fields | window, "config.json")) == CONFIG
    types = {"layer_types": ["full_attention"] * 2}  # which Mistral doesn't have
    for more in ({}, types):
        found = from_hf(JsonFile(fields | more | {"sliding_window": 8}, "config.json"))
        assert found == dataclasses.replace(CONFIG, windows=(8,))
        assert to_hf(found, found.dtype)["model_type"] == "mistral"
    long = fields | {"max_position_embeddings": 5000}
    assert from_hf(JsonFile(long, "config.json")).windows == (4096, 4096)


GEMMA = TransformerConfig.gemma3(**SIZES | {"n_layers": 7, "n_kv_heads": 1, "max_length": 600})


def test_the_config_of_gemma_3_in_versions_4_and_5():
    scaled = dataclasses.replace(GEMMA, rotary=Rotary(1e6, "linear", 8.0), score_width=168)
    for config in (GEMMA, scaled):
        fields = to_hf(config, config.dtype)
        assert fields["model_type"] == "gemma3_text"
        new = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
        old = ("rope_parameters", "layer_types")
        for left_out in ((), new, old):
            kept = {name: value for name, value in fields.items() if name not in left_out}
            assert from_hf(JsonFile(kept, "config.json")) == config
    # The hub's first files: the pattern by its older name, and nothing that has a default.
    short = {k: v for k, v in to_hf(GEMMA, GEMMA.dtype).items() if k not in (*new, *old)}
    short = {k: v for k, v in short.items() if k not in ("tie_word_embeddings", "head_dim")}
    found = from_hf(JsonFile(short | {"_sliding_window_pattern": 3}, "config.json"))
    assert found == dataclasses.replace(GEMMA, windows=(512, 512, 0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gemma3"}, ["model_type='gemma3'"]),  # with pictures
        ({"hidden_activation": "silu"}, ["hidden_activation='silu'"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping=30.0"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping=50.0"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention=True"]),
        ({"query_pre_attn_scalar": 0.5}, ["query_pre_attn_scalar must be an integer"]),
        ({"layer_types": None, "sliding_window_pattern": 0}, ["sliding_window_pattern=0"]),
        ({"layer_types": None, "sliding_window": None}, ["sliding_window=None"]),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
            ["yarn", "sliding_att"],
        ),
    ],
)
def test_a_gemma_of_another_kind_is_refused_by_name(fields, words):
    with pytest.raises(CheckpointError) as error:
        from_hf(JsonFile(to_hf(GEMMA, GEMMA.dtype) | fields, "config.json"))
    assert all(word in str(error.value) for word in [*words, "config.json"])


@pytest.mark.parametrize(
    "options",
    [
        {"windows": (4, 8)},  # two sizes
        {"windows": (4, 0)},  # a part of the layers, without Qwen's biases
        {"post_norm": True},
        {"scaled_embedding": True},
        {"score_width": 5},
        {"local_rotary": Rotary(), "windows": (4,)},
        {"norm": "rms_plus_one"},
        {"activation": "geglu_tanh"},
    ],
)
def test_parts_that_no_architecture_has_together_are_not_saved(options):
    with pytest.raises(CheckpointError, match="none of gpt2, llama, mistral, qwen2, qwen3, gemma3"):
        to_hf(dataclasses.replace(CONFIG, **options), "float32")


def test_a_tensor_in_two_shards_is_the_one_that_the_index_names(tmp_path):
    params = params_of(CONFIG)
    save_pretrained(tmp_path, CONFIG, params, shard_bytes=512)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    name = "model.norm.weight"
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"][name]})[:2]
    for other in others:
        again = {**load_file(tmp_path / other), name: np.full(CONFIG.width, 7, np.float32)}
        save_file(again, tmp_path / other)
    loaded = load_pretrained(tmp_path)[1]
    np.testing.assert_array_equal(loaded["norm"]["scale"], params["norm"]["scale"])
    del index["weight_map"][name]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{name} is there twice"):
        load_pretrained(tmp_path)


def test_gpt2_with_and_without_its_prefix_is_refused(tmp_path):
    config = TransformerConfig.gpt2(**SIZES)
    save_pretrained(tmp_path, config, params_of(config))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    bare = np.zeros_like(tensors["transformer.wte.weight"])
    save_file({**tensors, "wte.weight": bare}, file)
    with pytest.raises(CheckpointError, match=r"wte\.weight is there twice, also as"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_numbers_of_a_thousand_digits_are_refused(folder, field):
    edit(folder, **{field: 10**1000})
    with pytest.raises(CheckpointError):
        load_pretrained(folder)


def test_a_checkpoint_larger_than_memory_is_refused_before_it_is_read(folder, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(CONFIG)))
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": size - 1}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    load_pretrained(folder, dtype=jnp.bfloat16)
    monkeypatch.setattr(checkpoints, "read_tensor", None)
    with pytest.raises(CheckpointError, match=r"in float32 would take 0\.0 GiB, more"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_of_mixed_dtypes_are_read_in_the_one_that_is_asked_for(folder, name, x64):
    dtype = jnp.dtype(name)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    cast = lambda leaf, i: leaf.astype([jnp.float16, jnp.float32, jnp.float64, jnp.bfloat16][i % 4])
    save_file({k: cast(v, i) for i, (k, v) in enumerate(sorted(tensors.items()))}, file)
    edit(folder, dtype=name, torch_dtype=name)
    for options in ({}, {"dtype": dtype}):
        model, params = load_pretrained(folder, **options)
        assert model.config.dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {dtype}
        logits = model.apply({"params": params}, jnp.zeros((1, 3), int))
        assert jnp.isfinite(logits).all()
    wanted = cast(tensors["model.norm.weight"], sorted(tensors).index("model.norm.weight"))
    np.testing.assert_array_equal(params["norm"]["scale"], wanted.astype(dtype))


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, np.int8, np.int32, bool])
def test_tensors_that_are_no_floats_of_16_bits_or_more_are_named(folder, dtype):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(dtype)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight has dtype \w+, which isn't"):
        load_pretrained(folder)


def test_a_dtype_that_does_not_serve_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must have at most 32 bits .* got float64"):
        load_pretrained(folder, dtype=np.float64)
    for dtype in (jnp.float8_e5m2, "int8"):
        with pytest.raises(ValueError, match="dtype must be a floating-point dtype of 16 bits"):
            load_pretrained(folder, dtype=dtype)
        with pytest.raises(ValueError, match="dtype must be a floating-point dtype of 16 bits"):
            save_pretrained(tmp_path / "new", CONFIG, params_of(CONFIG), dtype=dtype)
    edit(folder, dtype="float64")
    with pytest.raises(ValueError, match=r"dtype must have at most 32 bits .* got float64"):
        load_pretrained(folder)
    assert load_pretrained(folder, dtype="float32")[0].config.dtype == jnp.float32
    edit(folder, dtype="float8_e4m3fn")
    with pytest.raises(CheckpointError, match="dtype='float8_e4m3fn' isn't supported"):
        load_pretrained(folder)
