"""The papers' numbers on Omniglot beside ours, cell by cell.

python -m experiments.fewshot.omniglot.table trains ten learners for 5- and 20-way tasks of 1 and 5 shots,
and keeps one table of what is done so far. The same command goes on where it was stopped; --methods
and --cells take some of them, such as --methods protonet,maml --cells 20w1s. Each training is a run
folder of its own, made by experiments.fewshot.omniglot.train or experiments.fewshot.omniglot.metric.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments import common
from experiments.common import plots
from experiments.common.report import duration, markdown_table
from experiments.fewshot.omniglot import metric, train
from experiments.fewshot.omniglot.schedules import PUBLISHED, TITLES, Protocol
from metajax.errors import ArgumentError
from metajax.files import write_atomically

Name = Literal[
    "maml", "fomaml", "reptile", "anil", "maml++", "imaml", "protonet", "matching", "relation",
    "r2d2",
]  # fmt: skip
NAMES: tuple[Name, ...] = get_args(Name)
CELLS: dict[str, tuple[int, int]] = {
    "5w1s": (5, 1),
    "5w5s": (5, 5),
    "20w1s": (20, 1),
    "20w5s": (20, 5),
}
METRIC: dict[str, metric.Method] = {
    "protonet": "prototypical",
    "matching": "matching",
    "relation": "relation",
    "r2d2": "r2d2",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the table."""

    methods: str = ",".join(NAMES)
    """Which learners, with commas between."""
    cells: str = ",".join(CELLS)
    """Which cells, with commas between: 5w1s is 5-way 1-shot."""
    protocol: Protocol = "fast"
    """How to train: our schedules for two CPU cores, or the papers'."""
    seeds: int = 1
    """How many seeds, from 0 on."""
    steps: int | None = None
    """Meta-steps of every training; without it, the schedules' own."""
    test_episodes: int = 1000
    """Test tasks in each cell, of each seed."""
    data: Path | None = None
    """Folder with Omniglot's zip files; as for experiments.fewshot.omniglot.train."""
    out: Path = Path("runs/omniglot-table")
    """Where the run folders and the table are."""

    def __post_init__(self) -> None:
        common.check_positive(self, "seeds", "steps")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")
        chosen(self.methods, "methods", NAMES)
        chosen(self.cells, "cells", CELLS)


def chosen(text: str, name: str, choices: Iterable[str]) -> list[str]:
    """The names in a list with commas or spaces between, in the order of ``choices``."""
    words = [word for word in re.split(r"[,\s]+", text) if word]
    unknown = sorted(set(words) - set(choices))
    if unknown or not words:
        found = ", ".join(unknown) if unknown else repr(text)
        raise ArgumentError(f"{name} must be some of {', '.join(choices)}; got {found}")
    return [choice for choice in choices if choice in words]


class Training(NamedTuple):
    """One run, and the cells that its model is tested on.

    Attributes:
        method: the learner's name here.
        main: the experiment's main function.
        options: its command line, without folders.
        folder: the run folder's name.
        cells: names of the cells.
        seed: the run's seed.
    """

    method: str
    main: Callable[[Sequence[str]], None]
    options: tuple[str, ...]
    folder: str
    cells: tuple[str, ...]
    seed: int


def trainings(config: Config) -> list[Training]:
    """The runs that the chosen cells need, in the order in which they are made.

    A model trained by gradients on 1-shot tasks is tested on 1 and 5 shots, as the authors of MAML
    did; one that compares is trained for its number of shots, and tested on 5 and 20 ways.
    """
    cells = chosen(config.cells, "cells", CELLS)
    plan = []
    for seed in range(config.seeds):
        for method in chosen(config.methods, "methods", NAMES):
            by_model: dict[tuple[str, ...], list[str]] = {}
            for cell in cells:
                n_way, k_shot = CELLS[cell]
                key = (
                    ("--k-shot", str(k_shot))
                    if method in METRIC
                    else ("--n-way", str(n_way), "--k-shot", "1")
                )
                by_model.setdefault(key, []).append(cell)
            for key, served in by_model.items():
                steps = () if config.steps is None else ("--steps", str(config.steps))
                options = (
                    "--method", METRIC.get(method, method), *key, "--protocol", config.protocol,
                    *steps, "--seed", str(seed),
                )  # fmt: skip
                size = f"{key[1]}shot" if method in METRIC else f"{key[1]}way"
                length = "" if config.steps is None else f"-{config.steps}"
                plan.append(
                    Training(
                        method=method,
                        main=metric.main if method in METRIC else train.main,
                        options=options,
                        folder=f"{method}-{config.protocol}-{size}{length}-seed{seed}",
                        cells=tuple(served),
                        seed=seed,
                    )
                )
    return plan


def result_of(training: Training, config: Config) -> dict[str, Any] | None:
    """What the run found, if it is done with as many test tasks as asked for."""
    file = config.out / training.folder / "result.json"
    if not file.exists():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    enough = all(row["episodes"] == config.test_episodes for row in result["rows"])
    return result if enough else None


def make(training: Training, config: Config) -> None:
    """Trains and evaluates, or goes on where it was stopped."""
    folder = config.out / training.folder
    options = [
        *training.options,
        "--test-episodes",
        str(config.test_episodes),
        "--out",
        str(folder),
    ]
    if config.data is not None:
        options += ["--data", str(config.data)]
    if (folder / "config.json").exists():
        options.append("--resume")
    training.main(options)
    jax.clear_caches()  # the next one compiles its own programs


