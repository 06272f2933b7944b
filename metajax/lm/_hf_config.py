"""Hugging Face's config.json, of transformers 4 and 5, as a TransformerConfig and back."""

from typing import Any, Literal

import jax.numpy as jnp

from metajax.errors import ArgumentError
from metajax.lm import _hf_windows
from metajax.lm._folder import (
    FLAG,
    INTEGER,
    NUMBER,
    OBJECT,
    TOKENS,
    CheckpointError,
    JsonFile,
)
from metajax.models import Rotary, TransformerConfig

Architecture = Literal["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma3_text"]
CLASSES: dict[Architecture, str] = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
"""GPT-2's, in their names and ours."""
_NEEDED = object()
# Our field, theirs, its kind, and its value where it is missing.
_GPT2_FIELDS = (
    ("vocab_size", "vocab_size", INTEGER, _NEEDED),
    ("width", "n_embd", INTEGER, _NEEDED),
    ("n_layers", "n_layer", INTEGER, _NEEDED),
    ("n_heads", "n_head", INTEGER, _NEEDED),
    ("max_length", "n_positions", INTEGER, _NEEDED),
    ("mlp_width", "n_inner", INTEGER, 0),
    ("norm_eps", "layer_norm_epsilon", NUMBER, 1e-5),
    ("tied", "tie_word_embeddings", FLAG, True),
)
_LLAMA_FIELDS = (
    ("vocab_size", "vocab_size", INTEGER, _NEEDED),
    ("width", "hidden_size", INTEGER, _NEEDED),
    ("n_layers", "num_hidden_layers", INTEGER, _NEEDED),
    ("n_heads", "num_attention_heads", INTEGER, _NEEDED),
    ("n_kv_heads", "num_key_value_heads", INTEGER, 0),
    ("head_dim", "head_dim", INTEGER, 0),
    ("max_length", "max_position_embeddings", INTEGER, _NEEDED),
    ("mlp_width", "intermediate_size", INTEGER, _NEEDED),
    ("norm_eps", "rms_norm_eps", NUMBER, _NEEDED),
    ("tied", "tie_word_embeddings", FLAG, False),
)


def _llama_fields(**defaults: Any) -> Any:
    """Llama's, with other values where they are missing."""
    return tuple(
        (ours, theirs, kind, defaults.get(ours, default))
        for ours, theirs, kind, default in _LLAMA_FIELDS
    )


_FIELDS: dict[Architecture, Any] = {
    "gpt2": _GPT2_FIELDS,
    "llama": _LLAMA_FIELDS,
    "mistral": _llama_fields(n_kv_heads=8),
    "qwen2": _LLAMA_FIELDS,
    "qwen3": _llama_fields(head_dim=128),
    "gemma3_text": _llama_fields(n_kv_heads=4, head_dim=256, tied=True),
}
# Our field of Rotary, and theirs in rope_parameters.
_LLAMA3_FIELDS = (
    ("low_freq_factor", "low_freq_factor"),
    ("high_freq_factor", "high_freq_factor"),
    ("original_length", "original_max_position_embeddings"),
)


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
    own = bool(c.post_norm or c.scaled_embedding or c.score_width or c.local_rotary)  # Gemma's
    alike, one_window = c.qkv_bias == c.output_bias, len({*c.windows} - {0}) < 2
    if c.norm == "layer" and c.positions == "learned":
        fits = (
            c.qkv_bias and c.output_bias and c.mlp_bias and not c.qk_norm
            and c.activation not in ("swiglu", "geglu_tanh")
            and c.n_kv_heads == c.n_heads and c.head_dim * c.n_heads == c.width
            and not c.windows and not own
        )  # fmt: skip
        if fits:
            return "gpt2"
    elif c.norm == "rms" and c.positions == "rotary" and c.activation == "swiglu" and not own:
        if c.qk_norm and alike and not c.mlp_bias and one_window:
            return "qwen3"
        if not c.qk_norm and alike and not c.windows:
            return "llama"
        if not c.qk_norm and c.qkv_bias and not (c.output_bias or c.mlp_bias) and one_window:
            return "qwen2"
        if not (c.qk_norm or c.qkv_bias or c.output_bias or c.mlp_bias) and len({*c.windows}) == 1:
            return "mistral"
    elif c.norm == "rms_plus_one" and c.positions == "rotary" and c.activation == "geglu_tanh":
        own = c.post_norm and c.scaled_embedding and c.local_rotary is not None
        if own and c.qk_norm and alike and not c.mlp_bias and one_window:
            return "gemma3_text"
    raise CheckpointError(
        f"config: none of {', '.join(CLASSES)} has this combination of parts: {config}."
    )


