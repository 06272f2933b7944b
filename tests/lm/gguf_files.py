"""GGUF files for tests, written by the ``gguf`` library from a Hugging Face model's tensors."""

import re

import gguf
import numpy as np

_NAMES = (
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
_GEMMA = (
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
)


def as_llama_cpp_has_them(tensors, config, architecture):
    """Hugging Face's tensors by their names and in the form of llama.cpp's converter."""
    names = (*_NAMES, *(_GEMMA if architecture == "gemma3" else ()))
    names = (*names, ("post_attention_layernorm", "ffn_norm"))
    found = {}
    for name, value in tensors.items():
        for theirs, its in names:
            name = name.replace(theirs, its)
        if architecture == "llama" and (side := re.search(r"attn_([qk])\.", name)):
            heads = config.n_heads if side[1] == "q" else config.n_kv_heads
            halves = value.reshape(heads, 2, -1, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        found[name] = np.ascontiguousarray(value)
    return found


def fields_of(config, architecture):
    """The metadata of a model."""
    fields = {
        "vocab_size": config.vocab_size,
        "embedding_length": config.width,
        "block_count": config.n_layers,
        "context_length": config.max_length,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rotary.theta,
    }
    if config.rotary.scaling == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rotary.factor}
    if config.windows:
        fields["attention.sliding_window"] = max(config.windows)
    return {f"{architecture}.{name}": value for name, value in fields.items()}


def write(path, architecture, fields, tensors, quantisation=None):
    """Writes a file; matrices in a quantisation's name, or as they are.

    Returns:
        The tensors as ``gguf`` itself reads what was written.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    stored = {}
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType.F32
        if quantisation is not None and value.ndim > 1:
            kind = gguf.GGMLQuantizationType[quantisation]
        data = quantised(value, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        stored[name] = gguf.quants.dequantize(data, kind).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def quantised(value, kind):
    """A matrix in a quantisation; random blocks where the library can only read it."""
    try:
        return gguf.quants.quantize(value, kind)
    except NotImplementedError:
        together, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = np.random.default_rng(0).integers(0, 256, (value.size // together, size))
        blocks = blocks.astype(np.uint8)
        scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
        for place in places[kind.name]:
            blocks[:, place : place + 2] = scale
        return blocks.reshape(len(value), -1)
