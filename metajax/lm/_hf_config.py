"""Hugging Face's config.json, of transformers 4 and 5, as a TransformerConfig and back."""

from typing import Any, Literal

import jax.numpy as jnp

from metajax.errors import ArgumentError
from metajax.lm._folder import (
    FLAG,
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    TOKENS,
    CheckpointError,
    JsonFile,
)
from metajax.models import Rotary, TransformerConfig

Architecture = Literal["gpt2", "llama", "qwen2", "qwen3"]
CLASSES: dict[Architecture, str] = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
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


def from_hf(file: JsonFile) -> TransformerConfig:
    """The configuration that a config.json describes.

    Raises:
        CheckpointError: a field is missing, or asks for what isn't supported: another architecture,
            rope type or activation, a sliding window, quantised weights.

    Example:
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> sizes |= {"vocab_size": 9, "intermediate_size": 16, "max_position_embeddings": 32}
        >>> fields = {"model_type": "llama", "rms_norm_eps": 1e-5, **sizes}
        >>> from_hf(JsonFile(fields, "config.json")).mlp_width
        16
    """
    architecture = file.one_of("model_type", (*CLASSES, "mistral"))
    quantization = file.get("quantization_config", OBJECT)
    if quantization is not None:
        method = quantization.get("quant_method", "unknown")
        raise file.unsupported("quantization_config", method, "a checkpoint of floats is")
    try:
        if architecture == "gpt2":
            return TransformerConfig.gpt2(**_gpt2(file))
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
    return {**_common(file, _GPT2_FIELDS), "activation": _ACTIVATIONS[activation]}


def _llama(file: JsonFile, architecture: str) -> dict[str, Any]:
    """Of Llama, Qwen and Mistral, which is Llama by another name where it has no window."""
    file.one_of("hidden_act", ("silu",), "silu")
    fields = _common(file, _LLAMA_FIELDS)
    _check_windows(file, architecture, fields["n_layers"], fields["max_length"])
    if architecture == "qwen3":
        fields["head_dim"] = fields["head_dim"] or 128
    biased = architecture != "qwen2" and file.get("attention_bias", FLAG, False)
    return {
        **fields,
        "rotary": _rotary(file),
        "qk_norm": architecture == "qwen3",
        "qkv_bias": biased or architecture == "qwen2",
        "output_bias": biased,
        "mlp_bias": architecture == "llama" and file.get("mlp_bias", FLAG, False),
    }


def _check_windows(file: JsonFile, architecture: str, layers: int, longest: int) -> None:
    """Raises a CheckpointError if a layer doesn't see all earlier tokens.

    A window of ``max_position_embeddings`` or more hides none.
    """
    first, window = 0, None
    if architecture == "llama":  # which has none; what else its file means by them isn't known
        file.one_of("use_sliding_window", (False,), False)
        file.one_of("sliding_window", (None,))
    elif architecture == "mistral" or file.get("use_sliding_window", FLAG, False):
        # null is none; where it is missing, transformers takes a default.
        named = "sliding_window" in file.fields
        window = file.get("sliding_window", INTEGER, None if named else 4096)
        if architecture != "mistral":
            first = file.get("max_window_layers", INTEGER, 28)
    hides = window is not None and window < longest
    types = None if architecture == "mistral" else file.get("layer_types", LIST)
    if types is None and hides and first < layers:
        raise file.unsupported(
            "sliding_window", window, f"max_position_embeddings={longest} or more is"
        )
    for layer_type in types or []:
        full = layer_type == "full_attention"
        if not full and (layer_type != "sliding_attention" or window is None or hides):
            raise file.unsupported("layer_types", layer_type, "'full_attention' is")


def _rotary(file: JsonFile) -> Rotary:
    # Version 5 has all of it in rope_parameters; version 4 the base beside rope_scaling.
    name = "rope_parameters" if file.fields.get("rope_parameters") else "rope_scaling"
    rope = JsonFile(file.get(name, OBJECT, {}), f"{file.name}: {name}")
    for where in (rope, file):
        where.one_of("partial_rotary_factor", (1.0,), 1.0)
    theta = rope.get("rope_theta", NUMBER, file.get("rope_theta", NUMBER, 10_000.0))
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
    table = _GPT2_FIELDS if architecture == "gpt2" else _LLAMA_FIELDS
    fields: dict[str, Any] = {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "dtype": dtype,
        "torch_dtype": dtype,
        # Without these, transformers would add tokens of its own vocabulary.
        "bos_token_id": None,
        "eos_token_id": eos_field(config.stop_tokens),
        **{theirs: getattr(config, ours) for ours, theirs, *_ in table},
    }
    if architecture == "gpt2":
        names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
        return fields | {"activation_function": names[config.activation]}
    rotary = config.rotary
    rope: dict[str, Any] = {"rope_type": rotary.scaling}
    if rotary.scaling == "none":
        rope = {"rope_type": "default"}
    else:
        rope["factor"] = rotary.factor
    if rotary.scaling == "llama3":
        rope |= {theirs: getattr(rotary, ours) for ours, theirs in _LLAMA3_FIELDS}
    fields |= {
        "hidden_act": "silu",
        "rope_parameters": {"rope_theta": rotary.theta, **rope},
        "rope_theta": rotary.theta,
        "rope_scaling": None if rotary.scaling == "none" else rope,
    }
    if architecture != "qwen2":
        fields["attention_bias"] = config.output_bias
    if architecture == "llama":
        fields["mlp_bias"] = config.mlp_bias
    return fields