def from_hf(file: JsonFile) -> TransformerConfig:
    """The configuration that a config.json describes.

    Raises:
        CheckpointError: a field is missing, or asks for what isn't supported: another architecture,
            rope type or activation, windows of several sizes, quantised weights.

    Example:
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> sizes |= {"vocab_size": 9, "intermediate_size": 16, "max_position_embeddings": 32}
        >>> fields = {"model_type": "llama", "rms_norm_eps": 1e-5, **sizes}
        >>> from_hf(JsonFile(fields, "config.json")).mlp_width
        16
    """
    architecture = file.one_of("model_type", CLASSES)
    quantization = file.get("quantization_config", OBJECT)
    if quantization is not None:
        method = quantization.get("quant_method", "unknown")
        raise file.unsupported("quantization_config", method, "a checkpoint of floats is")
    try:
        if architecture == "gpt2":
            return TransformerConfig.gpt2(**_gpt2(file))
        if architecture == "gemma3_text":
            return TransformerConfig.gemma3(**_gemma3(file))
        return TransformerConfig(**_llama(file, architecture))
    except ArgumentError as error:  # of the configuration that the fields describe
        raise CheckpointError(f"{file.name}: {error}") from error


def _common(file: JsonFile, table: Any) -> dict[str, Any]:
    name = "torch_dtype" if file.fields.get("dtype") is None else "dtype"  # version 4, version 5
    dtype = file.one_of(name, ("float32", "bfloat16", "float16", "float64"), "float32")
    fields = {
        ours: file.need(theirs, kind) if default is _NEEDED else file.get(theirs, kind, default)
        for ours, theirs, kind, default in table
    }
    stops = stop_tokens(file, fields["vocab_size"])
    return {"dtype": jnp.dtype(dtype), "stop_tokens": stops, **fields}


def stop_tokens(file: JsonFile, vocab_size: int) -> tuple[int, ...]:
    """The end tokens that config.json or generation_config.json names.

    Those that the model can't write, such as defaults of a larger vocabulary, are left out.

    Example:
        >>> stop_tokens(JsonFile({"eos_token_id": [2, 50256]}, "config.json"), 64)
        (2,)
    """
    tokens = file.get("eos_token_id", TOKENS, [])
    tokens = tokens if isinstance(tokens, list) else [tokens]
    return tuple(token for token in tokens if 0 <= token < vocab_size)


def eos_field(tokens: tuple[int, ...]) -> int | list[int] | None:
    """The same tokens as Hugging Face writes them.

    Example:
        >>> eos_field((2,)), eos_field((2, 5)), eos_field(())
        (2, [2, 5], None)
    """
    return list(tokens) if len(tokens) > 1 else next(iter(tokens), None)


def _gpt2(file: JsonFile) -> dict[str, Any]:
    file.one_of("add_cross_attention", (False,), False)
    file.one_of("scale_attn_weights", (True,), True)
    file.one_of("scale_attn_by_inverse_layer_idx", (False,), False)
    activation = file.one_of("activation_function", _ACTIVATIONS, "gelu_new")
    return {**_common(file, _FIELDS["gpt2"]), "activation": _ACTIVATIONS[activation]}


def _llama(file: JsonFile, architecture: Architecture) -> dict[str, Any]:
    """Of Llama, Mistral and Qwen."""
    file.one_of("hidden_act", ("silu",), "silu")
    fields = _common(file, _FIELDS[architecture])
    biased = architecture in ("llama", "qwen3") and file.get("attention_bias", FLAG, False)
    return {
        **fields,
        "rotary": _rotary(file),
        "windows": _hf_windows.read(file, architecture, fields["n_layers"], fields["max_length"]),
        "qk_norm": architecture == "qwen3",
        "qkv_bias": biased or architecture == "qwen2",
        "output_bias": biased,
        "mlp_bias": architecture == "llama" and file.get("mlp_bias", FLAG, False),
    }