def figure_of(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Mean over the seeds, and half the width of its 95 % interval over all their episodes."""
    if not rows:
        return None
    means, intervals = ([row[name] for row in rows] for name in ("mean", "ci95"))
    return float(np.mean(means)), float(np.sqrt(np.sum(np.square(intervals))) / len(rows))


def facts_of(method: str) -> tuple[str, str, Mapping[tuple[int, int], str]]:
    """The learner's title, and the source of the published figures with these."""
    if method in METRIC:
        name = METRIC[method]
        return metric.TITLES[name], *metric.PUBLISHED[name]
    return TITLES[method], *PUBLISHED[method]


def lines_of(config: Config, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each cell that is done.

    Args:
        config: the table's.
        found: ``result_of`` by the trainings' folder.
    """
    lines = []
    plan = trainings(config)
    for method in NAMES:
        for cell, (n_way, k_shot) in CELLS.items():
            done = [
                training
                for training in plan
                if training.method == method and cell in training.cells and training.folder in found
            ]
            if not done:
                continue
            task = f"{n_way}-way {k_shot}-shot"
            results = [found[training.folder] for training in done]
            by_kind: dict[bool, list[Mapping[str, Any]]] = {True: [], False: []}
            for result in results:
                for kind, rows in by_kind.items():
                    # The first of its kind is the paper's protocol.
                    of_kind = [
                        row
                        for row in result["rows"]
                        if row["task"] == task and row["transductive"] == kind
                    ]
                    rows.extend(of_kind[:1])
            title, source, figures = facts_of(method)
            rows = by_kind[True] or by_kind[False]
            means = [row["mean"] for row in rows]
            lines.append(
                {
                    "method": method,
                    "title": title,
                    "cell": cell,
                    "paper": figures.get((n_way, k_shot)),
                    "source": source,
                    "transductive": figure_of(by_kind[True]),
                    "not_transductive": figure_of(by_kind[False]),
                    "seeds": len(rows),
                    "spread": float(np.std(means, ddof=1)) if len(means) > 1 else None,
                    "episodes": sum(row["episodes"] for row in rows),
                    "training_seconds": float(
                        np.mean([result["seconds"]["training"] for result in results])
                    ),
                    "training": {
                        key: value
                        for key, value in results[0]["training"].items()
                        if key in ("steps", "meta-batch", "ways", "shots")
                    },
                    "schedule": results[0]["schedule"],
                    "command": results[0]["command"],
                    "environment": results[0]["environment"],
                }
            )
    return lines


def write_table(config: Config, lines: Sequence[Mapping[str, Any]]) -> str:
    """Writes ``table.md``, ``table.json`` and ``table.png``; returns the table."""

    def figure(value: Sequence[float] | None) -> str:
        return "–" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"

    columns = {
        "method": [line["title"] for line in lines],
        "cell": [line["cell"] for line in lines],
        "paper": [line["paper"] or "–" for line in lines],
        "ours, transductive": [figure(line["transductive"]) for line in lines],
        "ours, not transductive": [figure(line["not_transductive"]) for line in lines],
        "episodes": [str(line["episodes"]) for line in lines],
        "seeds": [
            str(line["seeds"])
            if line["spread"] is None
            else f"{line['seeds']}, std {line['spread']:.2f}"
            for line in lines
        ],
        "meta-steps": [f"{line['training']['steps']:,}" for line in lines],
        "training": [duration(line["training_seconds"]) for line in lines],
    }
    seen = dict.fromkeys(
        (line["title"], line["source"], line["schedule"], line["command"]) for line in lines
    )
    sources = dict.fromkeys((title, source) for title, source, *_ in seen)
    machines = dict.fromkeys(
        f"{where['device']}, {where['cores']} cores, "
        + ", ".join(f"{name} {number}" for name, number in where["versions"].items())
        + f", commit {where['commit'] or 'unknown'}"
        for where in (line["environment"] for line in lines)
    )
    text = "\n".join(
        [
            f"# Omniglot, trained by the {config.protocol} schedules",
            "",
            *markdown_table(columns),
            "",
            "Accuracy in % with the 95 % interval over episodes, all seeds' together. Transductive "
            "figures are by MAML's protocol: as many query images a class as shots, rotated test "
            "classes, statistics of the query batch. The others have 15 query images a class, each "
            "predicted by itself. The paper's figure of a learner by gradients is transductive, "
            "that of one that compares isn't.",
            "",
            "Papers: " + "; ".join(f"{title}: {source}" for title, source in sources) + ".",
            "",
            "How each model was trained:",
            "",
            *(f"- {title}: {schedule}. `{command}`" for title, _, schedule, command in seen),
            "",
            *(f"Machine: {machine}." for machine in machines),
            "",
        ]
    )
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out / "table.json", json.dumps(list(lines), indent=2) + "\n")
    write_atomically(config.out / "table.md", text)
    plots.beside_paper(
        config.out / "table.png",
        [
            plots.Beside(
                group=line["cell"],
                label=line["title"],
                ours=line["transductive"] or line["not_transductive"],
                paper=_number(line["paper"]),
            )
            for line in lines
        ],
        xlabel="accuracy in %",
    )
    return text


def _number(figure: str | None) -> float | None:
    return None if figure is None else float(figure.split()[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing, and the table anew after each training."""
    config = common.parse(Config, arguments, __doc__ or "")
    everything = dataclasses.replace(config, methods=",".join(NAMES), cells=",".join(CELLS))

    def table() -> str:
        results = {t.folder: result_of(t, config) for t in trainings(everything)}
        found = {folder: result for folder, result in results.items() if result is not None}
        return write_table(config, lines_of(everything, found))

    missing = [t for t in trainings(config) if result_of(t, config) is None]
    for number, training in enumerate(missing, start=1):
        print(f"\nTraining {number} of {len(missing)}: {training.folder}", flush=True)
        make(training, config)
        table()
    print(f"\n{table()}\nEverything is in {config.out}.")


if __name__ == "__main__":
    common.guard(main)
