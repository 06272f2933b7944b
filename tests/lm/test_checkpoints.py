"""Bad checkpoints, and what loading and saving leave behind."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from metajax.lm import CheckpointError, load_pretrained, save_pretrained
from metajax.lm._folder import JsonFile
from metajax.lm._hf_config import from_hf, to_hf
from metajax.models import Transformer, TransformerConfig

SIZES = {"vocab_size": 16, "width": 8, "n_layers": 2, "n_heads": 2, "max_length": 16}
CONFIG = TransformerConfig.llama(**SIZES)


@functools.cache
def params_of(config):
    """Random parameters, without compiling an initialisation."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)


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
    with pytest.raises(CheckpointError, match="none of gpt2, llama, qwen2, qwen3"):
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
