"""The table's options, its cells, and the trainings that they need."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from experiments import common
from experiments.fewshot.omniglot.networks import Method
from experiments.fewshot.omniglot.schedules import Protocol
from metajax.errors import ArgumentError

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
    """Folder with Omniglot's zip files; as for omniglot itself."""
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
        compares: whether ``omniglot.metric`` trains it, or else ``omniglot``.
        options: its command line, without folders.
        folder: the run folder's name.
        cells: names of the cells.
        seed: the run's seed.
    """

    method: str
    compares: bool
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
                        compares=method in METRIC,
                        options=options,
                        folder=f"{method}-{config.protocol}-{size}{length}-seed{seed}",
                        cells=tuple(served),
                        seed=seed,
                    )
                )
    return plan
