"""Tables, pictures and sample texts of the studies of self-evolution."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.evolution.rounds import Scores
from experiments.evolution.study import Outcome
from metajax import evolve as ev
from metajax.files import write_atomically


def test_tasks(
    problem: ev.Problem, key: jax.Array, levels: Sequence[int], prompts: int
) -> ev.Tasks:
    """``prompts`` tasks of each level; those of a level are the same whatever the others."""
    # All levels at once: short prompts are padded, and few programs are compiled.
    return ev.concatenate_tasks(
        [problem.draw(jax.random.fold_in(key, level), np.full(prompts, level)) for level in levels]
    )


def scores_of(
    judge: ev.Verifier, solve: ev.Solver, tasks: ev.Tasks
) -> Callable[[Any], dict[str, float]]:
    """``scores(params)``: the share of right answers to the tasks of each level, as
    ``exact_<level>``. ``judge`` says which are right; ``solve`` gives one answer each."""
    levels = np.asarray(tasks.levels)

    def scores(params: Any) -> dict[str, float]:
        right = is_right(judge, tasks, solve(params, jax.random.key(0), tasks))
        return {
            f"exact_{level}": float(right[levels == level].mean())
            for level in np.unique(levels).tolist()
        }

    return scores


def is_right(judge: ev.Verifier, tasks: ev.Tasks, completions: ev.Completions) -> np.ndarray:
    """Which tasks have a right answer: bools ``[n]``."""
    return np.asarray(judge.verify(tasks, completions).weight) > 0


def examples_text(
    problem: ev.Problem,
    judge: ev.Verifier,
    loop: ev.EvolveConfig,
    params: Any,
    levels: Sequence[int],
    each: int = 4,
) -> str:
    """Some of the model's tasks and answers of each level, a line each."""
    lines = []
    for level in levels:
        tasks = loop.propose(params, jax.random.key(7), ev.Levels(level, level))
        tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[:each], tasks)
        completions = loop.solve(params, jax.random.key(8), tasks)
        verdict = loop.verifier.verify(tasks, completions)
        label = ev.chosen_completions(completions, verdict.choice)
        right = is_right(judge, tasks, label)
        trusted = np.asarray(verdict.weight)
        for row, (prompt, length) in enumerate(zip(tasks.prompts, tasks.lengths, strict=True)):
            text = problem.show([*prompt[len(prompt) - length :], *label.tokens[row, 0]]).rstrip()
            marks = ("right" if right[row] else "wrong") + (", kept" if trusted[row] else "")
            lines.append(f"{text}  {marks}" if tasks.valid[row] else f"{text}  no task")
    return "\n".join(lines) + "\n"


def draw_levels(
    run: common.Run,
    records: Sequence[Mapping[str, Any]],
    control: Scores | None,
    trained: int,
    label: str = "digits",
) -> None:
    """Draws ``lengths.png``: exact match by level, which ``label`` names, a curve for each
    round."""
    levels = sorted(int(name[6:]) for name in records[0] if name.startswith("exact_"))
    curve = lambda scores: (levels, [100 * scores[f"exact_{level}"] for level in levels])
    plots.by_level(
        run.path / "lengths.png",
        {record["step"]: curve(record) for record in records},
        control=None if control is None else curve(control),
        trained=trained,
        xlabel=label,
        ylabel="exact match in %",
    )


def percent(share: float, count: int) -> str:
    """A share of ``count`` tasks in percent, with its 95 % confidence interval.

    >>> percent(0.5, 101)
    '50.0 ± 9.8'
    """
    return f"{100 * share:.1f} ± {196 * np.sqrt(share * (1 - share) / (count - 1)):.1f}"


def level_columns(
    tested: Mapping[str, Scores], prompts: int, first: int, label: str = "digits"
) -> dict[str, list[str]]:
    """A table of exact match by level, from ``first`` on, a column for each model."""
    names = next(iter(tested.values()))
    levels = sorted(int(name[6:]) for name in names if name.startswith("exact_"))
    levels = [level for level in levels if level >= first]
    columns = {label: [str(level) for level in levels]}
    for name, scores in tested.items():
        columns[f"{name}, %"] = [percent(scores[f"exact_{level}"], prompts) for level in levels]
    return columns


