"""A user's own data: arrays with labels, or a folder of images; and splits of its classes."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from metajax._checks import one_of, positive_int
from metajax.data import _image_files
from metajax.data.episodes import ClassData
from metajax.errors import ArgumentError


def from_arrays(inputs: Any, labels: Any) -> ClassData:
    """Groups labelled examples by class.

    Args:
        inputs: array ``[examples, ...]``: uint8 for images with values from 0 to 255
            (``[examples, H, W]`` or ``[examples, H, W, channels]``), or any numbers.
        labels: ``[examples]``: integers, strings, or anything else that can be sorted.

    Returns:
        ``ClassData``; its classes are the distinct labels in ascending order. Classes smaller
        than the largest are padded with zeros, which are never drawn.

    Raises:
        ArgumentError: if there are no examples, there isn't one label for each, or inputs or labels
            are NaN or infinite.

    Example:
        >>> import numpy as np
        >>> images = np.zeros([6, 28, 28], np.uint8)
        >>> data = from_arrays(images, ["cat", "dog", "cat", "owl", "dog", "cat"])
        >>> data.examples.shape, data.counts.tolist()
        ((3, 3, 28, 28), [3, 2, 1])
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.size == 0 or labels.shape != inputs.shape[:1]:
        raise ArgumentError(
            "inputs must be [examples, ...] and not empty, and labels [examples], got shapes "
            f"{inputs.shape} and {labels.shape}."
        )
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if not finite.all():
            raise ArgumentError(
                f"inputs has NaN or infinite values in {np.sum(~finite)} of {len(inputs)} examples"
                f" (the first is number {np.argmin(finite)}). Remove or repair them."
            )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ArgumentError("labels has NaN or infinite values. Remove those examples.")
    names, classes = np.unique(labels, return_inverse=True)
    counts = np.bincount(classes).astype(np.int32)
    order = np.argsort(classes, kind="stable")
    # Position within its class: the rank among all, less that of the class's first.
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    examples = np.zeros([len(names), counts.max(), *inputs.shape[1:]], inputs.dtype)
    examples[classes[order], position] = inputs[order]
    return ClassData(examples, counts)


def from_folder(
    path: str | os.PathLike[str], *, size: int = 84, mode: _image_files.Mode = "RGB"
) -> ClassData:
    """Reads a folder that has a subfolder of images for each class.

    Every image is resized to a square, whatever its proportions. Files and folders whose names
    begin with a dot are passed over.

    Args:
        path: the folder; its subfolders, in the order of their names, are the classes.
        size: height and width of the images, in pixels.
        mode: ``"RGB"`` for colour (3 channels) or ``"L"`` for grey (1 channel).

    Returns:
        ``ClassData`` with examples ``[classes, max_per_class, size, size, channels]`` in uint8. The
        values are the files' (dark on light is not inverted).

    Raises:
        ArgumentError: if the folder has no subfolders, one of them is empty, or a file is not an
            image with 8 bits a channel, in a common format and of at most 2**26 pixels; the message
            names the file.

    Example:
        >>> data = from_folder("my_images", size=84)  # doctest: +SKIP
    """
    positive_int("size", size)
    one_of("mode", mode, get_args(_image_files.Mode))
    folders = [
        folder for folder in _image_files.visible(Path(path).expanduser()) if folder.is_dir()
    ]
    if not folders:
        raise ArgumentError(
            f"path={str(path)!r} has no subfolders. It must have one for each class."
        )
    return from_arrays(*_image_files.read_classes(folders, size, mode))


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
    counts = data.counts[indices]
    return ClassData(data.examples[indices][:, : int(counts.max())], counts)


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
