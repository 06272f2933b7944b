"""What the experiments in self-evolution find: scores by level, some tasks, the table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.evolution import study
from experiments.evolution.study import Scores, Trained
from metajax import evolve as ev
from metajax.evolve.solve import chosen
from metajax.files import write_atomically


def test_tasks(
    problem: ev.Problem, key: jax.Array, levels: Sequence[int], prompts: int
) -> ev.Tasks:
    """As many prompts of each level; those of a level are the same whatever the others."""
    # All levels at once: short prompts are padded, and few programs are compiled.
    return ev.joined(
        [problem.draw(jax.random.fold_in(key, level), np.full(prompts, level)) for level in levels]
    )


def scores_of(
    problem: ev.Problem, solve: ev.Solver, tasks: ev.Tasks
) -> Callable[[Any], dict[str, float]]:
    """``scores(params)``: exact match of the tasks of each level, as ``exact_<level>``."""
    answers, levels = problem.solve(tasks), np.asarray(tasks.levels)

    def scores(params: Any) -> dict[str, float]:
        right = np.asarray(ev.is_right(solve(params, jax.random.key(0), tasks), answers)[:, 0])
        return {
            f"exact_{level}": float(right[levels == level].mean())
            for level in np.unique(levels).tolist()
        }

    return scores


def examples_text(
    problem: ev.Problem, parts: ev.Parts, params: Any, levels: Sequence[int], each: int = 4
) -> str:
    """Some of the model's tasks and answers, in the order of the levels, a line each."""
    lines = []
    for level in levels:
        tasks = parts.propose(params, jax.random.key(7), ev.Levels(level, level))
        tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[:each], tasks)
        attempts = parts.solve(params, jax.random.key(8), tasks)
        verdict = parts.verifier.verify(tasks, attempts)
        label = chosen(attempts, verdict.choice)
        right = np.asarray(ev.is_right(label, problem.solve(tasks))[:, 0])
        trusted = np.asarray(verdict.weight)
        for row, (prompt, length) in enumerate(zip(tasks.prompts, tasks.lengths, strict=True)):
            text = problem.show([*prompt[len(prompt) - length :], *label.tokens[row, 0]])
            marks = ("right" if right[row] else "wrong") + (", kept" if trusted[row] else "")
            lines.append(f"{text}  {marks}" if tasks.valid[row] else f"{text}  no task")
    return "\n".join(lines) + "\n"


def draw_levels(
    run: common.Run, records: Sequence[Mapping[str, Any]], control: Scores | None, trained: int
) -> None:
    """Draws ``lengths.png``: scores by digits, a curve for each round."""
    levels = sorted(int(name[6:]) for name in records[0] if name.startswith("exact_"))
    curve = lambda scores: (levels, [100 * scores[f"exact_{level}"] for level in levels])
    plots.by_level(
        run.path / "lengths.png",
        {record["step"]: curve(record) for record in records},
        control=None if control is None else curve(control),
        trained=trained,
        xlabel="digits",
        ylabel="exact match in %",
    )


class Found(NamedTuple):
    """What there is to report.

    Attributes:
        followed: the rounds.
        tested: for each model the scores of each level.
        prompts: test prompts of each level.
        first: the easiest level in the table.
        phases: the trainings beside the rounds, by what they are called.
        facts: further lines below the table, by what they are called.
    """

    followed: study.Followed
    tested: dict[str, dict[str, float]]
    prompts: int
    first: int
    phases: dict[str, Trained]
    facts: dict[str, str]


def write_results(run: common.Run, found: Found, *, title: str, module: str) -> str:
    """Writes ``result.json`` and ``table.md``; returns the table."""
    records, prompts = found.followed.records, found.prompts
    interval = lambda p: 196 * np.sqrt(p * (1 - p) / (prompts - 1))
    levels = sorted(int(name[6:]) for name in next(iter(found.tested.values())))
    shown = [level for level in levels if level >= found.first]
    columns = {"digits": [str(level) for level in shown]}
    for name, scores in found.tested.items():
        values = [scores[f"exact_{level}"] for level in shown]
        columns[f"{name}, %"] = [f"{100 * v:.1f} ± {interval(v):.1f}" for v in values]
    own = study.seconds_of(records)
    trained = sum(record.get("tokens_trained", 0) for record in records)
    generated = sum(record.get("tokens_generated", 0) for record in records)
    seconds = {name: phase.seconds for name, phase in found.phases.items()}
    tests = own.pop("test", 0.0)
    seconds |= {"rounds": sum(own.values()), "tests after each round": tests}
    tokens = {name: phase.tokens for name, phase in found.phases.items()} | {"rounds": trained}
    rates = {
        "trained": trained / max(own.get("update", 0), 1e-9),
        "generated": generated / max(own.get("solve", 0), 1e-9),
    }
    where, command = common.environment(), common.command(module, run.config)
    facts = found.facts | {
        "Ended": found.followed.stopped,
        "Tokens": ", ".join(f"{name} {count:,}" for name, count in tokens.items()),
        "Time": ", ".join(f"{name} {duration(value)}" for name, value in seconds.items()),
        "Tokens a second, compilation included": ", ".join(
            f"{name} {rate:,.0f}" for name, rate in rates.items()
        ),
        "Machine": f"{where['device']}, {where['cores']} cores",
        "Command": f"`{command}`, commit {where['commit'] or 'unknown'}",
    }
    asked = any(record.get("uses_oracle") for record in records)
    knows = "the verifier asked what is right" if asked else "what is right, the report alone knows"
    table = "\n".join([
        f"# {title}", "", *markdown_table(columns), "",
        f"Round by round, in % ({knows}):", "",
        *markdown_table(study.rounds_table(records)), "",
        *[f"- {name}: {text}" for name, text in facts.items()], "",
    ])  # fmt: skip
    study.write_json(
        run.path / "result.json",
        {
            "tested": found.tested,
            "stopped": found.followed.stopped,
            "tokens": tokens,
            "seconds": seconds | {f"rounds, {name}": value for name, value in own.items()},
            "tokens_per_second": rates,
            "command": command,
            "environment": where,
        },
    )
    write_atomically(run.path / "table.md", table)
    return table
