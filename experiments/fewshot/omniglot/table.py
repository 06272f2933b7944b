"""The papers' numbers on Omniglot beside ours, cell by cell.

python -m experiments.fewshot.omniglot.table trains ten learners for 5- and 20-way tasks of 1 and 5
shots, and keeps one table of what is done so far. The same command goes on where it was stopped;
--methods and --cells take some of them, such as --methods protonet,maml --cells 20w1s. Each
training is a run folder of its own, made by experiments.fewshot.omniglot or
experiments.fewshot.omniglot.metric.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

from experiments import common
from experiments.fewshot import comparing, table_plan
from experiments.fewshot.omniglot import metric, published, train
from experiments.fewshot.omniglot.networks import Method
from experiments.fewshot.omniglot.schedules import Protocol
from experiments.fewshot.table import make_missing
from experiments.fewshot.table_plan import Facts, Table, Training

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
METRIC: dict[str, Method] = {
    "protonet": "prototypical",
    "matching": "matching",
    "relation": "relation",
    "r2d2": "r2d2",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(table_plan.Config):
    """Options of the table; 5w1s is 5-way 1-shot."""

    all_methods: ClassVar = NAMES
    all_cells: ClassVar = CELLS
    methods: str = ",".join(NAMES)
    """Which learners, with commas between."""
    cells: str = ",".join(CELLS)
    """Which cells, with commas between: 5w1s is 5-way 1-shot."""
    protocol: Protocol = "fast"
    """How to train: our schedules for two CPU cores, or the papers'."""
    data: Path | None = None
    """Folder with Omniglot's zip files; as for omniglot itself."""
    out: Path = Path("runs/omniglot-table")
    """Where the run folders and the table are."""


def trainings(config: Config) -> list[Training]:
    """The runs that the chosen cells need, in the order in which they are made.

    A model trained by gradients on 1-shot tasks is tested on 1 and 5 shots, as the authors of MAML
    did; one that compares is trained for its number of shots, and tested on 5 and 20 ways.
    """
    cells = config.chosen_cells()
    plan = []
    data = () if config.data is None else ("--data", str(config.data))
    for seed in range(config.seeds):
        for method in config.chosen_methods():
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
                    *steps, "--seed", str(seed), *data,
                )  # fmt: skip
                size = f"{key[1]}shot" if method in METRIC else f"{key[1]}way"
                length = "" if config.steps is None else f"-{config.steps}"
                plan.append(
                    Training(
                        method=method,
                        main=(metric if method in METRIC else train).main,
                        options=options,
                        folder=f"{method}-{config.protocol}-{size}{length}-seed{seed}",
                        cells=tuple(served),
                        seed=seed,
                    )
                )
    return plan


def facts(method: str, cell: str) -> Facts:
    """What is published of a method in a cell."""
    if method in METRIC:
        name = METRIC[method]
        title, (source, figures) = comparing.TITLES[name], published.BY_COMPARISON[name]
    else:
        title, (source, figures) = published.TITLES[method], published.BY_GRADIENTS[method]
    return Facts(title, source, figures.get(CELLS[cell]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing, and the table anew after each training."""
    config = common.parse(Config, arguments, __doc__ or "")
    make_missing(
        config,
        Table(
            title=f"Omniglot, trained by the {config.protocol} schedules",
            about="Transductive figures are by MAML's protocol: as many query images a class as "
            "shots, rotated test classes, statistics of the query batch. The others have 15 query "
            "images a class, each predicted by itself. The paper's figure of a learner by "
            "gradients is transductive, that of one that compares isn't.",
            cells={name: f"{n_way}-way {k_shot}-shot" for name, (n_way, k_shot) in CELLS.items()},
            trainings=trainings,
            facts=facts,
        ),
    )


if __name__ == "__main__":
    common.guard(main)
