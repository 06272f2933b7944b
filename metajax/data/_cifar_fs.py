"""CIFAR-FS: CIFAR-100's classes in 64 to train, 16 to validate and 20 to test."""

from typing import Any, Literal, get_args

import numpy as np

from metajax._checks import one_of
from metajax.data import _cache, _tfds
from metajax.data.episodes import ClassData, _equal_classes
from metajax.errors import ArgumentError

Split = Literal["train", "validation", "test"]

SIZE = 32
PER_CLASS = 600

_NAMES: dict[Split, str] = {
    "train": (
        "apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock"
        " cloud cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo"
        " keyboard lawn_mower lion lizard lobster mountain mouse mushroom oak_tree orange orchid"
        " palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road seal shrew skunk"
        " skyscraper snake spider squirrel streetcar sunflower tank tiger train trout tulip turtle"
        " willow_tree wolf"
    ),
    "validation": (
        "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle"
        " otter sea shark television tractor"
    ),
    "test": (
        "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail"
        " sweet_pepper table telephone wardrobe whale woman worm"
    ),
}

CLASSES: dict[Split, tuple[str, ...]] = {part: tuple(text.split()) for part, text in _NAMES.items()}
"""The published split, by CIFAR-100's names, in alphabetical order."""


def cifar_fs(split: Split = "train") -> ClassData:
    """The classes of a split, 600 colour images of 32 × 32 pixels each.

    They are looked for in the cache (``METAJAX_CACHE``, or the user's own cache folder), then in
    what tensorflow-datasets has prepared of ``cifar100`` (in ``TFDS_DATA_DIR`` or
    ``~/tensorflow_datasets``, read without TensorFlow), then downloaded through
    tensorflow-datasets, which needs TensorFlow: ``metajax[prepare]``. CIFAR-100's training and test
    images are taken together, and put in order by their own bytes.

    Args:
        split: ``"train"`` (64 classes), ``"validation"`` (16) or ``"test"`` (20).

    Returns:
        ``ClassData`` with examples ``[classes * 600, 32, 32, 3]`` in uint8, and the classes' names.

    Raises:
        metajax.data.DataNotFoundError: if CIFAR-100 is at none of these places.
        metajax.data.CacheError: if the cache file is damaged or isn't metajax's.
        ArgumentError: if ``split`` is not one of its values, or the images are not all there.

    Example:
        >>> cifar_fs("test").examples.shape  # doctest: +SKIP
        (12000, 32, 32, 3)

    Source: Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers"
    (arXiv 1805.08136), section 4.2.
    """
    one_of("split", split, get_args(Split))
    names = sorted(name for part in CLASSES.values() for name in part)
    images = _images(names)[[names.index(name) for name in CLASSES[split]]]
    return _equal_classes(images, CLASSES[split])


def _images(names: list[str]) -> np.ndarray:
    """All classes in the order of ``names``, from the cache or a source."""
    path = _cache.cache_folder() / "cifar-fs-v1.npz"
    cached = _cache.read(path, (len(names), PER_CLASS, SIZE, SIZE, 3))
    if cached is not None:
        return cached.images
    where, images = _tfds.find(
        "CIFAR-100",
        "cifar100",
        lambda builder: read(builder, names),
        tried=[f"the cache in {path.parent}: empty"],
        remedy="Let tensorflow-datasets download it: pip install 'metajax[prepare]'; or set\n"
        "TFDS_DATA_DIR to a folder where cifar100 has been prepared.",
    )
    counts = {name: len(images[name]) for name in names}
    wrong = [f"{name} has {count}" for name, count in counts.items() if count != PER_CLASS]
    if wrong:
        raise ArgumentError(
            f"{where} does not hold {PER_CLASS} images of each of CIFAR-100's classes: "
            f"{'; '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''}. Prepare it again."
        )
    array = np.stack([np.stack(sorted(images[name], key=bytes)) for name in names])
    _cache.write(path, _cache.Cached(array, ""), "CIFAR-FS")
    return array


def read(builder: Any, names: list[str]) -> dict[str, list[np.ndarray]]:
    """The images of each class, from both of CIFAR-100's splits."""
    label = builder.info.features["label"]
    images: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for split in ("train", "test"):
        for example in _tfds.examples(builder, split):
            images[label.int2str(int(example["label"]))].append(np.asarray(example["image"]))
    return images
