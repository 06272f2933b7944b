"""Learners beside their papers, cell by cell: what the tables of Omniglot and CIFAR share.

Each training is a run folder of its own. A table goes on where it was stopped, and is written anew
after each training.
"""

from typing import Any

import jax

from experiments import common
from experiments.fewshot.table_plan import Config, Table, Training
from experiments.fewshot.table_report import lines_of, write_table
from metajax.files import read_json


def result_of(training: Training, config: Config, table: Table) -> dict[str, Any] | None:
    """What the run found, if it is done with all its cells' tasks, as many as asked for."""
    file = config.out / training.folder / "result.json"
    if not file.exists():
        return None
    result = read_json(file)
    enough = all(row["episodes"] == config.test_episodes for row in result["rows"])
    tasks = {row["task"] for row in result["rows"]}
    return result if enough and tasks >= {table.cells[cell] for cell in training.cells} else None


def make(training: Training, config: Config) -> None:
    """Trains and evaluates, or goes on where it was stopped."""
    folder = config.out / training.folder
    options = [*training.options, "--test-episodes", str(config.test_episodes)]
    options += ["--out", str(folder)]
    if (folder / "config.json").exists():
        options.append("--resume")
    training.main(options)
    jax.clear_caches()  # the next one compiles its own programs


def make_missing(config: Config, table: Table) -> None:
    """Makes what is missing, and the table anew after each training."""
    plan = table.trainings(config.everything())

    def written() -> str:
        results = {training.folder: result_of(training, config, table) for training in plan}
        found = {folder: result for folder, result in results.items() if result is not None}
        return write_table(config.out, table, lines_of(table, config.all_methods, plan, found))

    missing = [t for t in table.trainings(config) if result_of(t, config, table) is None]
    for number, training in enumerate(missing, start=1):
        print(f"\nTraining {number} of {len(missing)}: {training.folder}", flush=True)
        make(training, config)
        written()
    then = "The same command with other --methods, --cells or --seeds goes on from here."
    common.finish(config.out, written(), then=then)
