"""Tokens a second of generation beside transformers' PyTorch models, with the same random weights.

    python -m experiments.benchmarks.generation

Greedy decoding in float32 of a GPT-2 of 125 million parameters and of a small model, from one
checkpoint that both read. Each program's first call, which compiles, isn't counted; then they take
turns. The tokens of both are compared before timing.
"""

# PyTorch and transformers are installed for tests and benchmarks alone.
# pyright: reportMissingImports=false

import dataclasses
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.benchmarks import meta_step
from experiments.benchmarks.report import provenance, say, write
from metajax import lm, runs
from metajax.models import Transformer, TransformerConfig

MODELS: dict[str, TransformerConfig] = {
    "GPT-2, 124 M": TransformerConfig.gpt2(
        vocab_size=50257, width=768, n_layers=12, n_heads=12, max_length=1024
    ),
    "Llama, 14 M": TransformerConfig.llama(
        vocab_size=4096, width=384, n_layers=6, n_heads=6, mlp_width=1024, max_length=1024
    ),
    "Llama, 1 M": TransformerConfig.llama(
        vocab_size=256, width=128, n_layers=4, n_heads=4, mlp_width=512, max_length=1024
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    models: tuple[str, ...] = tuple(MODELS)
    """Which of them."""
    batch: int = 8
    """Prompts at once."""
    prompt_length: int = 32
    """Tokens of a prompt."""
    new_tokens: int = 128
    """Tokens added to each."""
    rounds: int = 5
    """Timed calls of each program, in turns."""
    out: Path = Path("runs/bench")
    """Folder for generation.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        runs.check_positive(self, "batch", "prompt_length", "new_tokens", "rounds")
        for name in self.models:
            if name not in MODELS:
                raise ValueError(f"models must be some of {', '.join(MODELS)}; got {name}")


def programs(config: Config, name: str, folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """``program() -> new tokens [batch, new_tokens]`` of metajax and of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers
    architecture = MODELS[name]
    key = jax.random.key(0)
    init: Any = jax.jit(Transformer(architecture).init)
    params = init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    lm.save_pretrained(folder, architecture, params)
    prompts = np.random.default_rng(0).integers(
        0, architecture.vocab_size, (config.batch, config.prompt_length)
    )
    model, params = lm.load_pretrained(folder, scan=False)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tensor = torch.tensor(prompts)

    def ours() -> np.ndarray:
        generated = lm.generate(model, params, prompts, max_new_tokens=config.new_tokens)
        return np.asarray(generated.tokens[:, 0])

    def peer() -> np.ndarray:
        with torch.inference_mode():
            tokens = theirs.generate(
                tensor,
                attention_mask=torch.ones_like(tensor),
                max_new_tokens=config.new_tokens,
                min_new_tokens=config.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return tokens[:, config.prompt_length :].numpy()

    return {"metajax": ours, "transformers": peer}


def measure(config: Config, name: str) -> dict[str, Any]:
    """Tokens a second of both, and how many of their tokens agree."""
    with tempfile.TemporaryDirectory() as folder:
        both = programs(config, name, Path(folder))
    first = {program: call() for program, call in both.items()}
    agreeing = float(np.mean(first["metajax"] == first["transformers"]))
    seconds: dict[str, list[float]] = {program: [] for program in both}
    for _ in range(config.rounds):
        for program, call in both.items():
            start = time.perf_counter()
            call()
            seconds[program].append(time.perf_counter() - start)
    count = config.batch * config.new_tokens
    rates = {program: count / statistics.median(times) for program, times in seconds.items()}
    row = {
        "model": name,
        "tokens_a_second": rates,
        "ratio": rates["metajax"] / rates["transformers"],
        "agreeing_tokens": agreeing,
        "seconds": seconds,
    }
    say(f"{name}: {rates['metajax']:,.0f} and {rates['transformers']:,.0f} tokens a second")
    return row


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"Greedy generation in float32: {result['batch']} prompts of {result['prompt_length']} "
        f"tokens, {result['new_tokens']} new ones each; the median of {result['rounds']} calls.",
        "",
        "| model | metajax, tokens a second | transformers | ratio | tokens that agree |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ours, theirs = (row["tokens_a_second"][name] for name in ("metajax", "transformers"))
        lines.append(
            f"| {row['model']} | {ours:,.0f} | {theirs:,.0f} | {row['ratio']:.2f} × "
            f"| {100 * row['agreeing_tokens']:.1f} % |"
        )
    return "\n".join([*lines, "", *provenance(result)]) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """Tokens a second, a pair of bars a model."""
    figure = Figure(figsize=(7, 0.9 * len(result["rows"]) + 1), dpi=72, layout="constrained")
    axes = figure.subplots()
    for offset, program in ((0.2, "metajax"), (-0.2, "transformers")):
        rates = [row["tokens_a_second"][program] for row in result["rows"]]
        axes.barh([place + offset for place in range(len(rates))], rates, 0.38, label=program)
    axes.set_yticks(range(len(result["rows"])), [row["model"] for row in result["rows"]])
    axes.set_xscale("log")
    axes.set_xlabel("tokens a second")
    axes.legend()
    figure.savefig(path)


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    environment = runs.environment()
    result = {
        "command": meta_step.command("experiments.benchmarks.generation", config),
        "environment": environment,
        **{n: getattr(config, n) for n in ("batch", "prompt_length", "new_tokens", "rounds")},
        "rows": [measure(config, name) for name in config.models],
    }
    write(config.out, "generation", result, table(result), chart)
    return table(result)


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    print(run(config))
    say(f"written to {config.out}")


if __name__ == "__main__":
    runs.guard(main)
