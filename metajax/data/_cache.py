"""The cache of prepared images: written whole or not at all, and checked when it is read."""

import hashlib
import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from metajax.errors import FileError
from metajax.files import open_to_read, replacing

_HEADER = 1 << 12
"""The most bytes that a cache file's arrays have besides their numbers."""


class CacheError(FileError):
    """A file of the cache is not what metajax wrote. It was left as it is."""


class Cached(NamedTuple):
    """What a cache file holds.

    Attributes:
        images: uint8 array.
        fingerprint: digest of the files that the images were made from.
        names: of the classes, a letter each; empty where the code has them.
    """

    images: np.ndarray
    fingerprint: str
    names: str = ""


def cache_folder() -> Path:
    """The folder that data sets are cached in.

    It is ``METAJAX_CACHE`` where that is set, else metajax's folder in the user's own cache folder.
    It need not exist.

    Example:
        >>> import os
        >>> os.environ["METAJAX_CACHE"] = "my_cache"  # doctest: +SKIP
        >>> cache_folder()  # doctest: +SKIP
        PosixPath('my_cache')
    """
    return Path(os.environ.get("METAJAX_CACHE") or platformdirs.user_cache_dir("metajax"))


def read(path: Path, shape: tuple[int, ...]) -> Cached | None:
    """Reads a cache file, or returns None where there is none.

    Raises:
        CacheError: if the file is damaged, or isn't one that ``write`` made with this shape.
    """
    if not path.exists():
        return None
    try:
        with open_to_read(path) as file, np.load(file, allow_pickle=False) as content:
            _check_sizes(content, math.prod(shape))
            images, fingerprint = content["images"], str(content["fingerprint"])
            checksum = str(content["checksum"])
            names = str(content["names"]) if "names" in content else ""
    except Exception as error:  # on damaged files, NumPy and zipfile raise of a dozen types
        raise _refusal(path, f"it cannot be read ({error})") from error
    if images.shape != shape or images.dtype != np.uint8:
        raise _refusal(path, f"it holds {images.dtype} {images.shape}, not uint8 {shape}")
    if _checksum(images) != checksum:
        raise _refusal(path, "its images do not have the checksum written with them")
    return Cached(images, fingerprint, names)


def write(path: Path, cached: Cached, name: str) -> None:
    """Writes a cache file; where that fails, warns the user of the data set ``name``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                images=cached.images,
                fingerprint=np.array(cached.fingerprint),
                checksum=np.array(_checksum(cached.images)),
                names=np.array(cached.names),
            )
    except OSError as error:
        warnings.warn(
            f"{name} could not be cached in {path.parent} ({error}). Set METAJAX_CACHE to a folder"
            " that can be written, or it will be made from its source every time.",
            stacklevel=4,
        )


def _check_sizes(content: Any, expected: int) -> None:
    """Raises a ValueError if much more would be unpacked than ``write`` packs.

    The limit leaves room for numbers of another dtype, which ``read`` names.
    """
    for entry in content.zip.infolist():
        limit = _HEADER + (16 * expected if entry.filename == "images.npy" else 0)
        if entry.file_size > limit:
            raise ValueError(f"{entry.filename} has {entry.file_size} bytes, more than {limit}")


def _checksum(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def _refusal(path: Path, reason: str) -> CacheError:
    return CacheError(
        f"The cache file {path} is not used: {reason}. Delete or move it and it will be made anew,"
        " or set METAJAX_CACHE to another folder."
    )
