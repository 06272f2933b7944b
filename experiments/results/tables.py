"""The lines of a page, from the JSON files of its study."""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import (
    checkpoints,
    determinism_settings,
    generation,
    lora,
    memory,
    parity,
    prototypical,
    report,
    soak,
    streaming,
    transformer,
)
from experiments.common.report import duration, markdown_table
from experiments.evolution.knowledge import report as knowledge_report

FOLDER = Path(__file__).parent.parent.parent / "docs" / "results"
Found = Mapping[Path, Any]
"""The content of JSON files, by their path below the folder of results."""
TEST_PROMPTS = 1024
"""Prompts of each length that self-evolution on strings is tested with, unless the command says."""


def figure(mean: float, ci95: float, digits: int = 2) -> str:
    """A mean and its 95 % confidence interval.

    >>> figure(99.1, 0.33)
    '99.10 ± 0.33'
    """
    return f"{mean:.{digits}f} ± {ci95:.{digits}f}"


def made(name: str, result: Mapping[str, Any], facts: str) -> str:
    """How a result was made: what it says itself, its time, machine, commit and command."""
    where = result["environment"]
    times = ", ".join(
        f"{phase} {duration(spent)}"
        for phase, spent in result.get("seconds", {}).items()
        if not phase.startswith("rounds, ")
    )
    parts = [
        facts,
        *([f"Time: {times}"] if times else []),
        f"{where['device']}, {where['cores']} core{'s' * (where['cores'] != 1)} as "
        f"{where['devices']} device{'s' * (where['devices'] != 1)}, jax "
        f"{where['versions']['jax']}, commit {where['commit'] or 'unknown'}",
        f"`{result['command']}`",
    ]
    return f"- {name}: " + ". ".join(parts)


def run_of(path: Path) -> str:
    """The run's name, which leads to its result."""
    return f"[{path.parent.as_posix()}]({path.as_posix()})"


def few_shot(found: Found) -> list[str]:
    """Runs whose result is a ``Report``: a line a task and protocol."""
    rows = [(path, result, row) for path, result in found.items() for row in result["rows"]]
    digits = 2 if max(row["mean"] for _, _, row in rows) >= 10 else 3
    first = next(iter(found.values()))
    columns = {
        "run": [path.parent.as_posix() for path, _, _ in rows],
        "task": [row["task"] for _, _, row in rows],
        "protocol": [row["evaluation"] for _, _, row in rows],
        f"ours, {first['metric']}": [figure(row["mean"], row["ci95"], digits) for *_, row in rows],
        f"paper ({first['source']})": [row["paper"] or "–" for _, _, row in rows],
        "episodes": [str(row["episodes"]) for _, _, row in rows],
        "inner steps": [str(row["inner_steps"]) for _, _, row in rows],
        first["query"]: [str(row["query"]) for _, _, row in rows],
    }
    if all(row["paper"] is None for _, _, row in rows):
        del columns[f"paper ({first['source']})"]
    lines = [
        made(
            run_of(path),
            result,
            f"{result['schedule']}; "
            + ", ".join(f"{name} {value}" for name, value in result["training"].items()),
        )
        for path, result in found.items()
    ]
    return [*markdown_table(columns), "", "How each was made:", "", *lines]


def learners(found: Found) -> list[str]:
    """The table of learners beside their papers."""
    (cells,) = found.values()
    show = lambda value: "–" if value is None else figure(value[0], value[1])
    columns = {
        "method": [cell["title"] for cell in cells],
        "cell": [cell["cell"] for cell in cells],
        "paper": [cell["paper"] or "–" for cell in cells],
        "ours, transductive": [show(cell["transductive"]) for cell in cells],
        "ours, not transductive": [show(cell["not_transductive"]) for cell in cells],
        "episodes": [str(cell["episodes"]) for cell in cells],
        "seeds": [str(cell["seeds"]) for cell in cells],
        "meta-steps": [f"{cell['training']['steps']:,}" for cell in cells],
        "training": [duration(cell["training_seconds"]) for cell in cells],
    }
    how = dict.fromkeys(
        made(cell["title"], cell, f"{cell['source']}; {cell['schedule']}") for cell in cells
    )
    return [*markdown_table(columns), "", "The paper, and how each was made:", "", *how]


def language(found: Found) -> list[str]:
    """A character model, then adaptation to rules on strings."""
    lines: list[str] = []
    for path, result in found.items():
        lines += ["", f"## {path.parent.name}", ""]
        if "summary" not in result:
            lines += markdown_table(
                {
                    "nats a character": ["validation text, all of it", "last 100 steps"],
                    "ours": [
                        f"{result[f'{part}_loss']:.3f}" for part in ("validation", "training")
                    ],
                    "nanoGPT's README": [f"{result['published']}", "–"],
                }
            )
            lines += ["", made(run_of(path), result, f"{result['parameters']:,} parameters")]
            continue
        summary = result["summary"]
        methods = list(summary["held-out"]["words"])
        columns = {"% right ± 95 % CI": methods}
        for kind, units in summary.items():
            for unit, figures in units.items():
                columns[f"{kind} rules, {unit}"] = [figure(*figures[m], digits=1) for m in methods]
        tasks = ", ".join(
            f"{count} tasks of {kind} rules" for kind, count in result["tasks"].items()
        )
        lines += [*markdown_table(columns), "", made(run_of(path), result, tasks)]
    return lines[1:]


