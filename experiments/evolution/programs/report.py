"""Table, picture and sample texts of self-play with programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import plots
from experiments.evolution import report, study
from experiments.evolution.programs import language as pg
from experiments.evolution.programs import play
from experiments.evolution.programs.tasks import KINDS
from metajax import evolve as ev
from metajax.files import write_atomically

ASKED = KINDS[:3]
"""The kinds of task that are answered."""


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of a mean over programs."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def examples_text(loop: ev.EvolveConfig, params: Any, levels: ev.Levels, samples: int) -> str:
    """Some of the model's own programs with inputs, and its first answers: right or wrong."""
    tasks = loop.propose(params, jax.random.key(7), levels)
    completions = loop.solve(params, jax.random.key(8), tasks)
    right = play.right_answers(tasks, completions)[:, :samples]
    words, lines = pg.WordTokenizer(), []
    for kind in range(3):
        rows = np.flatnonzero((np.asarray(tasks.about.kind) == kind) & np.asarray(tasks.valid))
        joined = np.asarray(tasks.about.joined)[rows]
        for row in [*rows[~joined][:4], *rows[joined][:8]]:
            prompt = words.decode([t for t in tasks.prompts[row] if t != pg.BOS])
            answer = words.decode([t for t in completions.tokens[row, 0] if t != pg.EOS])
            source = "two joined" if tasks.about.joined[row] else "written whole"
            mark = "right" if right[row, 0] else "wrong"
            lines.append(
                f"{prompt}  →  {answer}   {mark} ({right[row].sum()} of {right.shape[1]} samples; "
                f"{source})"
            )
        lines.append("")
    return "\n".join(lines)


def draw(
    run: common.Run, records: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]
) -> None:
    """Draws ``rounds.png``: accuracy round by round, a line a kind, and the control's."""
    curves = []
    for name, lines in (("", records), (", control", control)):
        for kind in ASKED:
            if lines:
                mean, wide = ([100 * r[key] for r in lines] for key in (kind, f"{kind}_ci95"))
                curves.append(plots.Curve(kind + name, np.array(mean), np.array(wide)))
    plots.inner_steps(
        run.path / "rounds.png", curves, ylabel="accuracy on held-out programs in %", xlabel="round"
    )


def write(
    run: common.Run,
    outcome: study.Outcome,
    found: Mapping[str, Mapping[str, np.ndarray]],
    operations: np.ndarray,
    *,
    facts: Mapping[str, str],
    samples: str,
) -> str:
    """Writes ``tasks.txt``, ``rounds.png``, ``result.json`` and ``table.md``; returns the table.

    Args:
        run: the run.
        outcome: what was trained.
        found: for each model, by its name, the accuracy of each kind on each program
            ``[programs]``.
        operations: of these programs, ``[programs]``.
        facts: the first lines below the tables.
        samples: from ``examples_text``.
    """
    records = outcome.followed.records
    groups = {"all": np.ones(len(operations), bool)} | {
        str(number): operations == number for number in np.unique(operations)
    }
    lines = [(kind, name, rows) for kind in ASKED for name, rows in groups.items()]
    shown = lambda values: f"{100 * values.mean():.1f} ± {100 * interval(values):.1f}"
    columns = {
        "task": [kind for kind, _, _ in lines],
        "operations": [name for _, name, _ in lines],
        "programs": [str(rows.sum()) for _, _, rows in lines],
    } | {
        f"{model}, %": [shown(v[kind][rows]) for kind, _, rows in lines]
        for model, v in found.items()
    }
    last = "last round"
    for model, values in found.items():
        if model != last:
            columns[f"gain over {model}"] = [
                shown((found[last][kind] - values[kind])[rows]) for kind, _, rows in lines
            ]
    draw(run, records, outcome.control_records)
    write_atomically(run.path / "tasks.txt", samples)
    return report.write_results(
        run,
        outcome,
        title="A model that invents programs",
        module="experiments.evolution.programs",
        columns=columns,
        rounds=_rounds(records),
        tested={
            model: {
                f"{kind}, {name}": {
                    "mean": float(values[kind][rows].mean()),
                    "ci95": interval(values[kind][rows]),
                }
                for kind, name, rows in lines
            }
            for model, values in found.items()
        },
        facts=facts,
    )


def _rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The table of the rounds; a level is a number of operations."""
    table = report.rounds_table(records)
    # They need an oracle beside the verifier, which is one here.
    del table["right before the verifier"], table["right of the kept"]
    for title, name in (
        ("texts that are programs", "texts_valid"),
        ("texts that are new", "texts_new"),
        ("held-out deduction", "deduction"),
    ):
        table[title] = [f"{100 * record[name]:.1f}" for record in records if record["step"]]
    return table
