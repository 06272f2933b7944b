"""The table at the end of a run: our numbers beside the paper's, and how they were made."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common.plots import Curve
from metajax.errors import FileError
from metajax.files import read_text, write_atomically


class Row(NamedTuple):
    """One evaluation.

    Attributes:
        task: such as ``"5-way 1-shot"``.
        evaluation: the protocol in words: normalisation, rotations, and so on.
        mean: the mean score, in the report's unit.
        ci95: half the width of its 95 % confidence interval over episodes.
        paper: the published figure for this evaluation, as printed; None where there is none.
        episodes: how many test tasks.
        inner_steps: how many inner steps at test.
        query: query examples, of each class or of the task (see ``Report.query``).
        transductive: whether a prediction depends on the other query examples; None where the
            question doesn't arise.
    """

    task: str
    evaluation: str
    mean: float
    ci95: float
    paper: str | None
    episodes: int
    inner_steps: int
    query: int
    transductive: bool | None = None


class Report(NamedTuple):
    """What a run found, and what it takes to judge and repeat it.

    Attributes:
        title: the table's heading.
        metric: what the scores are, with their unit.
        source: where the paper's figures are from.
        schedule: how the parameters were trained, in words.
        training: the numbers of it: steps, meta-batch, rates, seed.
        rows: the evaluations.
        seconds: duration by phase: ``{"training": ..., "evaluation": ...}``.
        command: what makes this run again.
        environment: machine, versions and commit; from ``environment``.
        query: what the rows count in ``query``.
        curves: scores after each inner step, if they are worth keeping.
    """

    title: str
    metric: str
    source: str
    schedule: str
    training: Mapping[str, Any]
    rows: Sequence[Row]
    seconds: Mapping[str, float]
    command: str
    environment: Mapping[str, Any]
    query: str = "query per class"
    curves: Sequence[Curve] = ()


def environment() -> dict[str, Any]:
    """The machine, the packages' versions, and the commit where git knows one."""
    device = jax.devices()[0]
    packages = ("metajax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
    }


def format_table(report: Report) -> str:
    """The report as Markdown: the table, then what made it."""
    digits = 2 if max((row.mean for row in report.rows), default=0) >= 10 else 3
    columns = {
        "task": [row.task for row in report.rows],
        "evaluation": [row.evaluation for row in report.rows],
        f"ours, {report.metric}": [
            f"{row.mean:.{digits}f} ± {row.ci95:.{digits}f}" for row in report.rows
        ],
        f"paper ({report.source})": [row.paper or "–" for row in report.rows],
        "episodes": [str(row.episodes) for row in report.rows],
        "inner steps": [str(row.inner_steps) for row in report.rows],
        report.query: [str(row.query) for row in report.rows],
    }
    if all(row.paper is None for row in report.rows):
        del columns[f"paper ({report.source})"]
    where = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    times = ", ".join(f"{name} {duration(value)}" for name, value in report.seconds.items())
    facts = {
        "Schedule": report.schedule,
        "Training": ", ".join(f"{name} {value}" for name, value in report.training.items()),
        "Time": times,
        "Machine": f"{where['device']}, {where['cores']} cores, {where['devices']} device(s)",
        "Versions": f"{versions}, Python {where['python']}, commit {where['commit'] or 'unknown'}",
        "Command": f"`{report.command}`",
    }
    notes = [f"- {name}: {text}" for name, text in facts.items()]
    return "\n".join([f"# {report.title}", "", *markdown_table(columns), "", *notes, ""])


def write_report(folder: Path, report: Report) -> str:
    """Writes ``result.json`` and ``table.md`` into the run folder; returns the table."""
    content = report._asdict() | {
        "rows": [row._asdict() for row in report.rows],
        "curves": [
            {"label": curve.label, "mean": curve.mean.tolist(), "ci95": curve.ci95.tolist()}
            for curve in report.curves
        ],
    }
    write_atomically(folder / "result.json", json.dumps(content, indent=2) + "\n")
    table = format_table(report)
    write_atomically(folder / "table.md", table)
    return table


def markdown_table(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, its columns aligned.

    >>> markdown_table({"task": ["a", "b"], "score": ["1", "23"]})
    ['| task | score |', '| ---- | ----- |', '| a    | 1     |', '| b    | 23    |']
    """
    head, rows = list(columns), list(zip(*columns.values(), strict=True))
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [_line(head, widths), _line(["-" * width for width in widths], widths)]
    return lines + [_line(row, widths) for row in rows]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(75.2), duration(7380)
    ('1 min 15 s', '2 h 03 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        for line in read_text(Path("/proc/cpuinfo")).splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except FileError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this file is in, ``-dirty`` added where it was changed."""
    here = Path(__file__).parent
    try:
        # --is-inside-work-tree alone would take a checkout that only holds the environment
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=here, check=True, capture_output=True, timeout=10,
        )  # fmt: skip
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, check=True, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
