"""Which tensor of a Hugging Face checkpoint holds which of a Transformer's parameters."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from metajax.lm._hf_config import Architecture, architecture_of
from metajax.lm._params import parameter_shapes
from metajax.models import TransformerConfig


class Names(NamedTuple):
    """How a kind of checkpoint names a model's modules.

    Attributes:
        outside: our module and theirs, outside of the blocks.
        blocks: what the names of a block's modules begin with.
        block: our module and theirs, in a block. GPT-2 has one for query, key and value.
        in_out: whether the matrices of blocks are stored ``[in, out]``, as GPT-2's are.
    """

    outside: Mapping[str, str]
    blocks: str
    block: Mapping[str, str]
    in_out: bool = False


_GPT2 = Names(
    {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    "transformer.h",
    {
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attention/query attention/key attention/value": "attn.c_attn",
        "attention/output": "attn.c_proj",
        "mlp/up": "mlp.c_fc",
        "mlp/down": "mlp.c_proj",
    },
    in_out=True,
)
_LLAMA = Names(
    {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    "model.layers",
    {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/output": "self_attn.o_proj",
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
    },
)
_GEMMA3 = _LLAMA._replace(
    block={
        **_LLAMA.block,
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
)
_NAMES: dict[Architecture, Names] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": _GEMMA3,
}
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}


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


def tensors(config: TransformerConfig, names: Names | None = None) -> list[Tensor]:
    """All tensors of a model's checkpoint; of a Hugging Face folder unless ``names`` are given.

    Raises:
        CheckpointError: no Hugging Face architecture has this configuration's parts.

    Example:
        >>> config = TransformerConfig.gpt2(vocab_size=8, width=4, n_layers=1, n_heads=2)
        >>> [tensor.shape for tensor in tensors(config) if "c_attn" in tensor.name]
        [(4, 12), (12,)]
    """
    names = names or _NAMES[architecture_of(config)]
    shapes, found = parameter_shapes(config), []
    for layer in (None, *range(config.n_layers)):
        if layer is None:
            modules, ours, theirs = names.outside, "", ""
        else:
            modules, ours, theirs = names.block, f"block_{layer}/", f"{names.blocks}.{layer}."
        for together, module in modules.items():
            for leaf, name in _LEAVES.items():
                paths = [f"{each}/{leaf}" for each in together.split()]
                if ours + paths[0] in shapes:
                    parts = tuple((path, shapes[ours + path]) for path in paths)
                    # torch's linear layer is [out, in].
                    transposed = leaf == "kernel" and not (names.in_out and layer is not None)
                    found.append(Tensor(f"{theirs}{module}.{name}", parts, layer, transposed))
    return found


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
