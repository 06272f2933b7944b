"""Options of the experiment on CIFAR-FS and FC100, its data and its networks."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import metajax
from experiments import common
from experiments.fewshot import comparing, target_domain
from experiments.fewshot.cifar.published import BODIES, Body, DataSet
from experiments.fewshot.target_domain import TargetDomain
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
from metajax.types import Sampler

Adapting = Literal["maml", "fomaml", "anil", "maml++", "proto-maml"]
Comparing = Literal["prototypical", "r2d2", "metaoptnet"]
Method = Literal[Adapting, Comparing, "linear-probe"]

SIZE, WAYS = 32, 5
SHOTS = (1, 5)
"""Of the tables' cells."""
TRAIN_WAY, QUERY = 20, 10
DROP, DROP_SIZE = 0.1, 2
"""Share of what a ResNet-12's blocks give that is dropped in training, and the side of the squares,
as published for images of 32 × 32."""
BORDER = 4
"""Pixels around an image, before it is cropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(comparing.Config):
    """Options of the experiment; those without a default have their method's."""

    data_set: DataSet = "cifar-fs"
    """CIFAR-FS, or FC100, whose splits share no superclass."""
    method: Method = "prototypical"
    """The learner; linear-probe is logistic regression on the features of a classifier of all
    training classes."""
    body: Body = "conv4"
    """The network: four convolutions, or ResNet-12."""
    features: int
    """Channels of the network's first block; a ResNet-12's others are in its proportion."""
    query: int
    """Query images of a class in training."""
    rate: float
    """Muon's peak learning rate."""
    augment: bool = True
    """Whether training images are cropped, mirrored and changed in colour."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "features", "query", "rate")
        if self.train_way < WAYS:
            raise ArgumentError(f"train_way must be at least {WAYS}; got {self.train_way}")
        if self.method in get_args(Adapting) and self.train_way != WAYS:
            raise ArgumentError(
                f"train_way must be {WAYS} with {self.method}, whose head has so many classes; got "
                f"{self.train_way}"
            )
        if self.method == "linear-probe" and (self.train_way, self.query) != (TRAIN_WAY, QUERY):
            raise ArgumentError(
                "train_way and query mean nothing to linear-probe, which trains on all classes; "
                f"got {self.train_way} and {self.query}"
            )

    @property
    def words(self) -> str:
        """Network, optimizer and augmentation, for the table."""
        changed = ", images cropped, mirrored and changed in colour" if self.augment else ""
        return (
            f"{BODIES[self.body]}, {self.features} channels; ours: Muon with warm-up and cosine "
            f"decay{changed}"
        )


def preset(method: Method = "prototypical", body: Body = "conv4", k_shot: int = 1) -> Config:
    """The config of a method's schedule."""
    options: dict = {"steps": 8000, "rate": 5e-3, "features": 64}
    options |= {"train_way": TRAIN_WAY, "query": QUERY}
    if method in get_args(Adapting):
        # 32 channels, as published for MAML.
        options |= {"steps": 12_000, "train_way": WAYS, "query": 15, "rate": 3e-3}
        if body == "conv4":
            options["features"] = 32
    return Config(method=method, body=body, k_shot=k_shot, **options)


def module_of(config: Config, **options) -> models.Conv4 | models.ResNet12:
    """The network, without a head unless ``n_classes`` asks for one."""
    options = {"n_classes": None, **options}
    if config.body == "conv4":
        return models.Conv4(features=config.features, form="pool", **options)
    widths = [config.features * width // 64 for width in (64, 160, 320, 640)]
    options.pop("head_init", None)
    return models.ResNet12(features=tuple(widths), drop=DROP, drop_size=DROP_SIZE, **options)


def plain(data: ClassData, n_way: int, k_shot: int, query: int) -> Sampler:
    """Episodes of the images as they are."""
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query)


def changed(sample: Sampler) -> Sampler:
    """The same episodes, of images that are cropped, mirrored and changed in colour."""
    return random_colours(random_flips(random_shifts(sample, BORDER)))


def augmented(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes of changed images."""
    return changed(plain(data, n_way, k_shot, query))


def target_of(config: Config, data: Mapping[str, ClassData]) -> TargetDomain | None:
    """The other data set that a config names."""
    source, known = config.target_domain, data["train"].names
    return target_domain.read(source, size=SIZE, channels=3, known=known)


def load(data_set: DataSet) -> dict[str, ClassData]:
    """The splits."""
    read = {"cifar-fs": cifar_fs, "fc100": fc100}[data_set]
    return {split: read(split) for split in ("train", "validation", "test")}
