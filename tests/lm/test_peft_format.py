"""Adapters written and read in peft's format; beside peft itself in test_peft_parity.py."""

import contextlib
import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from metajax.lm import CheckpointError, load_adapters, lora, save_adapters
from metajax.models import Transformer, TransformerConfig, stack_layers, unstack_layers

SIZES = {"vocab_size": 31, "width": 32, "n_layers": 2, "n_heads": 4, "mlp_width": 48}
LLAMA = TransformerConfig.llama(**SIZES, n_kv_heads=2, max_length=16)
GPT2 = TransformerConfig.gpt2(**SIZES, max_length=16)
QWEN3 = TransformerConfig.qwen3(**{**SIZES, "n_kv_heads": 2, "max_length": 16, "head_dim": 8})
CONFIGS = {"llama": LLAMA, "gpt2": GPT2, "qwen3": QWEN3}
FILES = ["adapter_config.json", "adapter_model.safetensors"]


def shapes(config):
    tokens = jnp.zeros((1, 4), int)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]


def factors_of(config, targets, *, rank=4, alpha=None, b_std=0.5, seed=0):
    key = jax.random.key(seed)
    return lora.init(shapes(config), key, rank=rank, targets=targets, alpha=alpha, b_std=b_std)


def assert_same(one, other):
    chex.assert_trees_all_equal_structs(one, other)  # and so scales, which are static
    chex.assert_trees_all_equal_dtypes(one, other)
    chex.assert_trees_all_equal(one, other)


def edited(folder, **fields):
    file = folder / FILES[0]
    content = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))


class TestRoundTrip:
    @pytest.mark.slow
    @pytest.mark.parametrize("scan", [True, False])
    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize(
        "targets",
        ["kernel", "attention/(query|value)/kernel", "attention/key", "attention/output", "mlp"],
    )
    def test_is_bit_equal(self, tmp_path, name, scan, targets):
        config = dataclasses.replace(CONFIGS[name], scan=scan)
        targets = f"{targets}.*kernel" if "kernel" not in targets else targets
        factors = factors_of(config, targets, rank=3, alpha=10)
        save_adapters(tmp_path / "new" / "folder", factors, config=config)
        assert_same(load_adapters(tmp_path / "new" / "folder", config=config), factors)
        assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == FILES

    @pytest.mark.parametrize("name", CONFIGS)
    def test_from_one_layout_to_the_other(self, tmp_path, name):
        config = CONFIGS[name]
        flat = dataclasses.replace(config, scan=False)
        factors = factors_of(config, "attention.*kernel")
        save_adapters(tmp_path, factors, config=config)
        assert_same(load_adapters(tmp_path, config=flat), unstack_layers(factors))
        save_adapters(tmp_path, unstack_layers(factors), config=config)
        assert_same(load_adapters(tmp_path, config=config), factors)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", CONFIGS)
    def test_ranks_and_scales_that_differ(self, tmp_path, name):
        config = CONFIGS[name]
        factors = factors_of(config, "mlp/down/kernel", rank=2)
        factors["blocks"]["mlp"] |= factors_of(config, "mlp/up/kernel", rank=3, alpha=7)["blocks"][
            "mlp"
        ]
        attention = factors_of(config, "query/kernel", rank=5)
        attention = attention["blocks"]["attention"]
        attention |= factors_of(config, "value/kernel", rank=2)["blocks"]["attention"]
        factors["blocks"]["attention"] = attention
        save_adapters(tmp_path, factors, config=config)
        assert_same(load_adapters(tmp_path, config=config), factors)

    @pytest.mark.parametrize("name", CONFIGS)
    def test_layers_that_differ(self, tmp_path, name):
        config = dataclasses.replace(CONFIGS[name], scan=False)
        factors = factors_of(
            config, ["block_1/attention/query/kernel", "block_0/mlp/(up|down)/kernel"]
        )
        factors["block_1"]["mlp"] = factors_of(config, "block_1/mlp/up/kernel", rank=2, alpha=9)[
            "block_1"
        ]["mlp"]
        save_adapters(tmp_path, factors, config=config)
        assert_same(load_adapters(tmp_path, config=config), factors)
        with pytest.raises(CheckpointError, match=r"can't be stacked.*config\.scan=False"):
            load_adapters(tmp_path, config=CONFIGS[name])

    def test_bfloat16(self, tmp_path):
        factors = jax.tree.map(
            lambda side: side.astype(jnp.bfloat16), factors_of(GPT2, "query/kernel")
        )
        save_adapters(tmp_path, factors, config=GPT2)
        assert_same(load_adapters(tmp_path, config=GPT2), factors)

    def test_zero_b_of_gpt2(self, tmp_path):
        factors = factors_of(GPT2, "(query|value)/kernel", b_std=0.0)
        save_adapters(tmp_path, factors, config=GPT2)
        assert_same(load_adapters(tmp_path, config=GPT2), factors)

    def test_gpt2_trained_further_is_read_as_three_that_share_a(self, tmp_path):
        factors = factors_of(GPT2, "(query|value)/kernel", rank=2)
        save_adapters(tmp_path, factors, config=GPT2)
        file = tmp_path / FILES[1]
        tensors = load_file(file)
        name = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
        tensors[name] = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
        with_metadata = {
            "metajax_fused_ranks": json.dumps({name.split(".lora")[0][17:]: [2, 0, 2]})
        }
        save_file(tensors, file, with_metadata)
        config = dataclasses.replace(GPT2, scan=False)
        loaded = load_adapters(tmp_path, config=config)["block_1"]["attention"]
        assert set(loaded) == {"query", "key", "value"}
        whole = np.concatenate([loaded[part]["kernel"].b for part in ("query", "key", "value")], 1)
        np.testing.assert_array_equal(whole, tensors[name].T)
        for part in ("query", "key", "value"):
            a = tensors[name.replace("lora_B", "lora_A")].T
            np.testing.assert_array_equal(loaded[part]["kernel"].a, a)

    def test_config_names_what_is_adapted_by_its_shortest_ending(self, tmp_path):
        cases = {
            "(query|value)/kernel": (LLAMA, ["q_proj", "v_proj"]),
            "attention/output/kernel": (GPT2, ["attn.c_proj"]),
            "block_1/mlp/up/kernel": (GPT2, ["1.mlp.c_fc"]),
        }
        for targets, (config, wanted) in cases.items():
            config = dataclasses.replace(config, scan=False)
            save_adapters(
                tmp_path, factors_of(config, targets), config=config, base_model_name="some/base"
            )
            fields = json.loads((tmp_path / FILES[0]).read_text())
            assert fields["target_modules"] == wanted
            assert fields["base_model_name_or_path"] == "some/base"

    def test_a_failed_write_leaves_the_old_files(self, tmp_path, monkeypatch):
        save_adapters(tmp_path, factors_of(LLAMA, "query/kernel"), config=LLAMA)
        before = {file: (tmp_path / file).read_bytes() for file in FILES}

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            save_adapters(tmp_path, factors_of(LLAMA, "value/kernel"), config=LLAMA)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


