"""What is measured of a model of stories, its table and its pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import plots
from experiments.evolution.pretrained.families.stories import ends_well, words_in, words_of
from experiments.evolution.report import examples_text, percent
from experiments.evolution.stories import base_prompts
from experiments.evolution.stories.config import begun
from experiments.evolution.stories.ready import Ready, solver
from metajax import evolve as ev
from metajax.files import read_json, write_atomically


def scores_of(
    ready: Ready, tasks: ev.Tasks, asked: ev.Tasks | None = None, solve: ev.Solver | None = None
) -> Callable[[Any], dict[str, float]]:
    """``scores(params)``: shares of stories, one a task, with all words and an ending (``rate``),
    that are fluent too (``fluent``), that end well (``ends``), and of the words that are there.

    Args:
        ready: what judges.
        tasks: what counts.
        asked: what the model reads instead of the tasks.
        solve: writes; the solver of the config if None.
    """
    setup = ready.setup
    solve = solve or solver(setup)
    decode, begin = setup.tokenizer.decode, int(setup.problem.begin is not None)
    questions = [
        decode(row[len(row) - length :].tolist()[begin:])
        for row, length in zip(tasks.prompts, tasks.lengths, strict=True)
    ]

    def scores(params: Any) -> dict[str, float]:
        found = solve(params, jax.random.key(0), tasks if asked is None else asked)
        rows = zip(
            questions,
            np.asarray(found.tokens)[:, 0],
            np.asarray(found.lengths)[:, 0],
            np.asarray(found.ended)[:, 0],
            strict=True,
        )
        right, ends, words = [], [], []
        for asked_for, row, length, ended in rows:
            story = decode(row[: length - int(ended)].tolist())
            wanted = words_of(asked_for)
            right.append(bool(ended) and setup.family.check(asked_for, story) > 0)
            ends.append(bool(ended) and ends_well(story))
            words.append(len(words_in(story).intersection(wanted)) / len(wanted))
        good = np.asarray(ready.verifier.verify(tasks, found).weight) > 0
        named = {"rate": right, "fluent": good, "ends": ends, "words": words}
        return {name: float(np.mean(values)) for name, values in named.items()}

    return scores


def base_scores(ready: Ready, file: Path) -> dict[str, Any]:
    """The base model's scores: of each prompt on validation tasks, and of the best one on the
    tests. They are kept in a file, and read from there."""
    if file.exists():
        return read_json(file)
    setup, config = ready.setup, ready.setup.config
    named = lambda tasks: [
        words_of(setup.tokenizer.decode(row[len(row) - length :].tolist()[begin:]))
        for row, length in zip(tasks.prompts, tasks.lengths, strict=True)
    ]
    begin = int(setup.problem.begin is not None)

    def asked(name: str, tasks: ev.Tasks) -> ev.Tasks:
        text = base_prompts.PROMPTS[name]
        return begun(setup, [text(*words) for words in named(tasks)])

    def score(name: str, tasks: ev.Tasks) -> dict[str, float]:
        texts = asked(name, tasks)
        room = setup.model.config.max_length - int(np.max(texts.lengths))
        writer = solver(setup, longest=min(config.longest, room))
        return scores_of(ready, tasks, texts, writer)(setup.params)

    tried = {name: score(name, setup.validation) for name in base_prompts.PROMPTS}
    best = max(tried, key=lambda name: (tried[name]["rate"], tried[name]["words"]))
    tested = score(best, setup.tests) | ready.perplexities(setup.params)
    found = {"prompt": best, "tried": tried, "tested": tested}
    write_atomically(file, json.dumps(found, indent=2) + "\n")
    return found


def draw_rounds(path: Path, records: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> None:
    """Draws rates on validation tasks and perplexities beside the base's, round by round."""
    figure = plots.empty(8.0, 3.2)
    rates, perplexities = figure.subplots(1, 2)
    steps = [record["step"] for record in records]
    for name, label in (("rate", "all three words"), ("words", "share of the words")):
        rates.plot(steps, [100 * record[name] for record in records], marker="o", label=label)
    best = base["tried"][base["prompt"]]["rate"]
    rates.axhline(100 * best, color="grey", linestyle=":", label="base, best prompt")
    rates.set(xlabel="round", ylabel="validation stories in %", ylim=(-3, 103))
    for name, label in (
        ("perplexity_own", "base's own stories"),
        ("perplexity_real", "real stories"),
    ):
        if name in records[0]:
            ratio = [record[name] / base["tested"][name] for record in records]
            perplexities.plot(steps, ratio, marker="o", label=label)
    perplexities.axhline(1.05, color="grey", linestyle=":")
    perplexities.set(xlabel="round", ylabel="perplexity beside the base's")
    for axes in (rates, perplexities):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    plots.save(figure, path)


def samples(ready: Ready, base: dict[str, Any], loop: ev.EvolveConfig, params: Any) -> str:
    """Tasks that the model posed with its stories, and test tasks before and after."""
    setup = ready.setup
    posed = examples_text(setup.problem, ready.verifier, loop, params, [1])
    few = jax.tree.map(lambda leaf: leaf[:3], setup.tests)
    shown = []
    for name, model in (("base", setup.params), ("after the last round", params)):
        stories = solver(setup)(model, jax.random.key(0), few)
        for row in range(len(few.lengths)):
            text = setup.problem.show([*few.prompts[row], *stories.tokens[row, 0]])
            shown.append(f"[{name}]\n{text}\n")
    return f"Tasks that it posed:\n\n{posed}\nTest tasks:\n\n" + "\n".join(shown)


def columns(tested: Mapping[str, Mapping[str, float]], count: int) -> dict[str, list[str]]:
    """The table of the tests."""
    rows = {
        "rate": "all words, ending",
        "fluent": "and fluent to the base",
        "ends": "ends well",
        "words": "share of the words",
    }
    found = {"stories, %": [*rows.values(), "perplexity, base's stories"]}
    real = all("perplexity_real" in scores for scores in tested.values())
    if real:
        found["stories, %"].append("perplexity, real stories")
    for name, scores in tested.items():
        found[name] = [percent(scores[each], count) for each in rows]
        found[name].append(f"{scores['perplexity_own']:.3f}")
        if real:
            found[name].append(f"{scores['perplexity_real']:.3f}")
    return found


def facts(ready: Ready, loop: ev.EvolveConfig, base: Mapping[str, Any]) -> dict[str, str]:
    """The lines below the tables."""
    setup, config = ready.setup, ready.setup.config
    size = sum(leaf.size for leaf in jax.tree.leaves(setup.params))
    tried = ", ".join(
        f"{name} {100 * scores['rate']:.1f}" for name, scores in base["tried"].items()
    )
    return {
        "Checkpoint": f"{setup.name}, {size:,} parameters, all of which learn",
        "Task": f"{setup.problem.name}: {config.test_prompts} test tasks, a story each "
        f"at temperature {config.temperature}",
        "Base": f"its best prompt of {len(base['tried'])} on {config.validation} validation tasks: "
        f"{base['prompt']}. Rates in %: {tried}",
        "Own stories": f"{config.imitated} free ones to imitate, {config.imitation:.0%} of each "
        f"update; {len(ready.back)} for the perplexity alone",
        "Real stories": f"{len(ready.outside)}, for the perplexity alone"
        if ready.outside
        else "none: the perplexity is on the base's own stories, whose floor is the base's",
        "Proposer": "the model itself: three nouns of texts that it writes",
        "Reward": "the square of the share of the words; 0 without a good ending, or where "
        f"the base gives less than {ready.limit:.2f} nats a token; {config.samples} for each task",
        "Update": loop.update.name,
    }
