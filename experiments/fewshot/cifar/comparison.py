"""Learners that compare images, on CIFAR-FS and FC100, beside the papers' numbers.

python -m experiments.fewshot.cifar trains Prototypical Networks with the four-layer network on
5-way 1-shot tasks of CIFAR-FS: training images are cropped after a border of four pixels, mirrored
and changed in colour, on the device, as published; Muon with warm-up and cosine decay is ours. The
model is tested on 5-way tasks with 15 query images a class, with running statistics: no query image
sees another one.

--data-set fc100 takes FC100, --method r2d2 or metaoptnet another learner, --body resnet12 the
larger network, and --k-shot the shots of training and test.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

import metajax
from experiments import common
from experiments.fewshot import comparing
from experiments.fewshot.cifar.published import NOTHING, PUBLISHED, Body, DataSet
from experiments.fewshot.schedules import muon, warmup_cosine
from metajax import models
from metajax.data import (
    ClassData,
    cifar_fs,
    episode_sampler,
    fc100,
    random_colours,
    random_flips,
    random_shifts,
)
from metajax.errors import ArgumentError

Method = Literal["prototypical", "r2d2", "metaoptnet"]

WAYS = 5
BORDER = 4
"""Pixels around an image, before it is cropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(comparing.Config):
    """Options of the experiment; steps and train_way are by default the schedule's."""

    data_set: DataSet = "cifar-fs"
    """CIFAR-FS, or FC100, whose splits share no superclass."""
    method: Method = "prototypical"
    """The learner."""
    body: Body = "conv4"
    """The network: four convolutions, or ResNet-12."""
    features: int = 64
    """Channels of the network's first block; a ResNet-12's others are in its proportion."""
    query: int = 10
    """Query images of a class in training."""
    rate: float = 5e-3
    """Muon's peak learning rate."""
    augment: bool = True
    """Whether training images are cropped, mirrored and changed in colour."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "features", "query", "rate")
        if self.train_way < WAYS:
            raise ArgumentError(f"train_way must be at least {WAYS}; got {self.train_way}")


def preset(method: Method = "prototypical", body: Body = "conv4", k_shot: int = 1) -> Config:
    """The config of a method's schedule."""
    return Config(method=method, body=body, k_shot=k_shot, steps=8000, train_way=20)


def network_of(config: Config, key: jax.Array) -> comparing.Network:
    """A network without a head; its statistics are kept."""
    if config.body == "conv4":
        body: models.Conv4 | models.ResNet12 = models.Conv4(
            None, features=config.features, form="pool", norm="running"
        )
    else:
        widths = [config.features * width // 64 for width in (64, 160, 320, 640)]
        body = models.ResNet12(None, features=tuple(widths), norm="running")
    variables, apply = metajax.from_linen(body, key, jnp.zeros((1, 32, 32, 3)))
    return comparing.Network(variables, comparing.reporting(apply))


def test_sampler(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes of the images as they are."""
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query)


def augmented(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes of images that are cropped, mirrored and changed in colour."""
    sample = test_sampler(data, n_way, k_shot, query)
    return random_colours(random_flips(random_shifts(sample, BORDER)))


def load(data_set: DataSet) -> dict[str, ClassData]:
    """The splits."""
    read = {"cifar-fs": cifar_fs, "fc100": fc100}[data_set]
    return {split: read(split) for split in ("train", "validation", "test")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "", preset=preset)
    name = f"{config.data_set}-{config.body}-{config.method}-{config.k_shot}shot"
    run = common.open_run(name, config)
    network = network_of(config, comparing.keys_of(config)[0])
    published = PUBLISHED.get((config.data_set, config.body, config.method), NOTHING)
    body = {"conv4": "four convolutions", "resnet12": "ResNet-12"}[config.body]
    table = comparing.train_and_test(
        run,
        config,
        comparing.Comparison(
            method=config.method,
            data_set=config.data_set.upper(),
            source=published.source,
            published={(WAYS, shots): figure for shots, figure in published.figures.items()},
            network=network,
            description=f"{body}, {config.features} channels; ours: Muon with warm-up and cosine "
            f"decay{', images cropped, mirrored and changed in colour' if config.augment else ''}",
            optimizer=muon(warmup_cosine(config.rate, config.steps)),
            data=load(config.data_set),
            sample=augmented if config.augment else test_sampler,
            test_sample=test_sampler,
            query=config.query,
            ways=(WAYS,),
        ),
        command=common.command("experiments.fewshot.cifar", config, preset=preset),
    )
    print(f"\n{table}\nEverything is in {run.path}.")
