"""Memory and time of a meta-gradient through inner Adam steps on a decoder-only transformer.

    make bench-transformer            (or: python -m experiments.benchmarks.transformer)

GPT-2's form with six layers of width 384 and six heads, sequences of 256 characters (10.7 million
parameters): the query loss after 4, 8 and 16 inner Adam steps, differentiated with respect to the
initial parameters. Memory is the temporary memory that XLA plans for the compiled program; a
program that needs more than ``memory_limit`` isn't run.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from matplotlib.figure import Figure

import metajax
from experiments import common
from experiments.benchmarks import jax_programs
from experiments.benchmarks.report import provenance, say, write
from experiments.benchmarks.workload import relative_error
from metajax.models import Transformer, TransformerConfig
from metajax.trees import leaf_paths

MODES: dict[str, Callable[[], metajax.GradientMode]] = {
    "unrolled": metajax.unrolled,
    "rematerialised": metajax.rematerialised,
    "mixed": metajax.mixed,
    "mixed, checkpoints every √steps": lambda: metajax.mixed(checkpoint_levels=1),
    "the same, inner gradients kept": lambda: metajax.mixed(
        checkpoint_levels=1, keep_gradients=True
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    inner_steps: tuple[int, ...] = (4, 8, 16)
    """Numbers of inner Adam steps."""
    layers: int = 6
    """Blocks of attention and feed-forward network."""
    width: int = 384
    """Width of the residual stream."""
    heads: int = 6
    """Attention heads."""
    length: int = 256
    """Length of a sequence."""
    batch: int = 3
    """Sequences in the support set, and in the query set."""
    vocabulary: int = 65
    """Number of characters."""
    repeats: int = 2
    """Timed runs of each program, in turns; their median is reported."""
    memory_limit: float = 18e9
    """Bytes of temporary memory that a program may need to be run."""
    out: Path = Path("runs/bench")
    """Folder for transformer.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            smallest = min(value, default=0) if isinstance(value, tuple) else value
            if field.name != "out" and not smallest > 0:
                raise ValueError(f"{field.name} must be above zero; got {value}")
        if self.width % self.heads:
            raise ValueError(f"width, {self.width}, must be a multiple of heads, {self.heads}")


def build(config: Config, mode: metajax.GradientMode, inner_steps: int) -> Any:
    """The compiled meta-gradient of one task, its arguments, and the seconds of compiling it."""
    module = Transformer(
        TransformerConfig.gpt2(
            vocab_size=config.vocabulary,
            width=config.width,
            n_layers=config.layers,
            n_heads=config.heads,
            max_length=config.length,
            scan=False,
        )
    )
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (config.batch, config.length + 1)
    support, query = (jax.random.randint(key, shape, 0, config.vocabulary) for key in keys[:2])
    params = module.init(keys[2], support[:, :-1])["params"]

    def loss_fn(params, tokens):
        logits: Any = module.apply({"params": params}, tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    # A small eps would make Adam's first step the sign of the gradient, whose derivative is wild.
    optimizer = optax.adam(1e-3, eps=1e-4, eps_root=1e-8)
    learner = metajax.maml(loss_fn, optimizer, steps=inner_steps, mode=mode)

    def meta_loss(params, support, query):
        adapted, _ = learner.adapt(params, support)
        return loss_fn(adapted, query)

    arguments = (params, support, query)
    start = time.perf_counter()
    compiled = jax.jit(jax.grad(meta_loss)).lower(*arguments).compile()
    return compiled, arguments, time.perf_counter() - start


def measure(
    config: Config, inner_steps: int, modes: dict[str, Any] = MODES
) -> list[dict[str, Any]]:
    """Memory and time of every mode with so many inner steps, timed in turns."""
    rows, programs = [], {}
    reference = None
    for name, mode in modes.items():
        compiled, arguments, seconds = build(config, mode(), inner_steps)
        needed = jax_programs.temporary_bytes(compiled)
        row = {
            "mode": name,
            "inner_steps": inner_steps,
            "temporary_bytes": needed,
            "compile_seconds": seconds,
            "seconds": [],
        }
        rows.append(row)
        say(f"{inner_steps} steps, {name}: {(needed or 0) / 1e6:,.0f} MB")
        if (needed or 0) <= config.memory_limit:
            programs[name] = (compiled, arguments, row)
            gradient = jax.device_get(compiled(*arguments))
            flat = dict(zip(leaf_paths(gradient), jax.tree.leaves(gradient), strict=True))
            reference = flat if reference is None else reference
            row["deviation"] = relative_error(flat, reference)
    for _ in range(config.repeats):
        for compiled, arguments, row in programs.values():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            row["seconds"].append(time.perf_counter() - start)
    return rows


def _cell(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    needed, seconds = row["temporary_bytes"], row["seconds"]
    time_cell = ratio = "–"
    if seconds:
        median = statistics.median(seconds)
        time_cell = f"{median:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        if base["seconds"]:
            ratio = f"{median / statistics.median(base['seconds']):.2f}"
    return [
        str(row["inner_steps"]),
        row["mode"],
        f"{(needed or 0) / 1e6:,.0f}",
        f"{(needed or 0) / max(base['temporary_bytes'] or 0, 1):.3f}",
        time_cell,
        ratio,
        f"{row['compile_seconds']:.1f}",
        f"{row['deviation']:.0e}" if "deviation" in row else "–",
    ]


def report(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    config = result["config"]
    lines = [
        f"The meta-gradient through inner Adam steps on a decoder of {config['layers']} layers, "
        f"width {config['width']}, {config['heads']} heads, with {config['batch']} sequences of "
        f"{config['length']} in the support set and in the query set; one task, float32.",
        "",
        "| inner steps | mode | temporary memory, MB | × unrolled "
        "| seconds, median (least to most) | × unrolled | compile, s | gradient's deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for steps in sorted({row["inner_steps"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["inner_steps"] == steps]
        lines += ["| " + " | ".join(_cell(row, rows[0])) + " |" for row in rows]
    lines += ["", *provenance(result)]
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """Memory and time against inner steps, a line a mode."""
    figure = Figure(figsize=(10, 3.8), dpi=80, layout="constrained")
    memory_axes, time_axes = figure.subplots(1, 2)
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["mode"] == mode]
        memory_axes.plot(
            [row["inner_steps"] for row in rows],
            [(row["temporary_bytes"] or 0) / 1e9 for row in rows],
            marker="o",
            label=mode,
        )
        timed = [row for row in rows if row["seconds"]]
        time_axes.plot(
            [row["inner_steps"] for row in timed],
            [statistics.median(row["seconds"]) for row in timed],
            marker="o",
        )
    memory_axes.set_ylabel("temporary memory, GB")
    time_axes.set_ylabel("seconds")
    for axes in (memory_axes, time_axes):
        axes.set_xlabel("inner Adam steps")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    memory_axes.legend(fontsize="small")
    figure.savefig(path)


def run(config: Config, modes: dict[str, Any] = MODES) -> str:
    """Measures, and writes the files into ``config.out`` after each number of steps."""
    config.out.mkdir(parents=True, exist_ok=True)
    sizes = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    result: dict[str, Any] = {
        "command": common.command("experiments.benchmarks.transformer", config),
        "environment": common.environment(),
        "config": sizes,
        "rows": [],
    }
    for steps in config.inner_steps:
        result["rows"] += measure(config, steps, modes)
        write(config.out, "transformer", result, report(result), chart)
    return report(result)


def main() -> None:
    """The command line."""
    print(run(common.parse(Config, None, __doc__ or "")))


if __name__ == "__main__":
    common.guard(main)