class TestNames:
    """Names that peft, or who saves a model's state dict, gives the same tensors."""

    @pytest.fixture
    def folder(self, tmp_path):
        self.factors = factors_of(LLAMA, ["(query|value)/kernel", "head/kernel"])
        save_adapters(tmp_path, self.factors, config=LLAMA)
        return tmp_path

    def rename(self, folder, change):
        file = folder / FILES[1]
        save_file({change(name): value for name, value in load_file(file).items()}, file)

    @pytest.mark.parametrize(
        "change",
        [
            lambda name: name.replace(".weight", ".default.weight"),
            lambda name: name.replace(".weight", ".my-adapter_2.weight"),
            lambda name: name.removeprefix("base_model.model."),
            lambda name: name.removeprefix("base_model.model.").replace(".wei", ".default.wei"),
        ],
    )
    def test_are_read_as_peft_s(self, folder, change):
        self.rename(folder, change)
        assert_same(load_adapters(folder, config=LLAMA), self.factors)

    def test_two_adapters_in_one_file_are_refused(self, folder):
        file = folder / FILES[1]
        both = load_file(file)
        both |= {name.replace(".weight", ".b.weight"): value for name, value in both.items()}
        save_file(both, file)
        with pytest.raises(CheckpointError, match="holds several adapters"):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize("prefix", ["base_model.model.", ""])
    def test_the_head_s_own_matrix_is_passed_over(self, folder, prefix):
        file = folder / FILES[1]
        name = f"{prefix}lm_head.base_layer.weight"
        save_file(load_file(file) | {name: np.ones((31, 32), np.float32)}, file)
        assert_same(load_adapters(folder, config=LLAMA), self.factors)
        save_file(load_file(file) | {name: np.ones((33, 32), np.float32)}, file)
        with pytest.raises(CheckpointError, match=r"lm_head.base_layer.* \(33, 32\), .*\(31, 32\)"):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize(
        "name",
        [
            "model.embed_tokens.base_layer.weight",
            "model.embed_tokens.weight",
            "model.embed_tokens.lora_embedding_A",
            "model.layers.0.self_attn.q_proj.base_layer.weight",
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            "model.layers.0.self_attn.q_proj.bias",
            "lm_head.weight",
        ],
    )
    def test_other_weights_are_refused_by_name(self, folder, name):
        file = folder / FILES[1]
        full = f"base_model.model.{name}"
        save_file(load_file(file) | {full: np.ones((31, 32), np.float32)}, file)
        with pytest.raises(CheckpointError, match=f"{full} is unexpected .*Adapters of matrices"):
            load_adapters(folder, config=LLAMA)

    def test_a_tied_head_has_no_adapter(self, folder):
        with pytest.raises(CheckpointError, match=r"lm_head.* head that is tied"):
            load_adapters(folder, config=dataclasses.replace(LLAMA, tied=True))


