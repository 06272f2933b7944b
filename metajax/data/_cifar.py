"""CIFAR-FS and FC100: CIFAR-100's classes to train, to validate and to test."""

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

CIFAR_FS: dict[Split, tuple[str, ...]] = {
    part: tuple(text.split()) for part, text in _NAMES.items()
}
"""CIFAR-FS' split, by CIFAR-100's names, in alphabetical order."""

SUPERCLASSES: dict[Split, dict[str, str]] = {
    "train": {
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food_containers": "bottle bowl can cup plate",
        "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
        "household_electrical_devices": "clock keyboard lamp telephone television",
        "household_furniture": "bed chair couch table wardrobe",
        "large_man-made_outdoor_things": "bridge castle house road skyscraper",
        "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles_1": "bicycle bus motorcycle pickup_truck train",
        "vehicles_2": "lawn_mower rocket streetcar tank tractor",
    },
    "validation": {
        "large_carnivores": "bear leopard lion tiger wolf",
        "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
        "non-insect_invertebrates": "crab lobster snail spider worm",
        "small_mammals": "hamster mouse rabbit shrew squirrel",
    },
    "test": {
        "aquatic_mammals": "beaver dolphin otter seal whale",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "medium_mammals": "fox porcupine possum raccoon skunk",
        "people": "baby boy girl man woman",
    },
}
"""FC100's split, by CIFAR-100's superclasses of five classes each."""

FC100: dict[Split, tuple[str, ...]] = {
    part: tuple(sorted(" ".join(found.values()).split())) for part, found in SUPERCLASSES.items()
}
"""FC100's split, by CIFAR-100's names, in alphabetical order."""


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
    return _classes(CIFAR_FS, split)


def fc100(split: Split = "train") -> ClassData:
    """The classes of a split, 600 colour images of 32 × 32 pixels each.

    No two splits share one of CIFAR-100's superclasses, so that test classes are unlike those of
    the training: harder than ``cifar_fs``, which is read from the same places and cached with it.

    Args:
        split: ``"train"`` (60 classes), ``"validation"`` (20) or ``"test"`` (20).

    Returns:
        ``ClassData`` with examples ``[classes * 600, 32, 32, 3]`` in uint8, and the classes' names.

    Raises:
        metajax.data.DataNotFoundError: as ``cifar_fs``.
        metajax.data.CacheError: as ``cifar_fs``.
        ArgumentError: as ``cifar_fs``.

    Example:
        >>> fc100("test").examples.shape  # doctest: +SKIP
        (12000, 32, 32, 3)

    Source: Oreshkin et al. 2018, "TADAM" (arXiv 1805.10123), section 4.1.
    """
    return _classes(FC100, split)


def _classes(splits: dict[Split, tuple[str, ...]], split: Split) -> ClassData:
    """A split's classes, of all of CIFAR-100's."""
    one_of("split", split, get_args(Split))
    names = sorted(name for part in splits.values() for name in part)
    images = _images(names)[[names.index(name) for name in splits[split]]]
    return _equal_classes(images, splits[split])


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
