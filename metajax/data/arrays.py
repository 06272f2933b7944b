"""A user's own data: arrays with labels, or a folder of images; and splits of its classes."""

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from metajax._checks import (
    instance,
    non_negative_int,
    numbers,
    one_of,
    path_of,
    positive_float,
    positive_int,
    shown,
)
from metajax.data import _image_files
from metajax.data.episodes import ClassData
from metajax.errors import ArgumentError, ArgumentTypeError

Mode = Literal["RGB", "L"]


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
        ArgumentError: if there are no examples, the lengths differ, ``inputs`` has NaN or infinite
            values, or the labels cannot be sorted.
        ArgumentTypeError: if ``inputs`` are not numbers.

    Example:
        >>> import numpy as np
        >>> images = np.zeros([6, 28, 28], np.uint8)
        >>> data = from_arrays(images, ["cat", "dog", "cat", "owl", "dog", "cat"])
        >>> data.examples.shape, data.counts.tolist()
        ((3, 3, 28, 28), [3, 2, 1])
    """
    inputs = numbers("inputs", inputs, "an array [examples, ...]")
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    if not (floating or jnp.issubdtype(inputs.dtype, jnp.integer)):
        raise ArgumentTypeError(
            f"inputs must be integers or floating-point numbers, got dtype {inputs.dtype}."
            " Convert them first, for instance with astype(numpy.float32)."
        )
    labels = numbers("labels", labels, "an array [examples]")
    if inputs.ndim == 0 or inputs.size == 0:
        raise ArgumentError(f"inputs must be [examples, ...] and not empty, got {inputs.shape}.")
    if labels.shape != inputs.shape[:1]:
        raise ArgumentError(
            f"labels must have shape [{len(inputs)}], one label for each of the inputs, got"
            f" {list(labels.shape)}."
        )
    if floating:
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
        raise ArgumentError(
            f"labels cannot be sorted ({error}). Make them all of one type."
        ) from error
    counts = np.bincount(classes).astype(np.int32)
    order = np.argsort(classes, kind="stable")
    # Position within its class: the rank among all, less that of the class's first.
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    examples = np.zeros([len(names), counts.max(), *inputs.shape[1:]], inputs.dtype)
    examples[classes[order], position] = inputs[order]
    return ClassData(examples, counts)


def from_folder(path: str | os.PathLike[str], *, size: int = 84, mode: Mode = "RGB") -> ClassData:
    """Reads a folder that has a subfolder of images for each class.

    Every image is resized to a square, whatever its proportions. Files and folders whose names
    begin with a dot are passed over.

    Args:
        path: the folder; its subfolders, in the order of their names, are the classes.
        size: height and width of the images, in pixels.
        mode: ``"RGB"`` for colour (3 channels) or ``"L"`` for grey (1 channel).

    Returns:
        ``ClassData`` with examples ``[classes, max_per_class, size, size, channels]`` in uint8,
        values as in the files (dark on light is not inverted).

    Raises:
        ArgumentError: if ``path`` is no folder, it or one of its subfolders is empty, or a file is
            not an image with 8 bits a channel, in a common format and of at most 2**26 pixels; the
            message names the file.

    Example:
        >>> data = from_folder("my_images", size=84)  # doctest: +SKIP
    """
    size = positive_int("size", size)
    one_of("mode", mode, get_args(Mode))
    root = path_of("path", path)
    if not root.is_dir():
        raise ArgumentError(
            f"path={str(path)!r} is not a folder. Name one with a subfolder a class."
        )
    folders = [folder for folder in visible(root) if folder.is_dir()]
    if not folders:
        raise ArgumentError(
            f"path={str(path)!r} has no subfolders. It must have one for each class."
        )
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = visible(folder)
        if not files:
            raise ArgumentError(
                f"{folder} is empty. Put the images of the class there, or remove it."
            )
        images += [read_image(file, size, mode) for file in files]
        labels += [label] * len(files)
    return from_arrays(np.stack(images), labels)


def visible(folder: Path) -> list[Path]:
    """What a folder holds, in the order of its names, without what begins with a dot."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be read: {error}.") from error


