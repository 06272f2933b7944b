"""The benchmark's result as tables in Markdown and as a picture."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.workload import ORDINARY, PEERS
from metajax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS = {
    "stride": "Conv-4 with stride 2",
    "pool": "Conv-4 with max-pooling",
    "mlp": "fully connected network",
}


def say(message: object) -> None:
    """Tells whoever watches, apart from the result on the standard output."""
    print(message, file=sys.stderr, flush=True)


def write(
    folder: Path,
    name: str,
    result: dict[str, Any],
    table: str,
    chart: Callable[[dict[str, Any], Path], None] | None = None,
) -> None:
    """Writes ``name``.json, ``name``.md and, with a chart, ``name``.png; replaces what is there."""
    write_atomically(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", table)
    if chart is not None:
        chart(result, folder / f"{name}.png")


def _megabytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:,.0f}"


def describe(workload: dict[str, Any]) -> str:
    """A cell's sizes in words."""
    steps, side = workload["inner_steps"], workload["image_size"]
    filters = "" if workload["form"] == "mlp" else f" of {workload['features']} filters"
    return (
        f"{workload['n_way']}-way {workload['k_shot']}-shot, {workload['query']} query image"
        f"{'s' if workload['query'] > 1 else ''} a class, {steps} inner "
        f"step{'s' if steps > 1 else ''}, {workload['tasks']} tasks, {FORMS[workload['form']]}"
        f"{filters}, images {side}×{side}×{workload['channels']}"
    )


