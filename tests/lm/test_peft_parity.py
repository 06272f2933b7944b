"""Adapters beside peft and transformers' PyTorch models, with random weights."""

import dataclasses
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="peft needs PyTorch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    transformers = pytest.importorskip("transformers", reason="it has the models")
    peft = pytest.importorskip("peft", reason="it is what is compared with")

from metajax.lm import CheckpointError, load_adapters, load_pretrained, lora, save_adapters
from metajax.models import Transformer, unstack_layers

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's, transformers' and peft's own
FILES = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def base(request, tmp_path):
    """A tiny random model of transformers, and ours with its weights."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16,
    }  # fmt: skip
    if request.param == "llama":
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    elif request.param == "gemma3":
        layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
        fields = transformers.Gemma3TextConfig(**sizes, **layers, head_dim=16)
        theirs = transformers.Gemma3ForCausalLM(fields)
    else:
        fields = transformers.GPT2Config(
            vocab_size=31, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=16,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        theirs = transformers.GPT2LMHeadModel(fields)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path / "base")
    model, params = load_pretrained(tmp_path / "base")
    return theirs, model, params


def assert_equal_logits(theirs, model, params, factors):
    tokens = np.random.default_rng(1).integers(0, 31, (2, 12))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    apply = jax.jit(model.apply)
    own = apply({"params": params, "lora": factors}, tokens)
    assert jnp.abs(own - apply({"params": params}, tokens)).max() > 0.05
    np.testing.assert_allclose(own, wanted, atol=1e-4)
    merged = apply({"params": lora.merge(params, factors)}, tokens)
    np.testing.assert_allclose(merged, wanted, atol=1e-4)


@pytest.mark.parametrize(
    "targets",
    ["kernel", "attention/(query|value)/kernel", "attention/key/kernel|mlp/up/kernel"],
)
def test_peft_reads_ours(base, tmp_path, targets):
    theirs, model, params = base
    factors = lora.init(params, jax.random.key(0), rank=3, targets=targets, alpha=5, b_std=0.3)
    # Another rank and scale in one module.
    other = lora.init(params, jax.random.key(1), rank=2, targets="mlp/down/kernel", b_std=0.3)
    factors["blocks"].setdefault("mlp", {})["down"] = other["blocks"]["mlp"]["down"]
    save_adapters(tmp_path / "adapter", factors, config=model.config)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    stored = load_file(tmp_path / "adapter" / FILES[1])
    own = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert set(own) == set(stored)
    for name, value in own.items():
        np.testing.assert_array_equal(value.numpy(), stored[name])
    assert_equal_logits(adapted, model, params, factors)


def test_tensors_are_the_factors(base, tmp_path):
    theirs, model, params = base
    factors = lora.init(
        params, jax.random.key(0), rank=3, targets="(query|value|output)/kernel", b_std=0.3
    )
    save_adapters(tmp_path / "adapter", factors, config=model.config)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    state = {k: v.numpy() for k, v in peft.get_peft_model_state_dict(adapted).items()}
    query, value, output = (
        unstack_layers(factors)["block_1"]["attention"][name]["kernel"]
        for name in ("query", "value", "output")
    )
    gpt2 = model.config.norm == "layer"
    prefix = "base_model.model." + ("transformer.h.1.attn" if gpt2 else "model.layers.1.self_attn")
    get = lambda name, side: state[f"{prefix}.{name}.lora_{side}.weight"]
    name = "c_proj" if gpt2 else "o_proj"
    np.testing.assert_array_equal(get(name, "A"), output.a.T)
    np.testing.assert_array_equal(get(name, "B"), output.b.T)
    if not gpt2:
        np.testing.assert_array_equal(get("q_proj", "A"), query.a.T)
        np.testing.assert_array_equal(get("v_proj", "B"), value.b.T)
        return
    np.testing.assert_array_equal(get("c_attn", "A"), np.concatenate([query.a, value.a], 1).T)
    b = get("c_attn", "B")
    np.testing.assert_array_equal(b[:32, :3], query.b.T)
    np.testing.assert_array_equal(b[64:, 3:], value.b.T)
    assert not b[32:64].any()
    assert not b[:32, 3:].any()
    assert not b[64:, :3].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"mlp.c_proj": 2, "down_proj": 2},
         "alpha_pattern": {"^.*c_attn": 3, "q_proj": 3}},
        {"layers_to_transform": [1]},
        {"lora_dropout": 0.2, "r": 40},
        {"fan_in_fan_out": True},
    ],
    ids=["plain", "rslora", "patterns", "layers", "dropout", "fan-in-fan-out"],
)  # fmt: skip
def test_ours_reads_peft(base, tmp_path, options):
    theirs, model, params = base
    gpt2 = model.config.norm == "layer"
    common = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "fan_in_fan_out": gpt2}
    targets = ["c_attn"] if gpt2 else ["q_proj", "v_proj", "o_proj"]
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        theirs, peft.LoraConfig(**{**common, "target_modules": targets, **options})
    ).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    if "layers_to_transform" in options:
        with pytest.raises(CheckpointError, match="can't be stacked"):
            load_adapters(tmp_path / "adapter", config=model.config)
        model = Transformer(dataclasses.replace(model.config, scan=False))
        params = unstack_layers(params)
    factors = load_adapters(tmp_path / "adapter", config=model.config)
    assert_equal_logits(adapted, model, params, factors)
    dropouts = {own.dropout for own in lora._flat_factors(factors).values()}
    assert dropouts == {options.get("lora_dropout", 0.0)}
    # And written again, they are read as they were.
    save_adapters(tmp_path / "again", factors, config=model.config)
    again = load_adapters(tmp_path / "again", config=model.config)
    chex.assert_trees_all_equal_structs(again, factors)
    chex.assert_trees_all_equal(again, factors)


def adapted_by_peft(theirs, **options):
    torch.manual_seed(1)
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(init_lora_weights=False, **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return adapted.eval()


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_ours_reads_an_adapter_of_the_head(base, tmp_path):
    theirs, model, params = base
    adapted = adapted_by_peft(theirs, target_modules=["q_proj", "lm_head"])
    adapted.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / FILES[1])
    factors = load_adapters(tmp_path, config=model.config)
    assert_equal_logits(adapted, model, params, factors)
    # And peft reads it as we write it.
    save_adapters(tmp_path / "again", factors, config=model.config)
    again = peft.PeftModel.from_pretrained(theirs_anew(tmp_path), tmp_path / "again").eval()
    assert_equal_logits(again, model, params, factors)


def theirs_anew(tmp_path):
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_ours_reads_the_names_of_a_state_dict(base, tmp_path, prefix):
    theirs, model, params = base
    targets = ["c_attn"] if model.config.norm == "layer" else ["q_proj", "down_proj"]
    adapted = adapted_by_peft(theirs, target_modules=targets)
    adapted.save_pretrained(tmp_path)
    stored = {
        prefix + name.removeprefix("base_model.model."): value.contiguous()
        for name, value in adapted.state_dict().items()
        if "lora_" in name
    }
    assert all(".default." in name for name in stored)
    safetensors_torch.save_file(stored, tmp_path / FILES[1])
    factors = load_adapters(tmp_path, config=model.config)
    assert_equal_logits(adapted, model, params, factors)


@pytest.mark.parametrize("base", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.* is unexpected"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora="),
        ({"target_modules": ["q_proj"], "bias": "all"}, "bias='all' isn't supported"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "trainable_token_ind"),
    ],
)
def test_what_factors_cannot_hold_is_refused_by_name(base, tmp_path, options, message):
    theirs, model, _ = base
    adapted_by_peft(theirs, **options).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_adapters(tmp_path, config=model.config)


def test_peft_reads_dropout(base, tmp_path):
    theirs, model, params = base
    factors = lora.init(params, jax.random.key(0), rank=2, targets="attention", dropout=0.25)
    save_adapters(tmp_path, factors, config=model.config)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path)
    assert adapted.peft_config["default"].lora_dropout == 0.25
    rates = [module.p for module in adapted.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates.count(0.25) >= 2


def test_a_module_name_adapts_what_peft_adapts(tmp_path):
    fields = transformers.Qwen2Config(
        vocab_size=31, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=16,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(fields)
    theirs.eval().save_pretrained(tmp_path / "base")
    model, params = load_pretrained(tmp_path / "base")
    assert model.config.qkv_bias
    factors = lora.init(params, jax.random.key(0), rank=3, targets="attention", b_std=0.3)
    save_adapters(tmp_path / "adapter", factors, config=model.config)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    trained, _ = adapted.get_nb_trainable_parameters()
    assert sum(side.size for side in jax.tree.leaves(factors)) == trained
    assert_equal_logits(adapted.eval(), model, params, factors)