def read_image(file: Path, size: int, mode: Mode) -> np.ndarray:
    """One image as uint8 ``[size, size, channels]``."""

    def converted_of(image: Image.Image) -> Image.Image | None:
        if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to white
            return None
        # To 8-bit channels first: what has a palette or one bit is resized without greys.
        return ImageOps.exif_transpose(image).convert(mode)

    converted = _image_files.decoded(
        file, converted_of, name=str(file), remedy="Repair or remove it."
    )
    if converted is None:
        raise ArgumentError(f"{file} has more than 8 bits a channel. Convert it to 8 bits.")
    resized = np.asarray(converted.resize((size, size), Image.Resampling.LANCZOS))
    return resized.reshape(size, size, -1)


def select_classes(data: ClassData, classes: Any) -> ClassData:
    """Some of the classes, in the order given.

    Args:
        data: the classes to choose from.
        classes: indices ``[selected]``, or a boolean mask ``[classes]``.

    Raises:
        ArgumentError: if it selects nothing, an index twice, or one that is not there.

    Example:
        >>> import numpy as np
        >>> data = from_arrays(np.arange(6.0), [0, 0, 0, 1, 1, 2])
        >>> select_classes(data, data.counts >= 2).counts.tolist()
        [3, 2]
    """
    total = len(instance("data", data, ClassData, "ClassData").counts)
    indices = numbers("classes", classes, "indices [selected] or a mask")
    if indices.dtype == bool and indices.shape == (total,):
        indices = np.flatnonzero(indices)
    if indices.ndim != 1 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ArgumentError(
            f"classes must be one or more indices, or a mask of {total} booleans that selects"
            f" something, got {indices.dtype} of shape {list(indices.shape)}."
        )
    if indices.min() < 0 or indices.max() >= total:
        raise ArgumentError(
            f"classes must lie between 0 and {total - 1}, got values from {indices.min()} to"
            f" {indices.max()}."
        )
    if len(np.unique(indices)) != len(indices):
        raise ArgumentError("classes names an index twice: one class would have two labels.")
    counts = data.counts[indices]
    return ClassData(data.examples[indices][:, : int(counts.max())], counts)


def split_classes(
    data: ClassData, fractions: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int = 0
) -> tuple[ClassData, ...]:
    """Divides the classes into parts without a class in common, such as train and test.

    The same arguments give the same parts on every machine and with every version of JAX and
    NumPy. ``seed`` is the split's own: leave it alone when the seed of a run changes, or test
    classes of one run will be training classes of another.

    Args:
        data: the classes.
        fractions: the parts' shares of the classes; they add up to 1.
        seed: which of the possible splits.

    Raises:
        ArgumentError: if the fractions don't add up to 1, or a part would have no class.

    Example:
        >>> import numpy as np
        >>> data = from_arrays(np.arange(20.0), np.arange(20) // 2)
        >>> train, test = split_classes(data, (0.8, 0.2))
        >>> len(train.counts), len(test.counts)
        (8, 2)
    """
    instance("data", data, ClassData, "ClassData")
    seed = non_negative_int("seed", seed)
    if isinstance(fractions, str) or not isinstance(fractions, Iterable):
        raise ArgumentTypeError(f"fractions must be numbers, got {shown(fractions)}.")
    fractions = tuple(fractions)
    shares = [positive_float("fractions", fraction) for fraction in fractions]
    if not all(share > 0 for share in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise ArgumentError(f"fractions must be positive and add up to 1, got {tuple(fractions)}.")
    total = len(data.counts)
    ends = [round(total * math.fsum(shares[: i + 1])) for i in range(len(shares))]
    starts = [0, *ends[:-1]]
    if any(start == end for start, end in zip(starts, ends, strict=True)):
        raise ArgumentError(
            f"fractions={tuple(fractions)} leaves a part of the {total} classes without a class."
            " Take fewer or larger parts."
        )
    order = fixed_order(total, f"metajax split {seed}")
    return tuple(
        select_classes(data, sorted(order[start:end]))
        for start, end in zip(starts, ends, strict=True)
    )


def fixed_order(n: int, salt: str) -> list[int]:
    """A permutation of ``range(n)`` that no version of any library can change."""
    return sorted(range(n), key=lambda i: hashlib.sha256(f"{salt} {i}".encode()).digest())
