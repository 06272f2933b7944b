"""What a table of learners is made of: its options, its cells, and the trainings that they need."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from experiments import common
from metajax.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options that the tables share; methods and cells have names with commas between."""

    all_methods: ClassVar[Sequence[str]]
    all_cells: ClassVar[Iterable[str]]
    methods: str
    """Which learners, with commas between."""
    cells: str
    """Which cells, with commas between."""
    seeds: int = 1
    """How many seeds, from 0 on."""
    steps: int | None = None
    """Meta-steps of every training; without it, the schedules' own."""
    test_episodes: int = 1000
    """Test tasks in each cell, of each seed."""
    out: Path
    """Where the run folders and the table are."""

    def __post_init__(self) -> None:
        common.check_positive(self, "seeds", "steps")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")
        self.chosen_methods()
        self.chosen_cells()

    def chosen_methods(self) -> list[str]:
        """The names in ``methods``, in the table's order."""
        return chosen(self.methods, "methods", self.all_methods)

    def chosen_cells(self) -> list[str]:
        """The names in ``cells``, in the table's order."""
        return chosen(self.cells, "cells", self.all_cells)

    def everything(self) -> Self:
        """The same with all methods and cells."""
        every = {"methods": ",".join(self.all_methods), "cells": ",".join(self.all_cells)}
        return dataclasses.replace(self, **every)


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
        method: the learner's name in the table.
        main: the experiment, which takes a command line.
        options: its command line, without folders.
        folder: the run folder's name.
        cells: names of the cells.
        seed: the run's seed.
    """

    method: str
    main: Callable[[Sequence[str]], Any]
    options: tuple[str, ...]
    folder: str
    cells: tuple[str, ...]
    seed: int


class Facts(NamedTuple):
    """What is published of a method in a cell.

    Attributes:
        title: the method's name in words.
        source: where the figure is from.
        figure: the accuracy in %, as printed; None where there is none.
    """

    title: str
    source: str
    figure: str | None


class Table(NamedTuple):
    """A table's contents.

    Attributes:
        title: its heading.
        about: what the figures are, in words.
        cells: names of the cells, each with the task as a run's result calls it.
        trainings: the runs that a config's cells need, in the order in which they are made.
        facts: ``facts(method, cell)``.
    """

    title: str
    about: str
    cells: Mapping[str, str]
    trainings: Callable[[Any], list[Training]]
    facts: Callable[[str, str], Facts]
