"""What the experiments with string rules write at their end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.language.rules.config import HELD_OUT, RulesConfig
from experiments.language.rules.evaluation import Scores, interval
from metajax.files import write_atomically


def write_results(
    run: common.Run,
    config: RulesConfig,
    scores: Mapping[str, Mapping[str, Scores]],
    *,
    title: str,
    module: str,
    curves: Sequence[plots.Curve],
    seconds: Mapping[str, float],
    facts: Mapping[str, str],
) -> str:
    """Writes ``result.json``, ``table.md`` and ``adaptation.png``; returns the table.

    Args:
        run: where to.
        config: the experiment's.
        scores: each method's on ``"held-out"`` and on ``"seen"`` rules; the last step counts.
        title: the table's heading.
        module: the experiment's, for its command.
        curves: words that are right in held-out rules, after each inner step.
        seconds: by phase.
        facts: further lines below the table, by their name.
    """
    plots.inner_steps(run.path / "adaptation.png", curves, ylabel="words right, held-out rules, %")
    columns: dict[str, list[str]] = {"% right ± 95 % CI": list(scores["held-out"])}
    summary: dict[str, Any] = {}
    for kind, of_method in scores.items():
        for unit in Scores._fields:
            found = {name: getattr(of_tasks, unit)[:, -1] for name, of_tasks in of_method.items()}
            columns[f"{kind} rules, {unit}"] = [_shown(values) for values in found.values()]
            summary.setdefault(kind, {})[unit] = {
                name: [float(values.mean()), float(interval(values))]
                for name, values in found.items()
            }
    words = {name: of_tasks.words[:, -1] for name, of_tasks in scores["held-out"].items()}
    families: dict[str, list[str]] = {"held-out rule": list(HELD_OUT)}
    for name, values in words.items():
        families[name] = [_shown(row) for row in values.reshape(len(HELD_OUT), -1)]
    environment, command = common.environment(), common.command(module, config)
    counts = {kind: len(next(iter(found.values())).words) for kind, found in scores.items()}
    facts = {
        "Tasks": f"{counts['held-out']} of held-out rules, {counts['seen']} of seen ones; "
        f"{config.k_shot} examples and {config.query} questions each",
        **facts,
        "Time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "Machine": f"{environment['device']}, {environment['cores']} cores",
        "Command": f"`{command}`, commit {environment['commit'] or 'unknown'}",
    }
    result = {
        "summary": summary,
        "tasks": counts,
        "words_of_held_out_rules": {
            name: values.reshape(len(HELD_OUT), -1).mean(axis=1).tolist()
            for name, values in words.items()
        },
        "curves": [
            {"label": curve.label, "mean": curve.mean.tolist(), "ci95": curve.ci95.tolist()}
            for curve in curves
        ],
        "seconds": dict(seconds),
        "command": command,
        "environment": environment,
    }
    write_atomically(run.path / "result.json", json.dumps(result, indent=2) + "\n")
    lines = [
        f"# {title}", "", *markdown_table(columns), "",
        "Words of held-out rules, rule by rule:", "", *markdown_table(families), "",
        *[f"- {name}: {text}" for name, text in facts.items()], "",
    ]  # fmt: skip
    table = "\n".join(lines)
    write_atomically(run.path / "table.md", table)
    return table


def _shown(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {interval(values):.1f}"