def strings(found: Found) -> list[str]:
    """Exact match by length before the rounds and after, and the rounds."""
    lines: list[str] = []
    for path, result in found.items():
        tested = {name.replace("round 0", "before"): of for name, of in result["tested"].items()}
        levels = sorted({int(name[6:]) for scores in tested.values() for name in scores})
        shown = [level for level in levels if level >= 8]
        while len(shown) > 1 and not any(
            scores[f"exact_{level}"] for scores in tested.values() for level in shown[-2:]
        ):
            shown.pop()
        option = re.search(r"--test-prompts (\d+)", result["command"])
        prompts = int(option[1]) if option else TEST_PROMPTS
        columns = {"digits": list(tested)}
        for level in shown:
            shares = [scores[f"exact_{level}"] for scores in tested.values()]
            columns[str(level)] = [
                figure(100 * p, 196 * (p * (1 - p) / (prompts - 1)) ** 0.5, 1) for p in shares
            ]
        lines += ["", f"## {path.parent.name}", "", *markdown_table(columns), "", *_rounds(path)]
        lines += ["", made(run_of(path), result, result["stopped"])]
    return lines[1:]


MOST_ROUNDS = 20
"""A column each fits the page."""


def _rounds(path: Path) -> list[str]:
    """What was kept in each round, and whether the gate took it; of many, how often it did."""
    text = (FOLDER / path.parent / "rounds.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    if len(records) > MOST_ROUNDS:
        accepted = sum(bool(record["accepted"]) for record in records[1:])
        return [f"Of {len(records) - 1} rounds the gate took {accepted}."]
    columns = {"round": ["levels", "kept, %", "right of the kept, %", "accepted"]}
    for record in records:
        if record["step"]:
            first, last, right = (
                record[name] for name in ("first_level", "last_level", "label_accuracy")
            )
            columns[str(record["step"])] = [
                str(last) if first == last else f"{first}–{last}",
                f"{100 * record['kept']:.1f}",
                "–" if right is None else f"{100 * right:.1f}",
                "yes" if record["accepted"] else "no",
            ]
    return markdown_table(columns)


def pretrained(found: Found) -> list[str]:
    """A section a run of a real checkpoint: its own table, the rounds, and its facts."""
    lines: list[str] = []
    for path, result in found.items():
        said = ("Ended", "Machine", "Command", "Time")  # by the line that is the same everywhere
        facts = "; ".join(
            f"{name}: {of}" for name, of in result["facts"].items() if name not in said
        )
        lines += ["", f"## {path.parent.name}", "", *markdown_table(result["columns"]), ""]
        lines += [*_rounds(path), "", made(run_of(path), result, f"{result['stopped']}. {facts}")]
    return lines[1:]


def knowledge(found: Found) -> list[str]:
    """A section a run: who is right without the passages, what was written, and the gate."""
    lines: list[str] = []
    for path, result in found.items():
        lines += ["", f"## {path.parent.name}", "", *knowledge_report.table(result)]
        lines += [made(run_of(path), result, result["facts"])]
    return lines[1:]


def programs(found: Found) -> list[str]:
    """Right answers on held-out programs, by kind of task and number of operations."""
    ((path, result),) = found.items()
    models = result["tested"]
    names = list(next(iter(models.values())))
    columns = {
        "task": [name.split(", ")[0] for name in names],
        "operations": [name.split(", ")[1] for name in names],
    } | {
        f"{model}, %": [
            figure(100 * scores[name]["mean"], 100 * scores[name]["ci95"], 1) for name in names
        ]
        for model, scores in models.items()
    }
    how = made(run_of(path), result, result["stopped"])
    return [*markdown_table(columns), "", "Round by round:", "", *_rounds(path), "", how]


def benchmarks(found: Found) -> list[str]:
    """A section a benchmark, by its own table."""
    tables: dict[str, Callable[[Any], str | Sequence[str]]] = {
        "meta_step": report.table,
        "prototypical": prototypical.table,
        "memory": memory.report,
        "transformer": transformer.report,
        "generation": generation.table,
        "lora": lora.table,
        "parity": parity.table,
        "checkpoints": checkpoints.report,
        "streaming": streaming.table,
        "devices": _devices,
        "determinism": _determinism,
    }
    lines: list[str] = []
    for path, result in found.items():
        table = (soak.table if path.parent.name == "soak" else tables[path.stem])(result)
        text = table if isinstance(table, str) else "\n".join(table)
        where = [part for part in path.with_suffix("").parts if part != "bench"]  # soak, language
        lines += ["", f"## {', '.join(where)}", "", re.sub("^# (.*)", r"\1:", text).strip()]
    return lines[1:]


def _devices(result: Mapping[str, Any]) -> list[str]:
    medians = {count: statistics.median(turns) for count, turns in result["seconds"].items()}
    first, base = next(iter(medians.items()))
    columns = {
        "devices": list(medians),
        "ms a meta-step": [f"{1000 * median:.1f}" for median in medians.values()],
        f"times as fast as {first}": [f"{base / median:.2f}" for median in medians.values()],
    }
    cell = f"MAML's meta-step, {result['cell']}:"
    return [cell, "", *markdown_table(columns), "", *report.provenance(dict(result))]


def _determinism(result: Mapping[str, Any]) -> list[str]:
    return [
        f"A fixed training run of {result['steps']} meta-steps, beside one device and no flag; "
        "relative: |a - b| / |a| of a loss, of norms elsewhere.",
        "",
        *determinism_settings.report(result["rows"]),
        "",
        *report.provenance(dict(result)),
    ]
