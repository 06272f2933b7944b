"""Table, picture and sample texts of the study of knowledge."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.evolution.knowledge import people
from experiments.evolution.knowledge.config import Setup
from experiments.evolution.knowledge.people import Person
from experiments.evolution.knowledge.texts import Parsed
from metajax.files import read_json, write_atomically

ASKED = (
    "no passage",
    "passages",
    "own questions",
    "passages and own questions",
    "second round",
    "control of the second round",
    "questions by a program",
    "passage in the prompt",
)
"""The models that are asked, in the table's order."""
PAIRS = (
    ("own questions", "passages"),
    ("passages and own questions", "passages"),
    ("second round", "own questions"),
    ("control of the second round", "own questions"),
    ("second round", "control of the second round"),
)
"""Models that are compared, question by question."""


def counted(by_wording: Sequence[Sequence[Parsed]], found: Sequence[Person]) -> dict[str, Any]:
    """What a model wrote: the questions that were kept, and counts.

    The share of right ones is for the report alone: a program that knows the facts says which have
    an answer that is the asked person's, and how many of the facts any question has.
    """
    parsed = [each for part in by_wording for each in part]
    dropped: Counter[str] = sum((Counter(each.dropped) for each in parsed), Counter())
    questions = [question for each in parsed for question in each.questions]
    facts, right = set(), 0
    for part in by_wording:
        for person, each in zip(found, part, strict=True):
            values = {people.normalised(value) for value in person.facts.values()}
            for question in each.questions:
                answer = people.normalised(question.answer)
                right += answer in values
                if answer in values:
                    facts.add((person.name, answer))
    kept = list(dict.fromkeys(questions))
    return {
        "questions": kept,
        "lines": sum(each.lines for each in parsed),
        "kept": len(questions),
        "dropped": dict(dropped),
        "answers_that_are_facts": right / max(len(questions), 1),
        "facts_with_a_question": len(facts) / (len(found) * len(people.ATTRIBUTES)),
    }


