"""Images of another kind than those of the training, to test a model on: across domains."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import common
from metajax.data import ClassData, episode_sampler, fc100, from_arrays, from_folder, select_classes
from metajax.files import open_to_read
from metajax.types import Sampler

WAYS = 5
FC100 = "fc100"


class TargetDomain(NamedTuple):
    """Another data set.

    Attributes:
        name: for the table.
        data: its classes; no model has seen any.
    """

    name: str
    data: ClassData

    def task(self, k_shot: int) -> str:
        """What a row of the table calls it."""
        return f"{WAYS}-way {k_shot}-shot, {self.name}"

    def sample(self, k_shot: int, query: int) -> Sampler:
        """Draws test tasks of the images as they are."""
        return episode_sampler(self.data, n_way=WAYS, k_shot=k_shot, query=query)


def read(
    source: str | None, *, size: int, channels: int, known: Sequence[str]
) -> TargetDomain | None:
    """Reads images of another kind.

    Args:
        source: a folder with a folder of images for each class; an npz file with images ``x``
            ``[images, size, size]`` or ``[images, size, size, channels]`` and classes ``y``; or
            ``fc100``, whose test superclasses are meant, without the classes that are known.
            Nothing for None.
        size: height and width of the images that the model was trained on.
        channels: of these; grey ones are light on dark, and dark writing is turned into such.
        known: names of the classes that the model was trained on.

    Raises:
        RunError: it can't be read, or its images don't fit the model.
    """
    if source is None:
        return None
    if source == FC100:
        data = fc100("test")
        new = [name not in known for name in data.names]
        return _checked(source, TargetDomain("FC100", select_classes(data, new)), size, channels)
    path = Path(source)
    try:
        if path.suffix == ".npz":
            with open_to_read(path) as file, np.load(file, allow_pickle=False) as arrays:
                data = from_arrays(arrays["x"], arrays["y"])
        else:
            data = from_folder(path, size=size, mode="L" if channels == 1 else "RGB")
    except (OSError, ValueError, KeyError) as error:
        raise common.RunError(f"target_domain: {source} can't be read: {error}") from error
    if channels == 1 and np.median(data.examples) > 127:
        data = ClassData(255 - np.asarray(data.examples), data.counts, data.names)
    return _checked(source, TargetDomain(path.stem, data), size, channels)


def _checked(source: str, found: TargetDomain, size: int, channels: int) -> TargetDomain:
    images = np.asarray(found.data.examples)
    shape = (*images.shape[1:], 1)[:3]
    if images.dtype != np.uint8 or shape != (size, size, channels):
        raise common.RunError(
            f"target_domain: the model needs images of shape {(size, size, channels)} in uint8; "
            f"{source} has {images.shape[1:]} in {images.dtype}"
        )
    return found
