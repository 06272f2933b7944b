"""The papers' numbers on CIFAR-FS and FC100 beside ours, cell by cell.

python -m experiments.fewshot.cifar.table trains nine learners for 5-way tasks of 1 and 5 shots on
both data sets, and keeps one table of what is done so far. The same command goes on where it was
stopped; --methods and --cells take some of them, such as --methods maml --cells cifar-fs-1shot.
--body resnet12 takes the larger network. Each training is a run folder of its own, made by
experiments.fewshot.cifar.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, get_args

from experiments import common
from experiments.fewshot import table_plan
from experiments.fewshot.cifar import train
from experiments.fewshot.cifar.config import SHOTS, WAYS, Adapting, Comparing
from experiments.fewshot.cifar.published import BODIES, TITLES, Body, DataSet, published
from experiments.fewshot.table import make_missing
from experiments.fewshot.table_plan import Facts, Table, Training

NAMES: tuple[str, ...] = (*get_args(Comparing), "linear-probe", *get_args(Adapting))
CELLS: dict[str, tuple[DataSet, int]] = {
    f"{data_set}-{k_shot}shot": (data_set, k_shot)
    for data_set in get_args(DataSet)
    for k_shot in SHOTS
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(table_plan.Config):
    """Options of the table."""

    all_methods: ClassVar = NAMES
    all_cells: ClassVar = CELLS
    methods: str = ",".join(NAMES)
    """Which learners, with commas between."""
    cells: str = ",".join(CELLS)
    """Which cells, with commas between."""
    body: Body = "conv4"
    """The network: four convolutions, or ResNet-12."""
    out: Path = Path("runs/cifar-table")
    """Where the run folders and the table are."""


def trainings(config: Config) -> list[Training]:
    """The runs that the chosen cells need, in the order in which they are made.

    A model is trained for its number of shots; a linear probe's knows none.
    """
    plan = {}
    steps = () if config.steps is None else ("--steps", str(config.steps))
    length = "" if config.steps is None else f"-{config.steps}"
    for seed in range(config.seeds):
        for method in config.chosen_methods():
            for cell in config.chosen_cells():
                data_set, k_shot = CELLS[cell]
                shots = SHOTS if method == "linear-probe" else (k_shot,)
                size = "" if method == "linear-probe" else f"-{k_shot}shot"
                folder = f"{data_set}-{config.body}-{method}{size}{length}-seed{seed}"
                options = (
                    "--data-set", data_set, "--method", method, "--body", config.body,
                    "--k-shot", str(shots[0]), *steps, "--seed", str(seed),
                )  # fmt: skip
                plan[folder] = Training(
                    method=method,
                    main=train.main,
                    options=options,
                    folder=folder,
                    cells=tuple(f"{data_set}-{served}shot" for served in shots),
                    seed=seed,
                )
    return list(plan.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing, and the table anew after each training."""
    config = common.parse(Config, arguments, __doc__ or "")

    def facts(method: str, cell: str) -> Facts:
        data_set, k_shot = CELLS[cell]
        known = published(data_set, config.body, method)
        return Facts(TITLES[method], known.source, known.figures.get(k_shot))

    make_missing(
        config,
        Table(
            title=f"CIFAR-FS and FC100, {BODIES[config.body]}",
            about="15 query images a class. Transductive figures are by the statistics of the "
            "query batch; for the others each query image is predicted by itself. MAML's published "
            "figure is transductive, the others aren't.",
            cells={name: f"{WAYS}-way {k_shot}-shot" for name, (_, k_shot) in CELLS.items()},
            trainings=trainings,
            facts=facts,
        ),
    )


if __name__ == "__main__":
    common.guard(main)