def interval(values: np.ndarray) -> float:
    """Half the width of the 95 % confidence interval of a mean."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def shown(values: np.ndarray) -> str:
    """A mean in percent, with its interval.

    >>> shown(np.array([0.0, 1.0]))
    '50.0 ± 98.0'
    """
    return f"{100 * values.mean():.1f} ± {100 * interval(values):.1f}"


def table(result: Mapping[str, Any]) -> list[str]:
    """The tables of a result: the models, pairs of them, what was written, and the gate."""
    right = {name: np.array(each["right"], float) for name, each in result["asked"].items()}
    columns = {
        "learned from": list(right),
        "tokens": [f"{each.get('tokens', 0):,}" for each in result["asked"].values()],
        "questions": [str(len(values)) for values in right.values()],
        "right without the passage, %": [shown(values) for values in right.values()],
        "begin right, %": [
            shown(np.array(each["begins"], float)) for each in result["asked"].values()
        ],
    }
    lines = [*markdown_table(columns), ""]
    pairs = [(a, b) for a, b in PAIRS if a in right and b in right]
    if pairs:
        lines += [*markdown_table({
            "compared, question by question": [f"{a} − {b}" for a, b in pairs],
            "points": [shown(right[a] - right[b]) for a, b in pairs],
        }), ""]  # fmt: skip
    written = result["written"]
    share = lambda name: [f"{100 * each[name]:.1f}" for each in written.values()]
    if written:
        lines += [*markdown_table({
            "written": list(written),
            "lines": [f"{each['lines']:,}" for each in written.values()],
            "kept": [f"{each['kept']:,}" for each in written.values()],
            "different": [f"{each['different']:,}" for each in written.values()],
            "answers that are the person's, %": share("answers_that_are_facts"),
            "facts with a question, %": share("facts_with_a_question"),
        }), ""]  # fmt: skip
    gates = result["gates"]
    if gates:
        lines += [*markdown_table({
            "gate": list(gates),
            "own questions held back, %": [
                f"{100 * each['before']:.1f} → {100 * each['after']:.1f}" for each in gates.values()
            ],
            "change at least": [f"{100 * each['lowest']:.1f}" for each in gates.values()],
            "θ": ["accepted" if each["accepted"] else "refused" for each in gates.values()],
        }), ""]  # fmt: skip
    return lines


def write(run: common.Run, setup: Setup) -> str:
    """Writes ``result.json``, ``table.md``, ``knowledge.png`` and ``questions.txt`` from the parts
    that are done; returns the table."""
    found = {file.stem: read_json(file) for file in sorted((run.path / "parts").glob("*.json"))}
    config, where = setup.config, common.environment()
    questions = [question for _, question in setup.asked]
    begins = lambda answers: people.begins_right(answers, questions[: len(answers)]).tolist()
    written = {name: each for name, each in found.items() if "questions" in each}
    result = {
        "asked": {
            name: {key: value for key, value in found[name].items() if key != "answers"}
            | {"begins": begins(found[name]["answers"])}
            for name in ASKED
            if name in found
        },
        "written": {
            name: {**each, "different": len(each["questions"]), "questions": None}
            for name, each in written.items()
        },
        "gates": {name: each for name, each in found.items() if "accepted" in each},
        "facts": (
            f"{config.people} people, {len(people.ATTRIBUTES)} facts each; factors of rank "
            f"{config.rank}, a rate of {config.rate:g}, rows of {config.length} tokens, "
            f"{config.batch} in an update; {len(setup.words.kept):,} tokens of the vocabulary; "
            f"seed {config.seed}. No oracle chooses what is learned"
            + ("" if config.checkpoint else "; random weights: the scores mean nothing")
        ),
        "seconds": {"all parts": sum(each["seconds"] for each in found.values())},
        "command": common.command("experiments.evolution.knowledge", config),
        "environment": where,
    }
    lines = [
        "# What was learned from passages", "", *table(result),
        f"- {result['facts']}",
        f"- Time: {duration(result['seconds']['all parts'])}",
        f"- Machine: {where['device']}, {where['cores']} cores",
        f"- Command: `{result['command']}`, commit {where['commit'] or 'unknown'}", "",
    ]  # fmt: skip
    write_atomically(run.path / "result.json", json.dumps(result, indent=1) + "\n")
    write_atomically(run.path / "table.md", "\n".join(lines))
    write_atomically(run.path / "questions.txt", samples(setup, found))
    draw(run, result)
    return "\n".join(lines)


def samples(setup: Setup, found: Mapping[str, Any]) -> str:
    """The first person's passages with what was written about them, and some answers."""
    person = setup.people[0]
    lines = [people.passage(person, wording) for wording in range(len(people.WORDINGS))]
    for name, each in found.items():
        if "questions" in each:
            about = [f"{text} {answer}" for text, answer in each["questions"]]
            lines += ["", f"{name}:", *[line for line in about if person.name in line][:12]]
    for name in ASKED:
        if name in found:
            lines += ["", f"{name}:"]
            answers = zip(setup.asked, found[name]["answers"], found[name]["right"], strict=False)
            for (_, question), answer, right in list(answers)[:8]:
                mark = "right" if right else f"wrong: {question.answer}"
                lines.append(f"{question.text}{answer}   {mark}")
    return "\n".join([*lines, ""])


def draw(run: common.Run, result: Mapping[str, Any]) -> None:
    """Draws ``knowledge.png``: right answers by what was learned from."""
    figure = plots.empty(6.4, 3.2)
    axes = figure.subplots()
    for row, (name, each) in enumerate(reversed(result["asked"].items())):
        right = 100 * np.array(each["right"], float)
        bound = name in ("no passage", "passage in the prompt")
        axes.barh(
            row, right.mean(), xerr=interval(right), color="lightgrey" if bound else "tab:blue"
        )
    axes.set_yticks(range(len(result["asked"])), list(reversed(result["asked"])))
    axes.set(xlabel="right answers in %")
    axes.grid(axis="x", alpha=0.3)
    plots.save(figure, run.path / "knowledge.png")
