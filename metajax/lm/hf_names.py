"""Which tensor of a Hugging Face checkpoint holds which of a Transformer's parameters."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from metajax.lm.hf_config import architecture_of
from metajax.models import TransformerConfig


class Tensor(NamedTuple):
    """One tensor of a checkpoint.

    Attributes:
        name: its name.
        parts: path and shape of each parameter in it, side by side along the last axis. In a
            block, the path is within ``blocks``.
        layer: the block, None outside of them.
        transposed: whether it is stored as ``[out, in]``.
    """

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    layer: int | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which it is stored."""
        first = self.parts[0][1]
        whole = (*first[:-1], sum(shape[-1] for _, shape in self.parts))
        return whole[::-1] if self.transposed else whole


def tensors(config: TransformerConfig) -> list[Tensor]:
    """All tensors of a model's checkpoint.

    Raises:
        CheckpointError: no Hugging Face architecture has this configuration's parts.

    Example:
        >>> config = TransformerConfig.gpt2(vocab_size=8, width=4, n_layers=1, n_heads=2)
        >>> [tensor.shape for tensor in tensors(config) if "c_attn" in tensor.name]
        [(4, 12), (12,)]
    """
    gpt2 = architecture_of(config) == "gpt2"
    return [*(_gpt2 if gpt2 else _llama)(config)]


def _sizes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    c = config
    heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return {
        "attention/query": (c.width, heads),
        "attention/key": (c.width, kv_heads),
        "attention/value": (c.width, kv_heads),
        "attention/output": (heads, c.width),
        "mlp/gate": (c.width, c.mlp_width),
        "mlp/up": (c.width, c.mlp_width),
        "mlp/down": (c.mlp_width, c.width),
    }


def _head(config: TransformerConfig) -> Iterator[Tensor]:
    if not config.tied:
        shape = (config.width, config.vocab_size)
        yield Tensor("lm_head.weight", (("head/kernel", shape),), transposed=True)


def _gpt2(config: TransformerConfig) -> Iterator[Tensor]:
    sizes, width = _sizes(config), (config.width,)
    embedding, places = (config.vocab_size, config.width), (config.max_length, config.width)
    yield Tensor("transformer.wte.weight", (("embed/embedding", embedding),))
    yield Tensor("transformer.wpe.weight", (("positions/embedding", places),))
    fused = tuple(f"attention/{name}" for name in ("query", "key", "value"))
    matrices = {
        "attn.c_attn": fused,
        "attn.c_proj": ("attention/output",),
        "mlp.c_fc": ("mlp/up",),
        "mlp.c_proj": ("mlp/down",),
    }
    for layer in range(config.n_layers):
        prefix = f"transformer.h.{layer}."
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            yield Tensor(f"{prefix}{theirs}.weight", ((f"{ours}/scale", width),), layer)
            yield Tensor(f"{prefix}{theirs}.bias", ((f"{ours}/bias", width),), layer)
        for theirs, parts in matrices.items():
            # GPT-2's own layer stores [in, out].
            kernels = tuple((f"{part}/kernel", sizes[part]) for part in parts)
            biases = tuple((f"{part}/bias", sizes[part][1:]) for part in parts)
            yield Tensor(f"{prefix}{theirs}.weight", kernels, layer)
            yield Tensor(f"{prefix}{theirs}.bias", biases, layer)
    yield Tensor("transformer.ln_f.weight", (("norm/scale", width),))
    yield Tensor("transformer.ln_f.bias", (("norm/bias", width),))
    yield from _head(config)


def _llama(config: TransformerConfig) -> Iterator[Tensor]:
    c, sizes, width = config, _sizes(config), (config.width,)
    yield Tensor("model.embed_tokens.weight", (("embed/embedding", (c.vocab_size, c.width)),))
    matrices = {
        "self_attn.q_proj": ("attention/query", c.qkv_bias),
        "self_attn.k_proj": ("attention/key", c.qkv_bias),
        "self_attn.v_proj": ("attention/value", c.qkv_bias),
        "self_attn.o_proj": ("attention/output", c.output_bias),
        "mlp.gate_proj": ("mlp/gate", c.mlp_bias),
        "mlp.up_proj": ("mlp/up", c.mlp_bias),
        "mlp.down_proj": ("mlp/down", c.mlp_bias),
    }
    for layer in range(c.n_layers):
        prefix = f"model.layers.{layer}."
        for theirs, ours in (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "mlp_norm"),
        ):
            yield Tensor(f"{prefix}{theirs}.weight", ((f"{ours}/scale", width),), layer)
        if c.qk_norm:
            for theirs, ours in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
                parts = ((f"attention/{ours}/scale", (c.head_dim,)),)
                yield Tensor(f"{prefix}self_attn.{theirs}.weight", parts, layer)
        for theirs, (ours, bias) in matrices.items():
            kernel = ((f"{ours}/kernel", sizes[ours]),)
            yield Tensor(f"{prefix}{theirs}.weight", kernel, layer, transposed=True)
            if bias:
                yield Tensor(f"{prefix}{theirs}.bias", ((f"{ours}/bias", sizes[ours][1:]),), layer)
    yield Tensor("model.norm.weight", (("norm/scale", width),))
    yield from _head(config)


_BUFFERS = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")


def canonical(name: str, config: TransformerConfig) -> str | None:
    """A stored tensor's name as ``tensors`` has it; None for what old files hold beside parameters.

    GPT-2's first files lack the prefix, and have the causal mask among the tensors.

    Example:
        >>> config = TransformerConfig.gpt2(vocab_size=8, width=4, n_layers=1, n_heads=2)
        >>> canonical("h.0.ln_1.weight", config), canonical("h.0.attn.bias", config)
        ('transformer.h.0.ln_1.weight', None)
    """
    if _BUFFERS.search(name):
        return None
    if architecture_of(config) == "gpt2" and re.match(r"(h\.\d|wte\.|wpe\.|ln_f\.)", name):
        return f"transformer.{name}"
    return name
