"""The table of our numbers beside the papers', in Markdown, JSON and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.fewshot.table_plan import Table, Training
from metajax.files import write_atomically


def figure_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Mean over the seeds, and half the width of its 95 % interval over all their episodes."""
    if not rows:
        return None
    means, intervals = ([row[name] for row in rows] for name in ("mean", "ci95"))
    return float(np.mean(means)), float(np.sqrt(np.sum(np.square(intervals))) / len(rows))


def lines_of(
    table: Table,
    methods: Sequence[str],
    plan: Sequence[Training],
    found: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A line for each cell that is done.

    Args:
        table: its contents.
        methods: in this order.
        plan: all runs that may be there.
        found: the results of those that are, by their folder.
    """
    lines = []
    for method in methods:
        for cell, task in table.cells.items():
            done = [
                training
                for training in plan
                if training.method == method and cell in training.cells and training.folder in found
            ]
            if not done:
                continue
            results = [found[training.folder] for training in done]
            by_kind: dict[bool, list[Mapping[str, Any]]] = {True: [], False: []}
            for result in results:
                for kind, rows in by_kind.items():
                    # The first of its kind is the paper's protocol.
                    of_kind = [
                        row
                        for row in result["rows"]
                        if row["task"] == task and row["transductive"] == kind
                    ]
                    rows.extend(of_kind[:1])
            facts = table.facts(method, cell)
            rows = by_kind[True] or by_kind[False]
            means = [row["mean"] for row in rows]
            lines.append(
                {
                    "method": method,
                    "title": facts.title,
                    "cell": cell,
                    "paper": facts.figure,
                    "source": facts.source,
                    "transductive": figure_of(by_kind[True]),
                    "not_transductive": figure_of(by_kind[False]),
                    "seeds": len(rows),
                    "spread": float(np.std(means, ddof=1)) if len(means) > 1 else None,
                    "episodes": sum(row["episodes"] for row in rows),
                    "training_seconds": float(
                        np.mean([result["seconds"]["training"] for result in results])
                    ),
                    "training": {
                        key: value
                        for key, value in results[0]["training"].items()
                        if key in ("steps", "meta-batch", "ways", "shots")
                    },
                    "schedule": results[0]["schedule"],
                    "command": results[0]["command"],
                    "environment": results[0]["environment"],
                }
            )
    return lines


def write_table(out: Path, table: Table, lines: Sequence[Mapping[str, Any]]) -> str:
    """Writes ``table.md``, ``table.json`` and ``table.png`` into a folder; returns the table."""

    def figure(value: Sequence[float] | None) -> str:
        return "–" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"

    known = any(line["paper"] is not None for line in lines)
    columns = {
        "method": [line["title"] for line in lines],
        "cell": [line["cell"] for line in lines],
        "paper": [line["paper"] or "–" for line in lines],
        "ours, transductive": [figure(line["transductive"]) for line in lines],
        "ours, not transductive": [figure(line["not_transductive"]) for line in lines],
        "episodes": [str(line["episodes"]) for line in lines],
        "seeds": [
            str(line["seeds"])
            if line["spread"] is None
            else f"{line['seeds']}, std {line['spread']:.2f}"
            for line in lines
        ],
        "meta-steps": [f"{line['training']['steps']:,}" for line in lines],
        "training": [duration(line["training_seconds"]) for line in lines],
    }
    if not known:
        del columns["paper"]
    seen = dict.fromkeys(
        (line["title"], line["source"], line["schedule"], line["command"]) for line in lines
    )
    sources = dict.fromkeys((title, source) for title, source, *_ in seen)
    machines = dict.fromkeys(
        f"{where['device']}, {where['cores']} cores, "
        + ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        + f", commit {where['commit'] or 'unknown'}"
        for where in (line["environment"] for line in lines)
    )
    text = "\n".join(
        [
            f"# {table.title}",
            "",
            *markdown_table(columns),
            "",
            "Accuracy in % with the 95 % interval over episodes, all seeds' together. "
            + table.about,
            "",
            *(
                ["Papers: " + "; ".join(f"{t}: {source}" for t, source in sources) + ".", ""]
                * known
            ),
            "How each model was trained:",
            "",
            *(f"- {title}: {schedule}. `{command}`" for title, _, schedule, command in seen),
            "",
            *(f"Machine: {machine}." for machine in machines),
            "",
        ]
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "table.json", json.dumps(list(lines), indent=2) + "\n")
    write_atomically(out / "table.md", text)
    beside_paper(
        out / "table.png",
        [
            Beside(
                group=line["cell"],
                label=line["title"],
                ours=line["transductive"] or line["not_transductive"],
                paper=_number(line["paper"]),
            )
            for line in lines
        ],
        xlabel="accuracy in %",
    )
    return text


def _number(figure: str | None) -> float | None:
    return None if figure is None else float(figure.split()[0])


class Beside(NamedTuple):
    """One cell of a table: our score and the paper's.

    Attributes:
        group: the panel that it is in.
        label: its line in the panel.
        ours: mean and half the width of its 95 % confidence interval; None where there is none.
        paper: the published figure; None where there is none.
    """

    group: str
    label: str
    ours: Sequence[float] | None
    paper: float | None


def beside_paper(path: Path, cells: Sequence[Beside], *, xlabel: str) -> None:
    """Draws our scores with their intervals, and the papers', a panel for each group.

    Args:
        path: the PNG file to write; nothing is written without cells.
        cells: in the order in which they are drawn, from the top.
        xlabel: what the scores are, with their unit.
    """
    groups = list(dict.fromkeys(cell.group for cell in cells))
    if not groups:
        return
    labels = list(dict.fromkeys(cell.label for cell in cells))
    figure = plots.empty(1.6 + 2.6 * len(groups), 1.2 + 0.28 * len(labels))
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, group in zip(panels, groups, strict=True):
        for cell in (cell for cell in cells if cell.group == group):
            row = labels.index(cell.label)
            if cell.paper is not None:
                axes.plot(cell.paper, row, "D", color="black", fillstyle="none", label="paper")
            if cell.ours is not None:
                mean, interval = cell.ours
                axes.errorbar(mean, row, xerr=interval, fmt="o", color="tab:blue", label="ours")
        axes.set(title=group, xlabel=xlabel)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    found: dict[str, Any] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside upper right", ncols=2, fontsize=8)
    plots.save(figure, path)
