"""Hugging Face's config.json, of transformers 4 and 5, as a TransformerConfig and back."""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from metajax.errors import ArgumentError, MetajaxError
from metajax.models import Rotary, TransformerConfig

Architecture = Literal["gpt2", "llama", "qwen2", "qwen3"]
CLASSES: dict[Architecture, str] = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
_DTYPES = ("float32", "bfloat16", "float16")


class CheckpointError(MetajaxError, ValueError):
    """A checkpoint can't be read or written; the message names the file, and tensor or field."""


_KINDS: dict[str, Any] = {
    "an integer": int,
    "a number": (int, float),
    "true or false": bool,
    "a text": str,
    "an object": dict,
    "a list": list,
}


def _is_of(value: Any, kind: str) -> bool:
    # JSON's true is no number.
    return isinstance(value, _KINDS[kind]) and isinstance(value, bool) == (kind == "true or false")


class _Fields:
    """The fields of one config.json; what is wrong is said with the file's name."""

    def __init__(self, fields: Mapping[str, Any], file: str) -> None:
        self.fields, self.file = fields, file

    def need(self, name: str, kind: str) -> Any:
        if self.fields.get(name) is None:
            raise CheckpointError(f"{self.file}: the field {name!r} is missing.")
        return self.get(name, None, kind)

    def get(self, name: str, default: Any, kind: str) -> Any:
        """A field's value, of the kind that its name in ``_KINDS`` stands for."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not _is_of(value, kind):
            raise CheckpointError(f"{self.file}: {name} must be {kind}, got {value!r}.")
        return value

    def refuse(self, name: str, value: Any, accepted: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {name}={value!r} isn't supported, {accepted} is.")

    def must_be(self, name: str, wanted: Any) -> None:
        value = self.fields.get(name)
        value = wanted if value is None else value
        if value != wanted:
            raise self.refuse(name, value, repr(wanted))


def architecture_of(config: TransformerConfig) -> Architecture:
    """The Hugging Face architecture that has this configuration's parts.

    Raises:
        CheckpointError: none has.

    Example:
        >>> sizes = dict(vocab_size=8, width=8, n_layers=1, n_heads=2)
        >>> architecture_of(TransformerConfig.qwen2(**sizes))
        'qwen2'
    """
    c = config
    if c.norm == "layer" and c.positions == "learned":
        fits = (
            c.qkv_bias and c.output_bias and c.mlp_bias and not c.qk_norm
            and c.activation != "swiglu"
            and c.n_kv_heads == c.n_heads and c.head_dim * c.n_heads == c.width
        )  # fmt: skip
        if fits:
            return "gpt2"
    elif c.norm == "rms" and c.positions == "rotary" and c.activation == "swiglu":
        alike = c.qkv_bias == c.output_bias
        if c.qk_norm and alike and not c.mlp_bias:
            return "qwen3"
        if not c.qk_norm and alike:
            return "llama"
        if not c.qk_norm and c.qkv_bias and not c.mlp_bias:
            return "qwen2"
    raise CheckpointError(
        f"config: none of {', '.join(CLASSES)} has this combination of parts: {config}."
    )


def from_hf(fields: Mapping[str, Any], file: str = "config.json") -> TransformerConfig:
    """The configuration that a config.json describes.

    Args:
        fields: its content.
        file: its name, for messages.

    Raises:
        CheckpointError: a field is missing, or asks for what isn't supported: another architecture,
            rope type or activation, a sliding window, quantised weights.

    Example:
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> sizes |= {"vocab_size": 9, "intermediate_size": 16, "max_position_embeddings": 32}
        >>> from_hf({"model_type": "llama", "rms_norm_eps": 1e-5, **sizes}).mlp_width
        16
    """
    try:
        return _from_hf(_Fields(fields, file))
    except ArgumentError as error:  # of the configuration that they describe
        raise CheckpointError(f"{file}: {error}") from error


def _from_hf(f: _Fields) -> TransformerConfig:
    fields = f.fields
    kind = f.need("model_type", "a text")
    if kind not in CLASSES:
        raise f.refuse("model_type", kind, "one of " + ", ".join(CLASSES))
    quantization = f.get("quantization_config", None, "an object")
    if quantization is not None:
        method = quantization.get("quant_method", "unknown")
        raise f.refuse("quantization_config", method, "a checkpoint without quantised weights")
    dtype = f.get("dtype", f.get("torch_dtype", "float32", "a text"), "a text")
    if dtype not in _DTYPES:
        raise f.refuse("dtype", dtype, "one of " + ", ".join(_DTYPES))
    tied = f.get("tie_word_embeddings", kind == "gpt2", "true or false")
    common = {
        "vocab_size": f.need("vocab_size", "an integer"),
        "tied": tied,
        "dtype": jnp.dtype(dtype),
    }
    if kind == "gpt2":
        f.must_be("add_cross_attention", False)
        f.must_be("scale_attn_weights", True)
        f.must_be("scale_attn_by_inverse_layer_idx", False)
        activation = f.get("activation_function", "gelu_new", "a text")
        if activation not in _GPT2_ACTIVATIONS:
            raise f.refuse(
                "activation_function", activation, "one of " + ", ".join(_GPT2_ACTIVATIONS)
            )
        return TransformerConfig.gpt2(
            width=f.need("n_embd", "an integer"),
            n_layers=f.need("n_layer", "an integer"),
            n_heads=f.need("n_head", "an integer"),
            max_length=f.need("n_positions", "an integer"),
            mlp_width=f.get("n_inner", 0, "an integer"),
            activation=_GPT2_ACTIVATIONS[activation],
            norm_eps=f.get("layer_norm_epsilon", 1e-5, "a number"),
            **common,
        )
    f.must_be("hidden_act", "silu")
    f.must_be("use_sliding_window", False)
    if kind == "llama" and fields.get("sliding_window") is not None:
        raise f.refuse("sliding_window", fields["sliding_window"], "attention to all tokens")
    kinds = f.get("layer_types", [], "a list")
    windowed = [each for each in kinds if each != "full_attention"]
    if windowed:
        raise f.refuse("layer_types", windowed[0], "'full_attention'")
    biased = f.get("attention_bias", False, "true or false") if kind != "qwen2" else False
    return TransformerConfig(
        width=f.need("hidden_size", "an integer"),
        n_layers=f.need("num_hidden_layers", "an integer"),
        n_heads=f.need("num_attention_heads", "an integer"),
        n_kv_heads=f.get("num_key_value_heads", 0, "an integer"),
        head_dim=f.get("head_dim", 128 if kind == "qwen3" else 0, "an integer"),
        max_length=f.need("max_position_embeddings", "an integer"),
        mlp_width=f.need("intermediate_size", "an integer"),
        norm_eps=f.need("rms_norm_eps", "a number"),
        rotary=_rotary(f),
        qk_norm=kind == "qwen3",
        qkv_bias=biased or kind == "qwen2",
        output_bias=biased,
        mlp_bias=f.get("mlp_bias", False, "true or false") if kind == "llama" else False,
        **common,
    )


def _rotary(f: _Fields) -> Rotary:
    # Version 5 has all of it in rope_parameters; version 4 the base beside rope_scaling.
    name = "rope_parameters" if f.fields.get("rope_parameters") else "rope_scaling"
    g = _Fields(f.get(name, {}, "an object"), f"{f.file}: {name}")
    theta = g.get("rope_theta", f.get("rope_theta", 10_000.0, "a number"), "a number")
    kind = g.get("rope_type", g.get("type", "default", "a text"), "a text")
    part = g.get(
        "partial_rotary_factor", f.get("partial_rotary_factor", 1.0, "a number"), "a number"
    )
    if part != 1.0:
        raise f.refuse("partial_rotary_factor", part, "1.0")

    def need(key: str) -> Any:
        if g.fields.get(key) is None:
            raise CheckpointError(f"{f.file}: the field {key!r} is missing in {name}.")
        return g.need(key, "a number")

    if kind == "default":
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, "linear", need("factor"))
    if kind == "llama3":
        return Rotary(
            theta,
            "llama3",
            need("factor"),
            need("low_freq_factor"),
            need("high_freq_factor"),
            need("original_max_position_embeddings"),
        )
    raise f.refuse("rope_type", kind, "one of default, linear, llama3")


def to_hf(config: TransformerConfig, dtype: Any) -> dict[str, Any]:
    """The content of a config.json that transformers 4 and 5 read.

    Args:
        config: the model's.
        dtype: of the stored tensors.

    Raises:
        CheckpointError: no Hugging Face architecture has this configuration's parts.

    Example:
        >>> config = TransformerConfig.llama(vocab_size=8, width=8, n_layers=1, n_heads=2)
        >>> to_hf(config, "float32")["model_type"]
        'llama'
    """
    kind, name = architecture_of(config), jnp.dtype(dtype).name
    fields: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "dtype": name,
        "torch_dtype": name,
    }
    if kind == "gpt2":
        back = {ours: theirs for theirs, ours in reversed(_GPT2_ACTIVATIONS.items())}
        return fields | {
            "n_embd": config.width,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_positions": config.max_length,
            "n_inner": config.mlp_width,
            "activation_function": back[config.activation],
            "layer_norm_epsilon": config.norm_eps,
            # Versions 4 and 5 alike would add tokens of GPT-2's own vocabulary.
            "bos_token_id": None,
            "eos_token_id": None,
        }
    rotary = config.rotary
    scaling: dict[str, Any] = {
        "rope_type": "default" if rotary.scaling == "none" else rotary.scaling
    }
    if rotary.scaling != "none":
        scaling["factor"] = rotary.factor
    if rotary.scaling == "llama3":
        scaling |= {
            "low_freq_factor": rotary.low_freq_factor,
            "high_freq_factor": rotary.high_freq_factor,
            "original_max_position_embeddings": rotary.original_length,
        }
    fields |= {
        "hidden_size": config.width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "intermediate_size": config.mlp_width,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": rotary.theta, **scaling},
        "rope_theta": rotary.theta,
        "rope_scaling": None if rotary.scaling == "none" else scaling,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind != "qwen2":
        fields["attention_bias"] = config.output_bias
    if kind == "llama":
        fields["mlp_bias"] = config.mlp_bias
    return fields