class TestDropout:
    @pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
    def test_is_kept(self, tmp_path, config):
        factors = lora.init(
            shapes(config), jax.random.key(0), rank=2, targets="attention", dropout=0.05, b_std=1.0
        )
        save_adapters(tmp_path, factors, config=config)
        assert json.loads((tmp_path / FILES[0]).read_text())["lora_dropout"] == 0.05
        assert_same(load_adapters(tmp_path, config=config), factors)
        edited(tmp_path, lora_dropout="absent")
        loaded = load_adapters(tmp_path, config=config)
        assert loaded["blocks"]["attention"]["query"]["kernel"].dropout == 0.0

    def test_one_for_all(self, tmp_path):
        start = functools.partial(lora.init, shapes(LLAMA), jax.random.key(0), rank=2)
        factors = start(targets="query", dropout=0.1)["blocks"]["attention"]
        factors |= start(targets="value", dropout=0.2)["blocks"]["attention"]
        with pytest.raises(CheckpointError, match=r"dropouts of \[0.1, 0.2\]"):
            save_adapters(tmp_path, {"blocks": {"attention": factors}}, config=LLAMA)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("value", [1.0, -0.1, "much"])
    def test_of_a_config_is_checked(self, tmp_path, value):
        save_adapters(tmp_path, factors_of(LLAMA, "query"), config=LLAMA)
        edited(tmp_path, lora_dropout=value)
        with pytest.raises(CheckpointError, match=r"adapter_config.json: lora_dropout must be"):
            load_adapters(tmp_path, config=LLAMA)


class TestTargets:
    """Which modules have an adapter, as peft reads the config."""

    @pytest.mark.parametrize(
        ("fields", "missing"),
        [
            ({"target_modules": "all-linear"}, "k_proj"),
            ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 1]}, "lm_head"),
            ({"layers_to_transform": [], "target_modules": ["k_proj", "q_proj"]}, "k_proj"),
            ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["q_proj"]}, "k_proj"),
        ],
    )
    def test_one_that_is_missing_is_named(self, tmp_path, fields, missing):
        save_adapters(tmp_path, factors_of(LLAMA, "(query|value)/kernel"), config=LLAMA)
        edited(tmp_path, **fields)
        with pytest.raises(CheckpointError, match=f"{missing}.lora_A.weight is missing"):
            load_adapters(tmp_path, config=LLAMA)

    def test_all_linear_leaves_the_head_out(self, tmp_path):
        factors = factors_of(LLAMA, "blocks")
        save_adapters(tmp_path, factors, config=LLAMA)
        edited(tmp_path, target_modules="all-linear")
        assert_same(load_adapters(tmp_path, config=LLAMA), factors)


class TestSaveErrors:
    @pytest.mark.parametrize(
        ("config", "change", "message"),
        [
            (LLAMA, lambda f: {}, "lora has no factors to save"),
            (LLAMA, lambda f: {"block_2": f["block_1"]},
             "lora has 'block_2/attention/query/kernel', where the model has no such matrix"),
            (GPT2, lambda f: {"block_0": {"mlp": {"gate": f["block_0"]["attention"]["query"]}}},
             "lora has 'block_0/mlp/gate/kernel', where the model has no such matrix"),
            (LLAMA, lambda f: {"block_0": {"mlp": {"up": f["block_0"]["attention"]["query"]}}},
             r"shapes \(32, 4\) and \(4, 32\) don't fit 'block_0/mlp/up/kernel' of .*\(32, 48\)"),
            (LLAMA, lambda f: {"block_0": {"attention": {"query": {"kernel": jnp.ones(3)}}}},
             "lora must hold Factors .* at 'block_0/attention/query/kernel'"),
            (LLAMA, lambda f: stack_layers({**f, "block_2": f["block_0"]}),
             "lora has 'block_2/attention/query/kernel', where the model has no such matrix"),
            (dataclasses.replace(LLAMA, positions="none"), lambda f: f, "none of gpt2, llama"),
        ],
    )  # fmt: skip
    def test_errors(self, tmp_path, config, change, message):
        flat = dataclasses.replace(config, scan=False)
        factors = factors_of(flat, "attention/query/kernel")
        with pytest.raises(ValueError, match=message):
            save_adapters(tmp_path, change(factors), config=config)
        assert not list(tmp_path.iterdir())

    def test_gpt2_has_one_scale_for_query_key_and_value(self, tmp_path):
        attention = factors_of(GPT2, "query/kernel", alpha=8)["blocks"]["attention"]
        attention |= factors_of(GPT2, "value/kernel", alpha=4)["blocks"]["attention"]
        message = "'block_0/attention/value/kernel' has scale 1.0, another than 2.0, .*c_attn"
        with pytest.raises(CheckpointError, match=message):
            save_adapters(tmp_path, {"blocks": {"attention": attention}}, config=GPT2)


class TestLoadErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        save_adapters(tmp_path, factors_of(LLAMA, "(query|value)/kernel"), config=LLAMA)
        return tmp_path

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("use_dora", True),
            ("bias", "all"),
            ("modules_to_save", ["lm_head"]),
            ("peft_type", "IA3"),
            ("peft_type", "absent"),
            ("lora_bias", True),
            ("layer_replication", [[0, 2]]),
            ("target_parameters", ["mlp.experts"]),
            ("trainable_token_indices", [1]),
            ("init_lora_weights", "pissa_niter_4"),
        ],
    )
    def test_refuses_other_variants(self, folder, field, value):
        edited(folder, **{field: value})
        with pytest.raises(CheckpointError, match=rf"adapter_config.json: {field}="):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("r", 0, "adapter_config.json: r must be at least 1, got 0"),
            ("lora_alpha", "many", "lora_alpha must be a number, got 'many'"),
            ("r", 5, r"safetensors: .*layers.0.self_attn.q_proj.lora_A.weight has shape \(4, 32\)"),
            ("rank_pattern", {"1.self_attn.v_proj": 2}, r"1.self_attn.v_proj.lora_A.*\(2, 32\)"),
            ("target_modules", ["q_proj", "v_proj", "k_proj"], "k_proj.lora_A.weight is missing"),
            ("target_modules", r".*\.1\.mlp\.up_proj", "1.mlp.up_proj.lora_A.weight is missing"),
        ],
    )  # fmt: skip
    def test_config_that_does_not_fit(self, folder, field, value, message):
        edited(folder, **{field: value})
        with pytest.raises(ValueError, match=message):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("layers.1.self_attn.q_proj.lora_B", None, "is missing"),
            ("layers.1.self_attn.q_proj.lora_A", (4, 31), r"\(4, 31\), .* \(4, 32\)"),
            ("layers.0.self_attn.v_proj.lora_B", (17, 4), r"\(17, 4\), .* \(16, 4\)"),
            ("layers.2.self_attn.q_proj.lora_A", (4, 32), "is unexpected"),
            ("embed_tokens.lora_embedding_A", (4, 31), "is unexpected"),
        ],
    )  # fmt: skip
    def test_tensors_that_do_not_fit(self, folder, name, shape, message):
        file = folder / FILES[1]
        tensors = load_file(file)
        full = f"base_model.model.model.{name}.weight"
        tensors.pop(full, None)
        if shape is not None:
            tensors[full] = np.ones(shape, np.float32)
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=f"{FILES[1]}: {full}.* {message}"):
            load_adapters(folder, config=LLAMA)

    def test_tensors_of_whole_numbers_are_refused(self, folder):
        tensors = load_file(folder / FILES[1])
        name = min(tensors)
        save_file({**tensors, name: tensors[name].astype(np.int8)}, folder / FILES[1])
        with pytest.raises(CheckpointError, match=rf"{FILES[1]}: {name} has dtype I8"):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize("field", ["target_modules", "rank_pattern"])
    def test_a_pattern_without_end(self, folder, field):
        """Python's own engine wouldn't come to an end."""
        fields = json.loads((folder / FILES[0]).read_text())
        endless = r"([a-z_.0-9]+)+!"
        fields[field] = {endless: 4} if field == "rank_pattern" else endless
        (folder / FILES[0]).write_text(json.dumps(fields))
        with contextlib.suppress(CheckpointError):
            load_adapters(folder, config=LLAMA)
        fields[field] = {"(?!a)b": 4} if field == "rank_pattern" else "(?!a)b"
        (folder / FILES[0]).write_text(json.dumps(fields))
        with pytest.raises(CheckpointError, match=rf"{field} must be .* of RE2"):
            load_adapters(folder, config=LLAMA)

    @pytest.mark.parametrize(
        ("file", "content", "damaged"),
        [(FILES[0], b"{", "isn't JSON"), (FILES[1], b"\0" * 7, "is damaged or cut short")],
    )
    def test_damaged_and_missing_files(self, folder, file, content, damaged):
        (folder / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file} {damaged}"):
            load_adapters(folder, config=LLAMA)
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=f"{file} is missing"):
            load_adapters(folder, config=LLAMA)
