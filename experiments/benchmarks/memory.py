"""Memory and time of the meta-gradient by gradient mode, inner steps and tasks.

    make bench-memory                 (or: python -m experiments.benchmarks.memory)

The second-order 5-way 1-shot meta-gradient of MAML's Conv-4. Memory is the temporary memory that
XLA plans for the compiled program; it counts neither parameters nor episodes nor the gradient.
It takes about ten minutes on two idle cores.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import metajax
from experiments import common
from experiments.benchmarks import jax_programs
from experiments.benchmarks.report import provenance, write
from experiments.benchmarks.workload import Workload

MODES: dict[str, Callable[[], metajax.GradientMode]] = {
    "unrolled": metajax.unrolled,
    "rematerialised": metajax.rematerialised,
    "mixed": metajax.mixed,
    "mixed, checkpoints every √steps": lambda: metajax.mixed(checkpoint_levels=1),
    "mixed, two levels of checkpoints": lambda: metajax.mixed(checkpoint_levels=2),
    "first order": metajax.first_order,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    inner_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of inner steps, for one task."""
    tasks: tuple[int, ...] = (1, 4, 16, 32)
    """Numbers of tasks, with five inner steps."""
    timed: int = 3
    """Timed runs of each program; their median is reported. With 0 nothing is run: planned memory
    doesn't depend on what else the machine does, time does."""
    features: int = 64
    """Filters of each convolution."""
    out: Path = Path("runs/bench")
    """Folder for memory.json, memory.md and memory.png; existing ones are replaced."""

    def __post_init__(self) -> None:
        for name in ("inner_steps", "tasks"):
            if min(getattr(self, name), default=0) <= 0:
                raise ValueError(f"{name} must be numbers above zero; got {getattr(self, name)}")
        common.check_positive(self, "features")
        if not self.timed >= 0:
            raise ValueError(f"timed must be at least zero; got {self.timed}")


def measure_all(config: Config, modes: dict[str, Any]) -> dict[str, Any]:
    """Measures everything; the result as JSON values."""

    def measure(workload: Workload, mode: metajax.GradientMode, tasks_per_chunk: int):
        learner = jax_programs.metajax_learner(workload, mode=mode)
        return jax_programs.measure_gradient(
            workload, learner, tasks_per_chunk=tasks_per_chunk, timed=config.timed
        )

    by_steps, by_tasks = [], []
    total = len(modes) * (len(config.inner_steps) + 2 * len(config.tasks))
    with common.progress("programs", 0, total, unit="program") as bar:
        for name, mode in modes.items():
            for steps in config.inner_steps:
                workload = Workload(
                    tasks=1, inner_steps=steps, inner_rate=0.1, features=config.features
                )
                found = measure(workload, mode(), 1)
                by_steps.append({"mode": name, "inner_steps": steps, **found})
                bar.update()
            for together in (False, True):
                for tasks in config.tasks:
                    workload = Workload(
                        tasks=tasks, inner_steps=5, inner_rate=0.1, features=config.features
                    )
                    found = measure(workload, mode(), tasks if together else 1)
                    by_tasks.append({"mode": name, "tasks": tasks, "together": together, **found})
                    bar.update()
    return {
        "command": common.command("experiments.benchmarks.memory", config),
        "environment": common.environment(),
        "features": config.features,
        "optimizer": "gradient descent",
        "by_steps": by_steps,
        "by_tasks": by_tasks,
    }


def _table(rows: list[dict[str, Any]], key: str, value: Callable[[dict[str, Any]], str]) -> str:
    columns = sorted({row[key] for row in rows})
    lines = [f"| {key.replace('_', ' ')} | " + " | ".join(map(str, columns)) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        found = {row[key]: value(row) for row in rows if row["mode"] == mode}
        lines.append(f"| {mode} | " + " | ".join(found[column] for column in columns) + " |")
    return "\n".join(lines)


def _mb(row: dict[str, Any]) -> str:
    number = row["temporary_bytes"]
    return "–" if number is None else f"{number / 1e6:.1f}"


def _ms(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.0f}"


def report(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    apart = [row for row in result["by_tasks"] if not row["together"]]
    together = [row for row in result["by_tasks"] if row["together"]]
    sections = [
        ("Temporary memory in MB by inner steps, one task", result["by_steps"], "inner_steps", _mb),
        ("Milliseconds of a meta-gradient", result["by_steps"], "inner_steps", _ms),
        ("Temporary memory in MB by tasks, five inner steps, one task at a time", apart, "tasks",
         _mb),
        ("Milliseconds", apart, "tasks", _ms),
        ("Temporary memory in MB, all tasks together", together, "tasks", _mb),
        ("Milliseconds", together, "tasks", _ms),
    ]  # fmt: skip
    lines = [
        "The meta-gradient of second-order MAML (the last row: first-order), 5-way 1-shot, Conv-4 "
        f"of {result['features']} filters with stride 2, {result['optimizer']} inside, float32.",
        "",
    ]
    for title, rows, key, value in sections:
        if value is _ms and any(row["median_ms"] is None for row in rows):
            continue
        lines += [f"**{title}**", "", _table(rows, key, value), ""]
    lines += provenance(result)
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """Memory against inner steps and against tasks, a line a mode."""
    figure = Figure(figsize=(10, 4.2), dpi=80, layout="constrained")
    steps_axes, tasks_axes = figure.subplots(1, 2)
    for mode in dict.fromkeys(row["mode"] for row in result["by_steps"]):
        rows = [row for row in result["by_steps"] if row["mode"] == mode]
        megabytes = [(row["temporary_bytes"] or 0) / 1e6 for row in rows]
        (line,) = steps_axes.plot(
            [row["inner_steps"] for row in rows], megabytes, marker="o", label=mode
        )
        for together, style in ((False, "-"), (True, "--")):
            rows = [
                row
                for row in result["by_tasks"]
                if row["mode"] == mode and row["together"] == together
            ]
            megabytes = [(row["temporary_bytes"] or 0) / 1e6 for row in rows]
            tasks_axes.plot(
                [row["tasks"] for row in rows], megabytes, style, marker="o", color=line.get_color()
            )
    steps_axes.set_xlabel("inner steps (one task)")
    tasks_axes.set_xlabel("tasks, 5 inner steps (line: one at a time, dashed: together)")
    for axes in (steps_axes, tasks_axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylabel("temporary memory, MB")
        axes.grid(alpha=0.3)
    steps_axes.legend(fontsize="small")
    figure.savefig(path)


def run(config: Config, modes: dict[str, Any] = MODES) -> str:
    """Measures, and writes the files into ``config.out``; returns the tables."""
    config.out.mkdir(parents=True, exist_ok=True)
    result = measure_all(config, modes)
    table = report(result)
    write(config.out, "memory", result, table, chart)
    return table


def main() -> None:
    """The command line."""
    print(run(common.parse(Config, None, __doc__ or "")))


if __name__ == "__main__":
    common.guard(main)
