"""How the experiments with string rules test a learner, and what they write at their end."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import metajax
from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.language.rules import study
from experiments.language.rules.study import HELD_OUT, RulesConfig
from metajax.files import write_atomically

TASKS_PER_CHUNK = 4
"""Tasks adapted together on a core."""


class Test(NamedTuple):
    """A learner's test on a list of tasks.

    Attributes:
        words: those that are right in every letter, in %, after 0, 1, ... inner steps:
            ``[tasks, steps + 1]``.
        letters: those that are right, the same.
    """

    words: np.ndarray
    letters: np.ndarray

    def at(self, step: int) -> "Test":
        """The same after one number of steps alone."""
        return Test(self.words[:, [step]], self.letters[:, [step]])

    def curve(self, label: str) -> plots.Curve:
        """The mean of ``words`` over tasks, and its 95 % confidence interval."""
        return plots.Curve(label, self.words.mean(axis=0), interval(self.words))


def interval(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % confidence interval of the mean over the first axis."""
    return 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def test(learner: metajax.Learner, variables: Any, tasks: metajax.Episode) -> Test:
    """Scores a learner on tasks ``[tasks, ...]``."""
    scores = metajax.evaluate_episodes(
        learner,
        variables,
        tasks,
        tasks_per_chunk=TASKS_PER_CHUNK,
        mesh=metajax.task_mesh(len(tasks.query.tokens)),
    )
    return Test(100 * scores.values["exact"], 100 * scores.values["accuracy"])


def tests_by_kind(
    candidates: Mapping[str, tuple[metajax.Learner, Any, Mapping[str, metajax.Episode]]],
) -> dict[str, dict[str, Test]]:
    """The tests of learners with their variables, each on the same kinds of tasks.

    Returns:
        By kind, and by the learner's name. One program scores all kinds of a learner.
    """
    found: dict[str, dict[str, Test]] = {}
    for name, (learner, variables, tasks) in candidates.items():
        whole = test(learner, variables, study.joined(tasks.values()))
        ends = np.cumsum([len(rows.query.tokens) for rows in tasks.values()])[:-1]
        for kind, *parts in zip(tasks, *(np.split(unit, ends) for unit in whole), strict=True):
            found.setdefault(kind, {})[name] = Test(*parts)
    return found


def write_results(
    run: common.Run,
    config: RulesConfig,
    tests: Mapping[str, Mapping[str, Test]],
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
        tests: for ``"held-out"`` and ``"seen"`` rules each method's test, whose last step counts.
        title: the table's heading.
        module: the experiment's, for its command.
        curves: words that are right in held-out rules, after each inner step.
        seconds: by phase.
        facts: further lines below the table, by their name.
    """
    plots.inner_steps(run.path / "adaptation.png", curves, ylabel="words right, held-out rules, %")
    columns: dict[str, list[str]] = {"% right ± 95 % CI": list(tests["held-out"])}
    summary: dict[str, Any] = {}
    for kind, of_method in tests.items():
        for unit in Test._fields:
            found = {name: getattr(test, unit)[:, -1] for name, test in of_method.items()}
            columns[f"{kind} rules, {unit}"] = [_shown(values) for values in found.values()]
            summary.setdefault(kind, {})[unit] = {
                name: [float(values.mean()), float(interval(values))]
                for name, values in found.items()
            }
    words = {name: test.words[:, -1] for name, test in tests["held-out"].items()}
    families: dict[str, list[str]] = {"held-out rule": list(HELD_OUT)}
    for name, values in words.items():
        families[name] = [_shown(row) for row in values.reshape(len(HELD_OUT), -1)]
    environment, command = common.environment(), common.command(module, config)
    counts = {kind: len(next(iter(found.values())).words) for kind, found in tests.items()}
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
