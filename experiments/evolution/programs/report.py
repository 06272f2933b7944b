"""What ``evolve_programs`` reports: a table, a picture, and some of the model's own tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.evolution import study
from experiments.evolution.programs import language as pg
from experiments.evolution.programs import play
from experiments.evolution.programs.kinds import KINDS
from metajax import evolve as ev
from metajax.files import write_atomically

ASKED = KINDS[:3]
"""The kinds of task that are answered."""


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of a mean over programs."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def examples_text(parts: ev.Parts, params: Any, levels: ev.Levels, samples: int) -> str:
    """Some of the model's own programs with inputs, and its first answers: right or wrong."""
    tasks = parts.propose(params, jax.random.key(7), levels)
    attempts = parts.solve(params, jax.random.key(8), tasks)
    right = play.right_answers(tasks, attempts)[:, :samples]
    words, lines = pg.WordTokenizer(), []
    for kind in range(3):
        own = np.flatnonzero((np.asarray(tasks.about.kind) == kind) & np.asarray(tasks.valid))
        joined = np.asarray(tasks.about.joined)[own]
        for row in [*own[~joined][:4], *own[joined][:8]]:
            prompt = words.decode([t for t in tasks.prompts[row] if t != pg.BOS])
            answer = words.decode([t for t in attempts.tokens[row, 0] if t != pg.EOS])
            source = "two joined" if tasks.about.joined[row] else "written whole"
            mark = "right" if right[row, 0] else "wrong"
            lines.append(
                f"{prompt}  →  {answer}   {mark} ({right[row].sum()} of {right.shape[1]} samples; "
                f"{source})"
            )
        lines.append("")
    return "\n".join(lines)


def draw(
    run: common.Run,
    records: Sequence[Mapping[str, Any]],
    control: study.Control | None,
) -> None:
    """A picture of the accuracy round by round, a line a kind, and the control's beside it."""
    curves = []
    for name, own in (("", records), (", control", control.records if control else ())):
        for kind in ASKED:
            if own:
                mean, wide = ([100 * r[key] for r in own] for key in (kind, f"{kind}_ci95"))
                curves.append(plots.Curve(kind + name, np.array(mean), np.array(wide)))
    plots.inner_steps(
        run.path / "study.png", curves, ylabel="accuracy on held-out programs in %", xlabel="round"
    )


def write(
    run: common.Run,
    found: Mapping[str, Mapping[str, np.ndarray]],
    operations: np.ndarray,
    followed: study.Followed,
    base: study.Trained,
    control: study.Control | None,
    *,
    facts: Mapping[str, str],
    samples: str,
) -> str:
    """Writes ``tasks.txt``, ``study.png``, ``result.json`` and ``table.md``; returns the table.

    Args:
        run: the run.
        found: for each model, by its name, the accuracy of each kind on each program
            ``[programs]``.
        operations: of these programs, ``[programs]``.
        followed: the rounds.
        base: the model before them.
        control: what learned from real data alone.
        facts: what the table says first.
        samples: from ``examples_text``.
    """
    records = followed.records
    groups = {"all": np.ones(len(operations), bool)} | {
        str(number): operations == number for number in np.unique(operations)
    }
    lines = [(kind, name, own) for kind in ASKED for name, own in groups.items()]
    shown = lambda values: f"{100 * values.mean():.1f} ± {100 * interval(values):.1f}"
    columns = {
        "task": [kind for kind, _, _ in lines],
        "operations": [name for _, name, _ in lines],
        "programs": [str(own.sum()) for _, _, own in lines],
    } | {
        f"{model}, %": [shown(v[kind][own]) for kind, _, own in lines] for model, v in found.items()
    }
    last = "after self-play"
    for model, values in found.items():
        if model != last:
            columns[f"gain over {model}"] = [
                shown((found[last][kind] - values[kind])[own]) for kind, _, own in lines
            ]
    laps = study.seconds_of(records)
    seconds, tokens = {"base model": base.seconds}, {"base model": base.tokens}
    seconds["rounds"] = sum(laps.values())
    tokens["rounds"] = sum(record.get("tokens_trained", 0) for record in records)
    if control is not None:
        seconds["control"] = control.trained.seconds
        tokens["control, after the base model"] = control.trained.tokens
    where = common.environment()
    command = common.command("experiments.evolution.programs.train", run.config)
    facts = {
        **facts,
        "Ended": followed.stopped,
        "Tokens": ", ".join(f"{name} {count:,}" for name, count in tokens.items()),
        "Time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "Machine": f"{where['device']}, {where['cores']} cores",
        "Command": f"`{command}`, commit {where['commit'] or 'unknown'}",
    }
    text = "\n".join([
        "# A model that invents programs", "", *markdown_table(columns), "",
        "Round by round, in % (a level is a number of operations):", "",
        *markdown_table(_rounds(records)), "",
        *[f"- {name}: {fact}" for name, fact in facts.items()], "",
    ])  # fmt: skip
    means = {
        model: {
            f"{kind}, {name}": {
                "mean": float(values[kind][own].mean()),
                "ci95": interval(values[kind][own]),
            }
            for kind, name, own in lines
        }
        for model, values in found.items()
    }
    study.write_json(
        run.path / "result.json",
        {
            "tested": means,
            "control_by_round": [] if control is None else control.records,
            "stopped": followed.stopped,
            "tokens": tokens,
            "seconds": seconds | {f"rounds, {name}": value for name, value in laps.items()},
            "command": command,
            "environment": where,
        },
    )
    draw(run, records, control)
    write_atomically(run.path / "tasks.txt", samples)
    write_atomically(run.path / "table.md", text)
    return text


def _rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The columns of the table of rounds."""
    table = study.rounds_table(list(map(dict, records)))
    # They need an oracle beside the verifier, which is one here.
    del table["right before the verifier"], table["right of the kept"]
    for title, name in (
        ("texts that are programs", "texts_valid"),
        ("texts that are new", "texts_new"),
        ("held-out deduction", "deduction"),
    ):
        table[title] = [f"{100 * record[name]:.1f}" for record in records if record["step"]]
    return table