def _summary(result: dict[str, Any]) -> list[str]:
    """One line a cell: metajax, and how much longer the others take."""
    names: list[str] = []
    for cell in result["cells"]:
        names += [row["name"] for row in cell["programs"][1:] if row["name"] not in names]
    header = ["cell", "metajax, ms", "GFLOP/s", "of the matmul peak", *(f"{n}, ×" for n in names)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for cell in result["cells"]:
        first, ratios = cell["programs"][0], {r["name"]: r["ratio"] for r in cell["programs"]}
        entries = [
            cell["name"],
            f"{first['median_ms']:.1f}",
            f"{first['gflops']:.0f}",
            f"{100 * first['gflops'] / cell['matmul_gflops']:.0f} %",
            *(f"{ratios[name]:.2f}" if name in ratios else "–" for name in names),
        ]
        lines.append("| " + " | ".join(entries) + " |")
    return lines


def provenance(result: dict[str, Any]) -> list[str]:
    """Lines that say on what a result was made, and how."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return [
        f"{environment['device']}, {environment['devices']} JAX device(s), {environment['cores']} "
        f"cores. Python {environment['python']}, {versions}.",
        "",
        f"Made by `{result['command']}` at commit {environment['commit']}.",
    ]


def headline(result: dict[str, Any]) -> str:
    """The table of README: how many times as long as metajax each peer takes, by cell."""
    measured = {row["name"] for cell in result["cells"] for row in cell["programs"]}
    peers = [peer for peer in (*PEERS, ORDINARY) if peer in measured]
    titles = [
        "ordinary Flax under `vmap`"
        if peer == ORDINARY
        else peer.removeprefix("PyTorch, ").removesuffix(" vmap")
        for peer in peers
    ]
    lines = [f"| meta-step | metajax | {' | '.join(titles)} |", "|---" * (2 + len(peers)) + "|"]
    for cell in result["cells"]:
        ratios = {row["name"]: row["ratio"] for row in cell["programs"]}
        found = (f"{ratios[peer]:.1f} ×" if peer in ratios else "–" for peer in peers)
        lines.append(
            f"| {cell['name']} | {cell['programs'][0]['median_ms']:.0f} ms | "
            + " | ".join(found)
            + " |"
        )
    return "\n".join(lines) + "\n"


def program_lines(rows: list[dict[str, Any]], missing: dict[str, str]) -> list[str]:
    """A table with a line a program, and why others are missing."""
    lines = [
        "| program | ms a meta-step, median (quartiles) | × metajax | GFLOP/s | compile, s "
        "| temporary memory (XLA), MB | resident memory's peak, MB above before "
        "| gradient's deviation, float64 | float32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, double = row["compile_seconds"], row["float64_error"]
        lines.append(
            f"| {row['name']} | {row['median_ms']:.1f} ({row['lower_quartile_ms']:.1f} to "
            f"{row['upper_quartile_ms']:.1f}) | {row['ratio']:.2f} | {row['gflops']:.0f} "
            f"| {'–' if seconds is None else f'{seconds:.1f}'} "
            f"| {_megabytes(row['temporary_bytes'])} | {_megabytes(row['peak_bytes'])} "
            f"| {'–' if double is None else f'{double:.0e}'} | {row['float32_error']:.0e} |"
        )
    for name, reason in missing.items():
        lines.append(f"| {name} | not measured: {reason} | | | | | | | |")
    return lines


def _details(cell: dict[str, Any]) -> list[str]:
    return [
        f"**{cell['name']}**: {describe(cell['workload'])}; {cell['flops'] / 1e9:.1f} GFLOP; the "
        f"matmul peak was {cell['matmul_gflops']:.0f} GFLOP/s.",
        "",
        *program_lines(cell["programs"], cell["missing"]),
        "",
    ]


def table(result: dict[str, Any]) -> str:
    """The result of ``meta_step`` in Markdown."""
    lines = [
        "One meta-step of second-order MAML with Adam's update, float32"
        f"{' (products in TF32)' if result['tf32'] else ''}; × is how many times as long as "
        "metajax a program takes.",
        "",
        *_summary(result),
        "",
    ]
    for cell in result["cells"]:
        lines += _details(cell)
    if result["compilation"]:
        first = result["compilation"][0]
        lines += [
            f"| inner steps, {result['cells'][0]['name']} "
            "| compile time of metajax's meta-step, s (median) "
            f"| against that of {first['inner_steps']} |",
            "|---|---|---|",
        ]
        for row in result["compilation"]:
            lines.append(
                f"| {row['inner_steps']} | {row['median_seconds']:.2f} "
                f"| {100 * (row['median_seconds'] / first['median_seconds'] - 1):+.0f} % |"
            )
        lines.append("")
    lines += [
        f"One process, programs in turns, {result['rounds']} rounds of turns of "
        f"{result['turn_seconds']} s; a program that takes long has fewer. Before timing, all "
        "meta-gradients were compared with metajax's: in float64 for two tasks, where a relative "
        f"deviation of {result['tolerance']:.0e} is accepted, and in float32 for all "
        f"({result['float32_tolerance']:.0e}: rounding moves activations across the kinks of ReLU "
        "and maximum).",
        "",
        "GFLOP counts the meta-gradient's products once, 2 · rows · inner · columns each: of every "
        "inner step's layer 9 (forward 1, backward 2, and 2 for the derivative of each), 4 in the "
        "first layer, whose input has no gradient; of the query's 3 and 2. What a program computes "
        "again isn't counted.",
        "",
        *provenance(result),
    ]
    return "\n".join(lines) + "\n"


def bars(axes: "Axes", rows: list[dict[str, Any]], title: str) -> None:
    """A bar a program: its median, with a line from quartile to quartile."""
    rows = rows[::-1]
    medians = [row["median_ms"] for row in rows]
    spread = [
        [row["median_ms"] - row["lower_quartile_ms"] for row in rows],
        [row["upper_quartile_ms"] - row["median_ms"] for row in rows],
    ]
    colors = ["tab:orange" if row["name"] == "metajax" else "tab:gray" for row in rows]
    found = axes.barh([row["name"] for row in rows], medians, xerr=spread, color=colors)
    labels = [f"{row['median_ms']:,.0f} ms  ({row['ratio']:.1f}×)" for row in rows]
    axes.bar_label(found, labels, padding=6)
    axes.set_xlim(0, 1.4 * max(medians))
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def chart(result: dict[str, Any], path: Path) -> None:
    """A panel a cell, with ``bars``."""
    from matplotlib.figure import Figure

    cells = result["cells"]
    heights = [len(cell["programs"]) for cell in cells]
    figure = Figure(
        figsize=(10, 0.3 * sum(heights) + 0.75 * len(cells)), dpi=72, layout="constrained"
    )
    panels = figure.subplots(len(cells), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, cell in zip(panels, cells, strict=True):
        steps = cell["workload"]["inner_steps"]
        plural = "s" if steps > 1 else ""
        title = f"{cell['name']}, {steps} inner step{plural}, {cell['workload']['tasks']} tasks"
        bars(axes, cell["programs"], title)
    environment = result["environment"]
    panels[-1].set_xlabel(
        f"ms a second-order meta-step (median, quartiles), {environment['device']}, "
        f"{environment['cores']} cores"
    )
    figure.savefig(path)
