"""GGUF files, as llama.cpp has them: a model's configuration and tensors in one file."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from metajax import _checks
from metajax._extras import import_extra
from metajax.errors import ArgumentError
from metajax.lm import _gguf_header
from metajax.lm._folder import INTEGER, LIST, NUMBER, TEXT, CheckpointError, JsonFile
from metajax.lm._hf_tensors import Names
from metajax.models import Rotary, TransformerConfig

NAMES = Names(
    {"embed": "token_embd", "norm": "output_norm", "head": "output"},
    "blk",
    {
        "attention_norm": "attn_norm",
        "attention_post_norm": "post_attention_norm",
        "attention/query": "attn_q",
        "attention/key": "attn_k",
        "attention/value": "attn_v",
        "attention/output": "attn_output",
        "attention/query_norm": "attn_q_norm",
        "attention/key_norm": "attn_k_norm",
        "mlp_norm": "ffn_norm",
        "mlp_post_norm": "post_ffw_norm",
        "mlp/gate": "ffn_gate",
        "mlp/up": "ffn_up",
        "mlp/down": "ffn_down",
    },
)
_MODELS = {
    "llama": TransformerConfig.llama,
    "qwen2": TransformerConfig.qwen2,
    "qwen3": TransformerConfig.qwen3,
    "gemma3": TransformerConfig.gemma3,
}
_QUANTISATIONS = (
    *("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"),
)
_FIELDS = (
    ("width", "embedding_length"),
    ("n_layers", "block_count"),
    ("n_heads", "attention.head_count"),
    ("max_length", "context_length"),
    ("mlp_width", "feed_forward_length"),
)
# What changes the function that the model computes.
_UNSUPPORTED = (
    *("expert_count", "logit_scale", "embedding_scale", "residual_scale", "attn_logit_softcapping"),
    *("final_logit_softcapping", "attention.scale", "attention.clamp_kqv", "rope.scale_linear"),
)
_ROPE_FACTORS = "rope_freqs.weight"
_TOKENS = "tokenizer.ggml.tokens"
_CHUNK = 1 << 22  # numbers that are dequantised at once


class GGUFFile:
    """An open file: its header is read, and tensors stay where they are.

    Attributes:
        path: where it is.
        metadata: its fields.

    Raises:
        CheckpointError: the file is missing, is no GGUF file, is damaged or cut short, or is a part
            of several.
        ImportError: gguf isn't installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fields, self._tensors = _gguf_header.read(path)
        self.metadata = JsonFile(fields, str(path))
        parts = self.metadata.get("split.count", INTEGER, 1)
        if parts > 1:
            raise self.metadata.unsupported("split.count", parts, "a file in one part is")

    @property
    def stored(self) -> set[str]:
        """The names of all tensors that are parameters."""
        return self._tensors.keys() - {_ROPE_FACTORS}

    def config(self) -> TransformerConfig:
        """The configuration that the metadata describes.

        Raises:
            CheckpointError: a field or the embedding is missing; the architecture, a quantisation
                or something else isn't supported; or tokenizer and vocabulary differ in size.
        """
        meta = self.metadata
        architecture = meta.one_of("general.architecture", _MODELS)
        for name, tensor in self._tensors.items():
            if tensor.quantisation.name not in _QUANTISATIONS:
                raise CheckpointError(
                    f"{self.path}: {name} is stored as {tensor.quantisation.name}, which isn't "
                    f"supported, {', '.join(_QUANTISATIONS)} are."
                )
        try:
            return _MODELS[architecture](**self._options(architecture))
        except ArgumentError as error:
            raise CheckpointError(f"{self.path}: {error}") from error

    def _options(self, architecture: str) -> dict[str, Any]:
        meta, own = self.metadata, f"{architecture}."
        for field in _UNSUPPORTED:
            if meta.fields.get(own + field):
                raise meta.unsupported(own + field, meta.fields[own + field])
        options: dict[str, Any] = {
            ours: meta.need(own + theirs, INTEGER) for ours, theirs in _FIELDS
        }
        if options["n_layers"] > len(self._tensors):
            raise CheckpointError(
                f"{self.path}: {own}block_count is {options['n_layers']}, but there are only "
                f"{len(self._tensors)} tensors."
            )
        options["vocab_size"] = self.vocab_size()
        options["norm_eps"] = meta.need(own + "attention.layer_norm_rms_epsilon", NUMBER)
        options["n_kv_heads"] = meta.get(own + "attention.head_count_kv", INTEGER, 0)
        _checks.positive_int(own + "attention.head_count", options["n_heads"])
        even = options["width"] // options["n_heads"]
        head_dim = options["head_dim"] = meta.get(own + "attention.key_length", INTEGER, even)
        for field in ("attention.value_length", "rope.dimension_count"):
            meta.one_of(own + field, (head_dim,), head_dim)
        for ours, theirs in (
            ("qkv_bias", "attn_q"),
            ("output_bias", "attn_output"),
            ("mlp_bias", "ffn_up"),
        ):
            options[ours] = f"blk.0.{theirs}.bias" in self._tensors
        options["tied"] = "output.weight" not in self._tensors
        options["rotary"] = self._rotary(own, head_dim)
        ends = (meta.get(f"tokenizer.ggml.{end}_token_id", INTEGER) for end in ("eos", "eot"))
        options["stop_tokens"] = tuple(dict.fromkeys(end for end in ends if end is not None))
        options["source"] = str(self.path.resolve())
        window = meta.get(own + "attention.sliding_window", INTEGER, 0)
        if architecture == "gemma3":
            _checks.positive_int(own + "attention.sliding_window", window)
            options["windows"] = self._windows(own, window, options["n_layers"])
            options["local_rotary"] = Rotary(meta.get(own + "rope.freq_base_swa", NUMBER, 1e4))
            # llama.cpp too knows the model of 27 billion parameters by its layers.
            options["score_width"] = even if options["n_layers"] == 62 else head_dim
        elif window:
            raise meta.unsupported(own + "attention.sliding_window", window)
        return options

    def _windows(self, own: str, window: int, n_layers: int) -> tuple[int, ...]:
        name = own + "attention.sliding_window_pattern"
        pattern = self.metadata.fields.get(name, 6)
        if isinstance(pattern, list):  # whether each layer has the window
            return tuple(window if local else 0 for local in pattern)
        local = _checks.positive_int(name, pattern) - 1
        return (window,) * min(local, n_layers) + (0,)

    def vocab_size(self) -> int:
        """The rows of the embedding.

        Raises:
            CheckpointError: there is none, or the tokenizer has another number of tokens.
        """
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise CheckpointError(f"{self.path}: token_embd.weight is missing, or is no matrix.")
        size = embedding.shape[0]
        tokens = self.metadata.get(_TOKENS, LIST)
        if tokens is not None and len(tokens) != size:
            raise CheckpointError(
                f"{self.path}: its tokenizer has {len(tokens)} tokens, and token_embd.weight has "
                f"{size}."
            )
        return size

    def _rotary(self, own: str, head_dim: int) -> Rotary:
        meta = self.metadata
        theta = meta.get(own + "rope.freq_base", NUMBER, 10_000.0)
        scaling = meta.one_of(own + "rope.scaling.type", ("none", "linear"), "none")
        if scaling == "linear":
            return Rotary(theta, "linear", meta.need(own + "rope.scaling.factor", NUMBER))
        if _ROPE_FACTORS not in self._tensors:
            return Rotary(theta)
        # Llama 3's scaling is stored as what each frequency is divided by.
        factors = self.read(_ROPE_FACTORS, (head_dim // 2,))
        length = meta.get(own + "rope.scaling.original_context_length", INTEGER, 8192)
        rotary = Rotary(theta, "llama3", float(factors.max()), original_length=length)
        wanted = Rotary(theta).frequencies(head_dim) / factors
        if not np.allclose(rotary.frequencies(head_dim), wanted, rtol=1e-4):
            raise CheckpointError(
                f"{self.path}: {_ROPE_FACTORS} isn't Llama 3's scaling, and no other is supported."
            )
        return rotary

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor in float32, as transformers' models have it.

        Raises:
            CheckpointError: it has another shape.
        """
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.path}: {name} has shape {tensor.shape}, its metadata asks for {shape}."
            )
        dequantize = import_extra("gguf", extra="lm").quants.dequantize
        value = np.empty(shape, np.float32)
        rows = value.reshape(-1, shape[-1])
        step = max(1, _CHUNK // shape[-1])
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            rows[part] = dequantize(tensor.rows[part], tensor.quantisation)
        own = self.metadata.get("general.architecture", TEXT)
        if own == "gemma3" and name.endswith("norm.weight"):
            return value - 1  # one plus the parameter is stored
        side = re.search(r"attn_([qk])\.(weight|bias)$", name)
        if own == "llama" and side:
            heads = self.metadata.need("llama.attention.head_count", INTEGER)
            if side[1] == "k":
                heads = self.metadata.get("llama.attention.head_count_kv", INTEGER, heads)
            return _halves_apart(value, heads)
        return value


def _halves_apart(value: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head in the order of ``rotate``, which turns features i and i + d/2.

    llama.cpp turns neighbours for Llama, and stores the rows so.

    Example:
        >>> _halves_apart(np.arange(8), 2)
        array([0, 2, 1, 3, 4, 6, 5, 7])
    """
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(value.shape)
