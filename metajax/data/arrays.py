"""A user's own data: arrays with labels, or a folder of images; and splits of its classes."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._checks import one_of, positive_int
from metajax.data import _image_files
from metajax.data._tfds import DataNotFoundError
from metajax.data.episodes import ClassData, _warn_if_channels_first
from metajax.errors import ArgumentError


def from_arrays(inputs: Any, labels: Any) -> ClassData:
    """Groups labelled examples by class.

    Args:
        inputs: array ``[examples, ...]``: uint8 for images with values from 0 to 255
            (``[examples, H, W]`` or ``[examples, H, W, channels]``), or any numbers.
        labels: ``[examples]``: integers, strings, or anything else that can be sorted.

    Returns:
        ``ClassData``; its classes are the distinct labels in ascending order, which are also their
        names.

    Raises:
        ArgumentError: if there are no examples, they differ in shape or aren't numbers, there isn't
            one label for each, or inputs or labels are NaN or infinite.

    Warns:
        UserWarning: if images seem to have their channels first.

    Example:
        >>> import numpy as np
        >>> images = np.zeros([6, 28, 28], np.uint8)
        >>> data = from_arrays(images, ["cat", "dog", "cat", "owl", "dog", "cat"])
        >>> data.examples.shape, dict(zip(data.names, data.counts.tolist()))
        ((6, 28, 28), {'cat': 3, 'dog': 2, 'owl': 1})
    """
    inputs = _example_array("inputs", inputs)
    labels = _checks.numbers("labels", labels, "[examples]")
    if inputs.size == 0 or labels.shape != inputs.shape[:1]:
        raise ArgumentError(
            "inputs must be [examples, ...] and not empty, and labels [examples], got shapes "
            f"{inputs.shape} and {labels.shape}."
        )
    _warn_if_channels_first("inputs", inputs)
    if jnp.issubdtype(inputs.dtype, jnp.inexact):
        finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if not finite.all():
            raise ArgumentError(
                f"inputs has NaN or infinite values in {np.sum(~finite)} of {len(inputs)} examples"
                f" (the first is number {np.argmin(finite)}). Remove or repair them."
            )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ArgumentError("labels has NaN or infinite values. Remove those examples.")
    try:
        names, classes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ArgumentError(f"labels must be of one kind that can be sorted: {error}.") from error
    order = np.argsort(classes, kind="stable")
    return ClassData(inputs[order], np.bincount(classes).astype(np.int32), tuple(map(str, names)))


def from_folder(
    path: str | os.PathLike[str],
    *,
    size: int = 84,
    mode: _image_files.Mode = "RGB",
    depth: int = 1,
) -> ClassData:
    """Reads a folder that has a subfolder of images for each class.

    Every image is turned upright as its EXIF data say, put on white where it is transparent, and
    resized to a square, whatever its size and proportions. Of an animation the first image counts.
    Passed over are names that begin with a dot, the files that Windows and macOS leave in folders,
    and files beside the classes' folders.

    Args:
        path: the folder; its subfolders, in the order of their names, are the classes.
        size: height and width of the images, in pixels.
        mode: ``"RGB"`` for colour (3 channels) or ``"L"`` for grey (1 channel).
        depth: how many levels below ``path`` the classes' folders lie: 2 for
            ``path/alphabet/character``. A folder with ``train`` and ``test`` in it is no such case:
            pass each by its own path.

    Returns:
        ``ClassData`` with examples ``[examples, size, size, channels]`` in uint8, and the folders'
        names (``"alphabet/character"``). The values are the files' (dark on light is not inverted).

    Raises:
        metajax.data.DataNotFoundError: if there is nothing at ``path``.
        ArgumentError: if it is no folder, has no subfolders, or one of them is empty or has folders
            in it; or if a file is not an image with 8 bits a channel, in a common format and of at
            most 2**26 pixels, or is white on transparent. The message names the file.

    Example:
        >>> data = from_folder("my_images", size=84)  # doctest: +SKIP
        >>> data.names  # doctest: +SKIP
        ('cat', 'dog', 'owl')
    """
    positive_int("size", size)
    one_of("mode", mode, get_args(_image_files.Mode))
    root = _checks.path_of("path", path)
    if not root.exists():
        raise DataNotFoundError(f"path={str(path)!r} does not exist.")
    folders = [root]
    for _ in range(positive_int("depth", depth)):
        folders = [inner for folder in folders for inner in _image_files.subfolders(folder)]
    names = tuple(folder.relative_to(root).as_posix() for folder in folders)
    remedy = (
        "If the folders of this level are parts of the data (train, test), pass one of them: "
        f"from_folder({str(folders[0])!r}). If they are groups of classes (alphabets), pass "
        f"depth={depth + 1}."
    )
    return ClassData(*_image_files.read_classes(folders, size, mode, remedy=remedy), names)


def _example_array(name: str, value: Any) -> np.ndarray:
    """Examples as a NumPy array, or an ArgumentError if they differ in shape or aren't numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        shapes = [_shape(each) for each in value]
        found = [f"{shape} (number {shapes.index(shape)})" for shape in dict.fromkeys(shapes)]
        raise ArgumentError(
            f"{name} must be examples of one shape, got {', '.join(found[:3])}"
            f"{' and others' if len(found) > 3 else ''}. Resize them; from_folder(size=) does."
        ) from error
    if not _checks.is_array(array):
        raise ArgumentError(f"{name} must be an array of numbers, got {_checks.shown(value)}.")
    return array


