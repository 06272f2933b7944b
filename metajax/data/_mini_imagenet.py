"""miniImageNet from a folder of the user's, in the split of Ravi and Larochelle."""

import os
from pathlib import Path
from typing import Literal, get_args

from metajax._checks import one_of, positive_int
from metajax.data import _image_files
from metajax.data._tfds import DataNotFoundError
from metajax.data.episodes import ClassData
from metajax.errors import ArgumentError

Split = Literal["train", "validation", "test"]

_NAMES: dict[Split, str] = {
    "train": (
        "n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 "
        "n02089867 n02091831 n02101006 n02105505 n02108089 n02108551 n02108915 n02111277 "
        "n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 n02747177 n02795169 "
        "n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 "
        "n03347037 n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 "
        "n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548 "
        "n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 n04604644 "
        "n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613"
    ),
    "validation": (
        "n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 "
        "n03075370 n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479"
    ),
    "test": (
        "n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 "
        "n02443484 n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 "
        "n04149813 n04418357 n04522168 n07613480"
    ),
}

CLASSES: dict[Split, tuple[str, ...]] = {part: tuple(text.split()) for part, text in _NAMES.items()}
"""The published split, by ImageNet's class identifiers, in their order."""

_SUBFOLDERS = ("", "train", "val", "validation", "test", "images")


def mini_imagenet(
    folder: str | os.PathLike[str], split: Split = "train", *, size: int = 84
) -> ClassData:
    """The classes of a split, from a folder with a subfolder of images for each.

    The subfolders have ImageNet's identifiers (``n01532829``) as names. Each may lie in the folder
    itself or in its ``train``, ``val``, ``validation``, ``test`` or ``images``: only the identifier
    decides the split.

    Args:
        folder: where the classes lie. There is no download: ImageNet's licence forbids passing its
            images on.
        split: ``"train"`` (64 classes), ``"validation"`` (16) or ``"test"`` (20).
        size: height and width that images are resized to, in pixels.

    Returns:
        ``ClassData`` with examples ``[classes * 600, size, size, 3]`` in uint8 (or as many as there
        are), classes in the order of their identifiers, which are their names.

    Raises:
        metajax.data.DataNotFoundError: if a class of the split is not there; it lists which.
        ArgumentError: if ``split`` is not one of its values, a class is there twice or empty, or a
            file is not an image.

    Example:
        >>> mini_imagenet("my_imagenet", "test").examples.shape  # doctest: +SKIP
        (12000, 84, 84, 3)

    Source: Ravi and Larochelle 2017, "Optimization as a Model for Few-Shot Learning".
    """
    one_of("split", split, get_args(Split))
    root = Path(folder).expanduser()
    found = {name: _places(root, name) for name in CLASSES[split]}
    missing = [name for name, places in found.items() if not places]
    if missing:
        raise DataNotFoundError(
            f"folder={os.fspath(folder)!r} lacks {len(missing)} of the {len(found)} classes of "
            f"miniImageNet's {split} split: {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}. Each is a subfolder of that name."
        )
    for name, places in found.items():
        if len(places) > 1:
            raise ArgumentError(f"class {name} is there twice: {' and '.join(map(str, places))}.")
    folders = [places[0] for places in found.values()]
    images, counts = _image_files.read_classes(folders, positive_int("size", size), "RGB")
    return ClassData(images, counts, CLASSES[split])


def _places(root: Path, name: str) -> list[Path]:
    return [root / part / name for part in _SUBFOLDERS if (root / part / name).is_dir()]
