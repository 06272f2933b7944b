"""The papers' figures on CIFAR-FS and FC100, 5-way: accuracy in % by method, network and shots."""

from typing import Literal, NamedTuple

from experiments.fewshot import comparing
from experiments.fewshot.comparing import UNCHECKED
from experiments.fewshot.omniglot import published as omniglot

DataSet = Literal["cifar-fs", "fc100"]
Body = Literal["conv4", "resnet12"]
BODIES: dict[Body, str] = {"conv4": "four convolutions", "resnet12": "ResNet-12"}

TITLES = {
    **omniglot.TITLES,
    **comparing.TITLES,
    "proto-maml": "Proto-MAML",
    "linear-probe": "Classification, then a linear probe",
}


class Published(NamedTuple):
    """Figures of one source.

    Attributes:
        source: where they are from.
        figures: by shots.
    """

    source: str
    figures: dict[int, str]


def _of(source: str, one: str, five: str) -> Published:
    return Published(source, {1: one + UNCHECKED, 5: five + UNCHECKED})


_BERTINETTO, _LEE, _TIAN = "Bertinetto et al. 2019", "Lee et al. 2019", "Tian et al. 2020"
_PUBLISHED: dict[tuple[DataSet, Body, str], Published] = {
    ("cifar-fs", "conv4", "maml"): _of(_BERTINETTO, "58.9 ± 1.9", "71.5 ± 1.0"),
    ("cifar-fs", "conv4", "prototypical"): _of(_BERTINETTO, "55.5 ± 0.7", "72.0 ± 0.6"),
    ("cifar-fs", "conv4", "r2d2"): _of(_BERTINETTO, "62.3 ± 0.2", "77.4 ± 0.1"),
    ("cifar-fs", "resnet12", "prototypical"): _of(_LEE, "72.2 ± 0.7", "83.5 ± 0.5"),
    ("cifar-fs", "resnet12", "metaoptnet"): _of(_LEE, "72.0 ± 0.7", "84.2 ± 0.5"),
    ("cifar-fs", "resnet12", "linear-probe"): _of(_TIAN, "71.5 ± 0.8", "86.0 ± 0.5"),
    ("fc100", "resnet12", "prototypical"): _of(_LEE, "37.5 ± 0.6", "52.5 ± 0.6"),
    ("fc100", "resnet12", "metaoptnet"): _of(_LEE, "41.1 ± 0.6", "55.5 ± 0.6"),
    ("fc100", "resnet12", "linear-probe"): _of(_TIAN, "42.6 ± 0.7", "59.1 ± 0.6"),
}
"""MAML's are transductive, the others aren't."""


def published(data_set: DataSet, body: Body, method: str) -> Published:
    """What is known of a method; nothing, perhaps."""
    return _PUBLISHED.get((data_set, body, method), Published("no figure is known", {}))
