"""The papers' numbers on Omniglot beside ours, cell by cell.

python -m experiments.fewshot.omniglot.table trains ten learners for 5- and 20-way tasks of 1 and 5
shots, and keeps one table of what is done so far. The same command goes on where it was stopped;
--methods and --cells take some of them, such as --methods protonet,maml --cells 20w1s. Each
training is a run folder of its own, made by experiments.fewshot.omniglot or
experiments.fewshot.omniglot.metric.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax

from experiments import common
from experiments.fewshot.omniglot import metric, train
from experiments.fewshot.omniglot.table_plan import CELLS, NAMES, Config, Training, trainings
from experiments.fewshot.omniglot.table_report import lines_of, write_table


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
    (metric if training.compares else train).main(options)
    jax.clear_caches()  # the next one compiles its own programs


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
