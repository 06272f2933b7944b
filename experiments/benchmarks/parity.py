"""How near the logits and the greedy tokens of each type of model are to transformers'.

    python -m experiments.benchmarks.parity
    python -m experiments.benchmarks.parity --checkpoints stories260K gemma.gguf

Small models of random weights, made and saved by transformers; real checkpoints where they're
named. Both sides compute in float32 on the CPU. Texts are longer than the attention's window, where
there is one.
"""

# PyTorch and transformers are installed for tests and benchmarks alone.
# pyright: reportMissingImports=false

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.benchmarks.report import provenance, say, write
from experiments.common.report import markdown_table
from metajax import lm

VOCABULARY, LENGTH = 97, 24
FULL, SLIDING = "full_attention", "sliding_attention"


def llama_like(**options: Any) -> dict[str, Any]:
    """Fields of a small Llama, and of what is like it."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 128,
        **options,
    }


def gpt2_like(**options: Any) -> dict[str, Any]:
    """Fields of a small GPT-2."""
    return {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **options,
    }


def gemma3_like(**options: Any) -> dict[str, Any]:
    """Fields of a small Gemma 3."""
    return llama_like(
        num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=40, sliding_window=5, **options
    )


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """Fields that scale rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **options}}


WINDOW = {"use_sliding_window": True, "sliding_window": 5}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", gpt2_like()),
    "gpt2-untied": ("GPT2Config", gpt2_like(tie_word_embeddings=False)),
    "gpt2-other-mlp": ("GPT2Config", gpt2_like(n_inner=48, activation_function="gelu")),
    "llama2": ("LlamaConfig", llama_like()),
    "llama-grouped": ("LlamaConfig", llama_like(num_key_value_heads=2)),
    "llama-one-kv-head": ("LlamaConfig", llama_like(num_key_value_heads=1)),
    "llama-tied": ("LlamaConfig", llama_like(tie_word_embeddings=True)),
    "llama-biases": ("LlamaConfig", llama_like(attention_bias=True, mlp_bias=True)),
    "llama-head-dim": ("LlamaConfig", llama_like(head_dim=20)),
    "llama3-rope": ("LlamaConfig", llama_like(**rope("llama3", **LLAMA3))),
    "llama-linear-rope": ("LlamaConfig", llama_like(**rope("linear", factor=2.0))),
    "qwen2": ("Qwen2Config", llama_like(num_key_value_heads=2)),
    "qwen2-tied": ("Qwen2Config", llama_like(tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", llama_like(num_key_value_heads=2, head_dim=24)),
    "qwen3-default-head": ("Qwen3Config", llama_like(tie_word_embeddings=True)),
    "mistral": ("MistralConfig", llama_like(num_key_value_heads=2, sliding_window=5)),
    "qwen2-window": ("Qwen2Config", llama_like(**WINDOW, max_window_layers=1)),
    "qwen3-window": ("Qwen3Config", llama_like(**WINDOW, layer_types=[SLIDING, FULL, SLIDING])),
    "gemma3": ("Gemma3TextConfig", gemma3_like(layer_types=[SLIDING, FULL, SLIDING])),
    "gemma3-pattern": ("Gemma3TextConfig", gemma3_like() | {"num_hidden_layers": 7}),
    "gemma3-other": (
        "Gemma3TextConfig",
        gemma3_like(
            tie_word_embeddings=False,
            attention_bias=True,
            rope_parameters={
                FULL: {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
            layer_types=[SLIDING, FULL, FULL],
        ),
    ),
}
"""Class of the configuration and its fields, by the case's name."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    checkpoints: tuple[Path, ...] = ()
    """Real ones beside the small ones: Hugging Face folders or GGUF files."""
    new_tokens: int = 64
    """Greedy tokens, with a cache on both sides."""
    out: Path = Path("runs/bench")
    """Folder for parity.json and .md; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(self, "new_tokens")
        for path in self.checkpoints:
            if not path.exists():
                raise ValueError(f"checkpoints must be folders or files that exist; got {path}")


def reference(kind: str, options: dict[str, Any], seed: int = 0) -> Any:
    """transformers' model of a configuration, with random weights, biases and scales among them."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits_of(
    model: Any,
    tokens: np.ndarray,
    mask: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """transformers' logits ``[batch, length, vocabulary]``; ``mask`` is False at padding."""
    import torch

    options = {}
    if mask is not None:
        options = {
            "attention_mask": torch.tensor(mask.astype(np.int64)),
            "position_ids": torch.tensor(positions),
        }
    with torch.no_grad():
        return model(torch.tensor(tokens), **options).logits.numpy()


def padded(lengths: np.ndarray, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Mask and positions ``[batch, LENGTH]`` of rows with so many tokens, padded left or right."""
    places = np.arange(LENGTH)
    offset = LENGTH - lengths[:, None] if side == "left" else np.zeros((len(lengths), 1), int)
    mask = (places >= offset) & (places < offset + lengths[:, None])
    return mask, np.where(mask, places - offset, 0)


def greedy_of(model: Any, prompt: list[int], **options: Any) -> list[int]:
    """The tokens that transformers adds, the likeliest each time."""
    import torch

    with torch.no_grad():
        row = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            pad_token_id=0,
            **options,
        )
    return row[0, len(prompt) :].tolist()


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference at a position, relative to the largest logit there; the worst one.

    >>> relative(np.array([[1.0, 4.0], [2.0, 1.0]]), np.array([[1.0, 5.0], [2.0, 1.0]]))
    0.2
    """
    gaps = np.abs(ours - theirs).max(axis=-1) / np.abs(theirs).max(axis=-1)
    return float(gaps.max())


def compare(theirs: Any, path: Path, tokens: np.ndarray, new_tokens: int) -> dict[str, Any]:
    """Logits and greedy tokens of a checkpoint, beside transformers' model of it.

    Args:
        theirs: transformers' model.
        path: the checkpoint, which metajax reads.
        tokens: integers ``[batch, length]``.
        new_tokens: how many are added to the first half of the first row.
    """
    model, params = lm.load_pretrained(path, dtype="float32")
    full = jax.jit(model.apply)
    found = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "logits": relative(np.asarray(full({"params": params}, tokens)), logits_of(theirs, tokens)),
    }
    if len(tokens) > 1:
        for side in ("left", "right"):
            lengths = np.array([tokens.shape[1], 7, 13])
            mask, positions = padded(lengths, side)
            ours = np.asarray(full({"params": params}, tokens, segment_ids=mask))
            wanted = logits_of(theirs, tokens, mask, positions)
            found[f"logits, padded {side}"] = relative(ours[mask], wanted[mask])
    prompt = tokens[0, : tokens.shape[1] // 2].tolist()
    wanted = greedy_of(theirs, prompt, max_new_tokens=new_tokens, eos_token_id=None)
    sampling = lm.SamplingParams(stop_tokens=())
    ours = lm.generate(model, params, [prompt], max_new_tokens=new_tokens, sampling=sampling)
    row = ours.tokens[0, 0].tolist()
    again = full({"params": params}, np.array([prompt + row]))[0, len(prompt) - 1 : -1]
    return found | {
        "greedy": sum(one == other for one, other in zip(row, wanted, strict=True)),
        "greedy, no cache": int((np.asarray(again).argmax(axis=-1) == np.array(row)).sum()),
        "new tokens": new_tokens,
    }


def real(path: Path, new_tokens: int) -> dict[str, Any]:
    """A real checkpoint, on a text of numbers that is longer than most windows."""
    import torch
    import transformers

    gguf = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if gguf else path
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf)
    text = "Each of the words in this long text has a number: " + ", ".join(
        f"{chr(97 + n % 26)}{n} is {n * n % 97}" for n in range(120)
    )
    longest = theirs.config.max_position_embeddings - new_tokens
    tokens = lm.load_tokenizer(path).encode(text)[: min(640, longest)]
    return compare(theirs.eval(), path, np.array([tokens]), new_tokens)


def table(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    rows = result["rows"]
    show = lambda row, name: f"{row[name]:.0e}" if name in row else "–"
    of = lambda row, name: f"{row[name]} of {row['new tokens']}"
    columns = {
        "model": [row["name"] for row in rows],
        "type": [row["type"] for row in rows],
        "parameters": [f"{row['parameters']:,}" for row in rows],
        "logits": [show(row, "logits") for row in rows],
        "padded left": [show(row, "logits, padded left") for row in rows],
        "padded right": [show(row, "logits, padded right") for row in rows],
        "greedy tokens": [of(row, "greedy") for row in rows],
        "the same without a cache": [of(row, "greedy, no cache") for row in rows],
    }
    lines = [
        "# Types of models beside transformers",
        "",
        "The largest difference of the logits at a position, relative to the largest logit there; "
        "the worst position counts. Greedy tokens that are transformers', and those that are the "
        "likeliest when the whole text is read at once.",
        "",
        *markdown_table(columns),
        "",
        *provenance(dict(result)),
    ]
    return "\n".join(lines) + "\n"


def measure(config: Config) -> list[dict[str, Any]]:
    """A row a case, and one a checkpoint."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH))
    rows = []
    for name in CASES:
        theirs = reference(*CASES[name])
        theirs.config.eos_token_id = None
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            found = compare(theirs, Path(folder), tokens, config.new_tokens)
        rows.append({"name": name, "type": theirs.config.model_type} | found)
        say(rows[-1])
    for path in config.checkpoints:
        found = real(path, config.new_tokens)
        kind = "GGUF" if path.is_file() else "Hugging Face folder"
        rows.append({"name": path.stem, "type": kind} | found)
        say(rows[-1])
    return rows


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    config.out.mkdir(parents=True, exist_ok=True)
    names = tuple(Path(path.name) for path in config.checkpoints)
    named = dataclasses.replace(config, checkpoints=())
    command = common.command("experiments.benchmarks.parity", named)
    result = {
        "command": " ".join([command, *(["--checkpoints", *map(str, names)] if names else [])]),
        "environment": common.environment(),
        "rows": measure(config),
    }
    write(config.out, "parity", result, table(result))
    print(table(result))


if __name__ == "__main__":
    common.guard(main)
