"""Tokens a second of generation beside transformers' PyTorch models, with the same random weights.

    python -m experiments.benchmarks.generation

Greedy decoding in float32 of a GPT-2 of 124 million parameters and of small models, from one
checkpoint that all read. metajax decodes in two forms: on one JAX device, which shares each product
between the cores, and with the prompts shared between devices, one a core. PyTorch takes the number
of threads that is fastest for the model. Preparing parameters and each program's first call, which
compiles, aren't counted; then they take turns. All tokens are compared before timing.
"""

# PyTorch and transformers are installed for tests and benchmarks alone.
# pyright: reportMissingImports=false

import dataclasses
import os
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
from matplotlib.figure import Figure

import metajax
from experiments import common
from experiments.benchmarks.report import provenance, say, write
from experiments.evolution.pretrained import random_checkpoint
from metajax import lm
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
    "Gemma 3, 268 M": random_checkpoint.SHAPES["gemma3-270m"],
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    models: tuple[str, ...] = tuple(MODELS)[:3]
    """Which of them."""
    batch: int = 8
    """Prompts at once."""
    prompt_length: int = 32
    """Tokens of a prompt."""
    same: int = 0
    """How many tokens all prompts begin with, such as worked examples."""
    new_tokens: int = 128
    """Tokens added to each."""
    rounds: int = 5
    """Timed calls of each program, in turns."""
    out: Path = Path("runs/bench")
    """Folder for generation.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(self, "batch", "prompt_length", "new_tokens", "rounds")
        if not 0 <= self.same <= self.prompt_length:
            raise ValueError(f"same must be from 0 to {self.prompt_length}; got {self.same}")
        for name in self.models:
            if name not in MODELS:
                raise ValueError(f"models must be some of {', '.join(MODELS)}; got {name}")


ONE, SHARED, PEER = "metajax", "metajax, prompts shared", "transformers"


def programs(config: Config, name: str, folder: Path) -> dict[str, Callable[[int], np.ndarray]]:
    """``program(new) -> new tokens [batch, new]`` of metajax's two forms and of transformers."""
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
    prompts[:, : config.same] = prompts[0, : config.same]
    model, params = lm.load_pretrained(folder, scan=False)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tensor = torch.tensor(prompts)

    def ours(mesh: Any) -> Callable[[int], np.ndarray]:
        ready = lm.decoding_params(params, mesh=mesh)
        return lambda new: np.asarray(
            lm.generate(model, ready, prompts, max_new_tokens=new, mesh=mesh).tokens[:, 0]
        )

    def peer(new: int) -> np.ndarray:
        with torch.inference_mode():
            tokens = theirs.generate(
                tensor,
                attention_mask=torch.ones_like(tensor),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return tokens[:, config.prompt_length :].numpy()

    return {ONE: ours(None), SHARED: ours(metajax.task_mesh(config.batch)), PEER: peer}


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def choose_threads(program: Callable[[int], Any]) -> int:
    """Sets PyTorch's number of threads to what is fastest for 16 tokens, and returns it."""
    import torch

    program(2)
    times = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        times[threads] = min(seconds_of(lambda: program(16)) for _ in range(2))
    best = min(times, key=lambda threads: times[threads])
    torch.set_num_threads(best)
    return best


def measure(config: Config, name: str) -> dict[str, Any]:
    """Tokens a second of all, and how many of metajax's tokens are transformers'."""
    with tempfile.TemporaryDirectory() as folder:
        calls = programs(config, name, Path(folder))
    threads = choose_threads(calls[PEER])
    first = {program: call(config.new_tokens) for program, call in calls.items()}
    seconds: dict[str, list[float]] = {program: [] for program in calls}
    for _ in range(config.rounds):
        for program, call in calls.items():
            seconds[program].append(seconds_of(lambda call=call: call(config.new_tokens)))
    count = config.batch * config.new_tokens
    rates = {program: count / statistics.median(times) for program, times in seconds.items()}
    row = {
        "model": name,
        "tokens_a_second": rates,
        "ratio": {program: rates[program] / rates[PEER] for program in (ONE, SHARED)},
        "agreeing_tokens": {
            program: float(np.mean(first[program] == first[PEER])) for program in (ONE, SHARED)
        },
        "torch_threads": threads,
        "seconds": seconds,
    }
    say(f"{name}: " + ", ".join(f"{program} {rate:,.0f}" for program, rate in rates.items()))
    return row


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    alike = f", of which the first {result['same']} are the same" if result.get("same") else ""
    lines = [
        f"Greedy generation in float32: {result['batch']} prompts of {result['prompt_length']} "
        f"tokens{alike}, {result['new_tokens']} new ones each; the median of {result['rounds']} "
        "calls, in tokens a second, and as a multiple of transformers'.",
        "",
        "| model | transformers (threads) | metajax, one device | prompts shared between cores "
        "| tokens that agree |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rates, ratios = row["tokens_a_second"], row["ratio"]
        ours = " | ".join(f"{rates[name]:,.0f}, {ratios[name]:.2f} ×" for name in (ONE, SHARED))
        lines.append(
            f"| {row['model']} | {rates[PEER]:,.0f} ({row['torch_threads']}) | {ours} "
            f"| {100 * min(row['agreeing_tokens'].values()):.1f} % |"
        )
    return "\n".join([*lines, "", *provenance(result)]) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """Tokens a second, a bar a program and model."""
    figure = Figure(figsize=(7, 1.2 * len(result["rows"]) + 1), dpi=72, layout="constrained")
    axes = figure.subplots()
    for offset, program in ((0.27, ONE), (0.0, SHARED), (-0.27, PEER)):
        rates = [row["tokens_a_second"][program] for row in result["rows"]]
        axes.barh([place + offset for place in range(len(rates))], rates, 0.25, label=program)
    axes.set_yticks(range(len(result["rows"])), [row["model"] for row in result["rows"]])
    axes.set_xscale("log")
    axes.set_xlabel("tokens a second")
    axes.legend()
    figure.savefig(path)


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    environment = common.environment()
    sizes = ("batch", "prompt_length", "same", "new_tokens", "rounds")
    result = {
        "command": common.command("experiments.benchmarks.generation", config),
        "environment": environment,
        **{name: getattr(config, name) for name in sizes},
        "rows": [measure(config, name) for name in config.models],
    }
    write(config.out, "generation", result, table(result), chart)
    return table(result)


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    metajax.use_every_core()
    print(run(config))
    say(f"written to {config.out}")


if __name__ == "__main__":
    common.guard(main)
