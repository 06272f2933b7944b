"""The papers' figures on CIFAR-FS and FC100, 5-way: accuracy in % by method, network and shots."""

from typing import Literal, NamedTuple

from experiments.fewshot.comparing import UNCHECKED

DataSet = Literal["cifar-fs", "fc100"]
Body = Literal["conv4", "resnet12"]


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


_BERTINETTO, _LEE = "Bertinetto et al. 2019", "Lee et al. 2019"
PUBLISHED: dict[tuple[DataSet, Body, str], Published] = {
    ("cifar-fs", "conv4", "prototypical"): _of(_BERTINETTO, "55.5 ± 0.7", "72.0 ± 0.6"),
    ("cifar-fs", "conv4", "r2d2"): _of(_BERTINETTO, "62.3 ± 0.2", "77.4 ± 0.1"),
    ("cifar-fs", "resnet12", "prototypical"): _of(_LEE, "72.2 ± 0.7", "83.5 ± 0.5"),
    ("cifar-fs", "resnet12", "metaoptnet"): _of(_LEE, "72.0 ± 0.7", "84.2 ± 0.5"),
    ("fc100", "resnet12", "prototypical"): _of(_LEE, "37.5 ± 0.6", "52.5 ± 0.6"),
    ("fc100", "resnet12", "metaoptnet"): _of(_LEE, "41.1 ± 0.6", "55.5 ± 0.6"),
}
"""None are transductive."""
NOTHING = Published("no figure is known", {})