def _gemma3(file: JsonFile) -> dict[str, Any]:
    file.one_of("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    file.one_of("use_bidirectional_attention", (False,), False)
    file.one_of("attn_logit_softcapping", (None,))
    file.one_of("final_logit_softcapping", (None,))
    fields = _common(file, _FIELDS["gemma3_text"])
    biased = file.get("attention_bias", FLAG, False)
    layers = fields["n_layers"], fields["max_length"]
    # Version 5 has both in rope_parameters. In version 4 only the first can be scaled.
    ropes = JsonFile(file.get("rope_parameters", OBJECT, {}), f"{file.name}: rope_parameters")
    rotaries = {}
    for ours, kind, base, default in (
        ("rotary", "full_attention", "rope_theta", 1e6),
        ("local_rotary", "sliding_attention", "rope_local_base_freq", 1e4),
    ):
        rope = ropes.get(kind, OBJECT, {})
        if not rope and ours == "rotary":
            rope = file.get("rope_scaling", OBJECT, {})
        rope = JsonFile(rope, f"{ropes.name}.{kind}")
        rotaries[ours] = _rotary_of(rope, file.get(base, NUMBER, default))
    return {
        **fields,
        **rotaries,
        "windows": _hf_windows.read(file, "gemma3_text", *layers),
        "score_width": file.get("query_pre_attn_scalar", INTEGER, 256),
        "qkv_bias": biased,
        "output_bias": biased,
    }


def _rotary(file: JsonFile) -> Rotary:
    # Version 5 has all of it in rope_parameters; version 4 the base beside rope_scaling.
    name = "rope_parameters" if file.fields.get("rope_parameters") else "rope_scaling"
    rope = JsonFile(file.get(name, OBJECT, {}), f"{file.name}: {name}")
    file.one_of("partial_rotary_factor", (1.0,), 1.0)
    return _rotary_of(rope, file.get("rope_theta", NUMBER, 10_000.0))


def _rotary_of(rope: JsonFile, theta: float) -> Rotary:
    """Rotary positions of a base, unless ``rope`` has its own."""
    rope.one_of("partial_rotary_factor", (1.0,), 1.0)
    theta = rope.get("rope_theta", NUMBER, theta)
    key = "type" if rope.fields.get("rope_type") is None else "rope_type"
    scaling = rope.one_of(key, ("default", "linear", "llama3"), "default")
    if scaling == "default":
        return Rotary(theta)
    options = {"factor": rope.need("factor", NUMBER)}
    if scaling == "llama3":
        options |= {ours: rope.need(theirs, NUMBER) for ours, theirs in _LLAMA3_FIELDS}
    return Rotary(theta, scaling, **options)


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
    architecture, dtype = architecture_of(config), jnp.dtype(dtype).name
    fields: dict[str, Any] = {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "dtype": dtype,
        "torch_dtype": dtype,
        # Without these, transformers would add tokens of its own vocabulary.
        "bos_token_id": None,
        "eos_token_id": eos_field(config.stop_tokens),
        **{theirs: getattr(config, ours) for ours, theirs, *_ in _FIELDS[architecture]},
    }
    if architecture == "gpt2":
        names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
        return fields | {"activation_function": names[config.activation]}
    rope, scaling = _rope_fields(config.rotary)
    fields |= {
        "rope_parameters": rope,
        "rope_theta": config.rotary.theta,
        "rope_scaling": scaling,
        **_hf_windows.fields(config, architecture),
    }
    if architecture == "gemma3_text":
        local = config.local_rotary or config.rotary
        local_rope, _ = _rope_fields(local)
        return fields | {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": config.output_bias,
            "query_pre_attn_scalar": config.score_width or config.head_dim,
            "rope_parameters": {"full_attention": rope, "sliding_attention": local_rope},
            "rope_local_base_freq": local.theta,
        }
    fields["hidden_act"] = "silu"
    if architecture in ("llama", "qwen3"):
        fields["attention_bias"] = config.output_bias
    if architecture == "llama":
        fields["mlp_bias"] = config.mlp_bias
    return fields


def _rope_fields(rotary: Rotary) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``rope_parameters`` of version 5, and ``rope_scaling`` of version 4."""
    if rotary.scaling == "none":
        return {"rope_theta": rotary.theta, "rope_type": "default"}, None
    rope: dict[str, Any] = {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling == "llama3":
        rope |= {theirs: getattr(rotary, ours) for ours, theirs in _LLAMA3_FIELDS}
    return {"rope_theta": rotary.theta, **rope}, rope