def rounds_table(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """A table of the rounds."""
    shown = [record for record in records if record["step"] > 0]
    share = lambda name: [
        "–" if record.get(name) is None else f"{100 * record[name]:.1f}" for record in shown
    ]
    return {
        "round": [str(record["step"]) for record in shown],
        "levels": [
            str(r["last_level"])
            if r["first_level"] == r["last_level"]
            else f"{r['first_level']}–{r['last_level']}"
            for r in shown
        ],
        "valid": share("valid"),
        "new": share("unique"),
        "right before the verifier": share("raw_accuracy"),
        "kept": share("kept"),
        "right of the kept": share("label_accuracy"),
        "gate, known": [_change(record, "known") for record in shown],
        "gate, frontier": [_change(record, "frontier") for record in shown],
        "θ": ["accepted" if record["accepted"] else "kept as it was" for record in shown],
    }


def _change(record: Mapping[str, Any], group: str) -> str:
    if f"{group}_before" not in record:
        return "–"
    return f"{100 * record[f'{group}_before']:.1f} → {100 * record[f'{group}_after']:.1f}"


def write_results(
    run: common.Run,
    outcome: Outcome,
    *,
    title: str,
    module: str,
    columns: Mapping[str, Sequence[str]],
    rounds: Mapping[str, Sequence[str]],
    tested: Mapping[str, Any],
    facts: Mapping[str, str],
    base: str = "base model",
) -> str:
    """Writes ``result.json`` and ``table.md``; returns the table.

    Args:
        run: the run.
        outcome: what was trained.
        title: of the table.
        module: what ``python -m`` runs.
        columns: the first table.
        rounds: the second one, a line a round.
        tested: scores for ``result.json``.
        facts: lines below the tables, by what they are called.
        base: what the training before the rounds is called.
    """
    records = outcome.followed.records
    laps = _seconds_by_part(records)
    phases = {base: outcome.base}
    if outcome.control is not None:
        phases["control"] = outcome.control
    trained, generated = (
        sum(record.get(f"tokens_{name}", 0) for record in records)
        for name in ("trained", "generated")
    )
    tests = laps.pop("test", 0.0)
    seconds = {name: phase.seconds for name, phase in phases.items()}
    seconds |= {"rounds": sum(laps.values()), "tests after each round": tests}
    tokens = {name: phase.tokens for name, phase in phases.items()} | {"rounds": trained}
    rates = {
        "trained": trained / max(laps.get("update", 0), 1e-9),
        "generated": generated / max(laps.get("solve", 0), 1e-9),
    }
    where, command = common.environment(), common.command(module, run.config)
    facts = {
        **facts,
        "Ended": outcome.followed.stopped,
        "Tokens": ", ".join(f"{name} {count:,}" for name, count in tokens.items()),
        "Time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "Tokens a second, compilation included": ", ".join(
            f"{name} {rate:,.0f}" for name, rate in rates.items()
        ),
        "Machine": f"{where['device']}, {where['cores']} cores",
        "Command": f"`{command}`, commit {where['commit'] or 'unknown'}",
    }
    table = "\n".join([
        f"# {title}", "", *markdown_table(columns), "",
        "Round by round, in %:", "", *markdown_table(rounds), "",
        *[f"- {name}: {text}" for name, text in facts.items()], "",
    ])  # fmt: skip
    result = {
        "title": title,
        "columns": columns,
        "facts": facts,
        "tested": tested,
        "control_by_round": outcome.control_records,
        "stopped": outcome.followed.stopped,
        "tokens": tokens,
        "seconds": seconds | {f"rounds, {name}": value for name, value in laps.items()},
        "tokens_per_second": rates,
        "command": command,
        "environment": where,
    }
    write_atomically(run.path / "result.json", json.dumps(result, indent=2) + "\n")
    write_atomically(run.path / "table.md", table)
    return table


def _seconds_by_part(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each part over all rounds."""
    found: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("seconds_"):
                found[name[8:]] = found.get(name[8:], 0.0) + value
    return found