def _shape(value: Any) -> tuple[int, ...] | str:
    try:
        return tuple(np.shape(value))  # PyTorch's shape is of a class of its own
    except (ValueError, TypeError):
        return "rows of different lengths"


def select_classes(data: ClassData, classes: Any) -> ClassData:
    """Some of the classes, in the order given.

    Args:
        data: the classes to choose from.
        classes: indices ``[selected]``, or a boolean mask ``[classes]``.

    Raises:
        ArgumentError: if it selects nothing, an index twice, or a negative one.
        IndexError: if an index, or a mask's length, doesn't fit the classes.

    Example:
        >>> import numpy as np
        >>> data = from_arrays(np.arange(6.0), [0, 0, 0, 1, 1, 2])
        >>> select_classes(data, data.counts >= 2).counts.tolist()
        [3, 2]
    """
    total = len(data.counts)
    indices = np.arange(total)[np.asarray(classes)]
    if indices.size == 0 or len(np.unique(indices)) != len(indices) or np.min(classes) < 0:
        raise ArgumentError(
            f"classes must select at least one of the {total} classes, each once and counted from "
            f"0, got {classes}."
        )
    counts, starts = np.asarray(data.counts)[indices], data.starts[indices]
    rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
    names = tuple(data.names[i] for i in indices) if data.names else ()
    return ClassData(data.examples[rows], counts, names)


def split_classes(
    data: ClassData, fractions: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int = 0
) -> tuple[ClassData, ...]:
    """Divides the classes into parts without a class in common, such as train and test.

    The same arguments give the same parts on every machine and with every version of JAX and
    NumPy. Leave ``seed`` alone when the seed of a run changes, or test classes of one run will be
    training classes of another.

    Args:
        data: the classes.
        fractions: the parts' shares of the classes; they add up to 1.
        seed: picks one of the possible splits, an integer.

    Raises:
        ArgumentError: if the fractions don't add up to 1, or a part would have no class.

    Example:
        >>> import numpy as np
        >>> data = from_arrays(np.arange(20.0), np.arange(20) // 2)
        >>> train, test = split_classes(data, (0.8, 0.2))
        >>> len(train.counts), len(test.counts)
        (8, 2)
    """
    total = len(data.counts)
    if min(fractions, default=0) <= 0 or abs(math.fsum(fractions) - 1) > 1e-6:
        raise ArgumentError(f"fractions must be positive and add up to 1, got {tuple(fractions)}.")
    ends = [round(total * math.fsum(fractions[: i + 1])) for i in range(len(fractions))]
    starts = [0, *ends[:-1]]
    if any(start == end for start, end in zip(starts, ends, strict=True)):
        raise ArgumentError(
            f"fractions={tuple(fractions)} leaves a part of the {total} classes without a class."
            " Take fewer or larger parts."
        )
    order = _fixed_order(total, f"metajax split {seed:d}")
    return tuple(
        select_classes(data, sorted(order[start:end]))
        for start, end in zip(starts, ends, strict=True)
    )


def _fixed_order(n: int, salt: str) -> list[int]:
    """A permutation of ``range(n)`` that no version of any library can change."""
    return sorted(range(n), key=lambda i: hashlib.sha256(f"{salt} {i}".encode()).digest())
