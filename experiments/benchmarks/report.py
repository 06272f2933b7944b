"""A benchmark's result as a table in Markdown and as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def _megabytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.0f}"


def table(result: dict[str, Any]) -> str:
    """The result of ``meta_step`` in Markdown."""
    workload, environment = result["workload"], result["environment"]
    steps = workload["inner_steps"]
    lines = [
        f"Second-order MAML, {workload['n_way']}-way {workload['k_shot']}-shot, "
        f"{workload['tasks']} tasks, {steps} inner step{'s' if steps > 1 else ''}, Conv-4 of "
        f"{workload['features']} filters on {workload['image_size']}×{workload['image_size']} "
        f"images, float32: one meta-step with Adam's update.",
        "",
        "| program | ms a meta-step, median (quartiles) | × metajax | compile, s "
        "| temporary memory (XLA), MB | resident memory's peak, MB above before |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["programs"]:
        seconds = row["compile_seconds"]
        lines.append(
            f"| {row['name']} | {row['median_ms']:.1f} ({row['lower_quartile_ms']:.1f} to "
            f"{row['upper_quartile_ms']:.1f}) | {row['ratio']:.2f} "
            f"| {'–' if seconds is None else f'{seconds:.1f}'} "
            f"| {_megabytes(row['temporary_bytes'])} | {_megabytes(row['peak_bytes'])} |"
        )
    for name, reason in result["missing"].items():
        lines.append(f"| {name} | not measured: {reason} | | | | |")
    first = result["compilation"][0]
    lines += [
        "",
        "| inner steps | compile time of metajax's meta-step, s (median) "
        f"| against {first['inner_steps']} inner step{'s' if first['inner_steps'] > 1 else ''} |",
        "|---|---|---|",
    ]
    for row in result["compilation"]:
        lines.append(
            f"| {row['inner_steps']} | {row['median_seconds']:.2f} "
            f"| {100 * (row['median_seconds'] / first['median_seconds'] - 1):+.0f} % |"
        )
    agreement = result["agreement"]
    errors = ", ".join(f"{name} {error:.0e}" for name, error in agreement["errors"].items())
    packages = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines += [
        "",
        f"One process, programs in turns, {result['rounds']} rounds of "
        f"{result['steps_per_turn']} meta-steps. Before timing, the meta-gradients agreed with "
        f"{agreement['reference']}, at most {agreement['tolerance']:.0e} of relative error being "
        f"accepted: {errors}.",
        "",
        f"{environment['device']}, {environment['cores']} cores; a float32 matrix product reached "
        f"{result['matmul_gflops']:.0f} GFLOP/s in this run. Python {environment['python']}, "
        f"{packages}.",
        "",
        f"Made by `{result['command']}` at commit {environment['commit']}.",
    ]
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """A bar a program: its median, with a line from quartile to quartile."""
    rows = result["programs"][::-1]
    medians = [row["median_ms"] for row in rows]
    spread = [
        [row["median_ms"] - row["lower_quartile_ms"] for row in rows],
        [row["upper_quartile_ms"] - row["median_ms"] for row in rows],
    ]
    figure = Figure(figsize=(10, 0.5 * len(rows) + 1.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    colors = ["tab:orange" if row["name"] == "metajax" else "tab:gray" for row in rows]
    bars = axes.barh([row["name"] for row in rows], medians, xerr=spread, color=colors)
    labels = [f"{row['median_ms']:.0f} ms  ({row['ratio']:.1f}×)" for row in rows]
    axes.bar_label(bars, labels, padding=6)
    axes.set_xlim(0, 1.4 * max(medians))
    axes.set_xlabel("ms a second-order meta-step (median, quartiles)")
    cores, workload = result["environment"]["cores"], result["workload"]
    axes.set_title(
        f"{workload['tasks']} tasks, {workload['n_way']}-way {workload['k_shot']}-shot, Conv-4, "
        f"{workload['inner_steps']} inner step(s), {cores} CPU cores",
        fontsize="medium",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
