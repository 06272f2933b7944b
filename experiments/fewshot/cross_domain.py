"""Few-shot learners on images of another kind than those they were trained on.

python -m experiments.fewshot.cross_domain --cyrillic FILE trains the learners of both tables, or
takes the models that are there, and tests them on 5-way tasks of other data: those of Omniglot on
handwritten Cyrillic letters, those of CIFAR-FS on the classes of FC100's test superclasses that
CIFAR-FS doesn't train on. Beside them stands the nearest class mean of the pixels as they are. The
same command goes on where it was stopped.

FILE is a folder with a folder of images for each letter, or an npz file with images x
[images, 28, 28] and letters y.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp

import metajax
from experiments import common
from experiments.fewshot import table_plan, target_domain
from experiments.fewshot.cifar import config as cifar
from experiments.fewshot.cifar import table as cifar_table
from experiments.fewshot.cifar.published import TITLES
from experiments.fewshot.comparing import QUERY_AT_TEST, evaluation
from experiments.fewshot.omniglot import table as omniglot_table
from experiments.fewshot.table import make_missing
from experiments.fewshot.table_plan import Facts, Table, Training
from experiments.fewshot.target_domain import FC100, WAYS, TargetDomain
from experiments.fewshot.training import measure
from metajax.errors import ArgumentError

PIXELS = "pixels"
OMNIGLOT: dict[str, omniglot_table.Name] = {
    omniglot_table.METRIC.get(name, name): name for name in omniglot_table.NAMES
}
"""The names of Omniglot's table, by the learner."""
NAMES: tuple[str, ...] = (PIXELS, *dict.fromkeys([*cifar_table.NAMES, *OMNIGLOT]))
CELLS: dict[str, tuple[str, int]] = {
    f"{domain}-{k_shot}shot": (domain, k_shot)
    for domain in ("cyrillic", FC100)
    for k_shot in (1, 5)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(table_plan.Config):
    """Options of the table."""

    all_methods: ClassVar = NAMES
    all_cells: ClassVar = CELLS
    methods: str = ",".join(NAMES)
    """Which learners, with commas between; pixels is the nearest class mean without a network."""
    cells: str = ",".join(CELLS)
    """Which cells, with commas between."""
    cyrillic: Path | None = None
    """Images of Cyrillic letters: a folder, or an npz file."""
    data: Path | None = None
    """Folder with Omniglot's zip files; as for omniglot itself."""
    out: Path = Path("runs/cross-domain")
    """Where the table is; the models are in omniglot-table and cifar-table beside it."""


def domain_of(config: Config, name: str) -> TargetDomain:
    """One of the two target domains."""
    if name == FC100:
        asked = dataclasses.replace(cifar.preset(), target_domain=FC100)
        found = cifar.target_of(asked, cifar.load("cifar-fs"))
    else:
        found = target_domain.read(str(config.cyrillic), size=28, channels=1, known=())
    assert found is not None
    return found


def trainings(config: Config) -> list[Training]:
    """The runs that the chosen cells need: the tables', and the pixels' own."""
    methods, chosen = config.chosen_methods(), config.chosen_cells()
    shared = {"seeds": config.seeds, "steps": config.steps}
    plan = []
    for domain in dict.fromkeys(CELLS[cell][0] for cell in chosen):
        if domain == "cyrillic" and config.cyrillic is None:
            continue
        shots = {CELLS[cell][1] for cell in chosen if CELLS[cell][0] == domain}
        if PIXELS in methods:
            served = tuple(f"{domain}-{k_shot}shot" for k_shot in (1, 5))
            main = functools.partial(evaluate_pixels, config, domain)
            plan.append(Training(PIXELS, main, (), f"pixels-{domain}", served, 0))
        if domain == FC100:
            source, folder, names = FC100, "cifar-table", {n: n for n in cifar_table.NAMES}
            cells = {f"cifar-fs-{k_shot}shot": f"{domain}-{k_shot}shot" for k_shot in (1, 5)}
            make, options = cifar_table, shared
        else:
            source, folder, names = str(config.cyrillic), "omniglot-table", OMNIGLOT
            cells = {f"5w{k_shot}s": f"{domain}-{k_shot}shot" for k_shot in (1, 5)}
            make, options = omniglot_table, shared | {"data": config.data}
        wanted = {names[method]: method for method in methods if method in names}
        if not wanted:
            continue
        needed = [cell for cell, ours in cells.items() if CELLS[ours][1] in shots]
        every = make.Config(methods=",".join(wanted), cells=",".join(needed), **options)
        plan += [
            training._replace(
                method=wanted[training.method],
                options=(*training.options, "--target-domain", source),
                folder=f"../{folder}/{training.folder}",
                cells=tuple(cells[cell] for cell in training.cells),
            )
            for training in make.trainings(every)
        ]
    return plan


def evaluate_pixels(config: Config, name: str, options: Sequence[str]) -> None:
    """Tests the nearest class mean of the pixels; leaves a run's result in the folder ``--out``."""
    started = time.perf_counter()
    domain, folder = domain_of(config, name), Path(options[options.index("--out") + 1])
    learner = metajax.prototypical(lambda _, images: images.reshape(len(images), -1), n_way=WAYS)
    tests = [
        evaluation(domain.task(k_shot), learner, domain.sample(k_shot, QUERY_AT_TEST), None, PIXELS)
        for k_shot in (1, 5)
    ]
    rows, _ = measure(jnp.zeros(()), tests, episodes=config.test_episodes)
    folder.mkdir(parents=True, exist_ok=True)
    common.write_report(
        folder,
        common.Report(
            title=f"Nearest class mean of the pixels on {domain.name}",
            metric="accuracy in % ± 95 % CI",
            source="none",
            schedule="no training",
            training={"steps": 0},
            rows=rows,
            seconds={"training": 0.0, "evaluation": time.perf_counter() - started},
            command=common.command("experiments.fewshot.cross_domain", config),
            environment=common.environment(),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes what is missing, and the table anew after each training."""
    config = common.parse(Config, arguments, __doc__ or "")
    if config.cyrillic is None and "cyrillic" in config.cells:
        raise ArgumentError(
            "cyrillic must name the letters' images, or cells be without them; got None"
        )
    names = {"cyrillic": config.cyrillic and config.cyrillic.stem, FC100: "FC100"}
    titles = TITLES | {PIXELS: "Nearest class mean of the pixels"}
    make_missing(
        config,
        Table(
            title="Across domains",
            about="5-way tasks, 15 query images a class. Cyrillic letters: models trained on "
            "Omniglot, images as they are. FC100: models trained on CIFAR-FS, classes of FC100's "
            "test superclasses without those that CIFAR-FS trains on. Transductive figures are by "
            "the statistics of the query batch; for the others each query image is predicted by "
            "itself.",
            cells={
                cell: f"{WAYS}-way {k_shot}-shot, {names[domain]}"
                for cell, (domain, k_shot) in CELLS.items()
            },
            trainings=trainings,
            facts=lambda method, cell: Facts(titles[method], "none", None),
        ),
    )


if __name__ == "__main__":
    common.guard(main)
