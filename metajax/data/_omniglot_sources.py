"""Where Omniglot's drawings come from: Lake's files, or tensorflow-datasets."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metajax.data import _image_files, _tfds
from metajax.data._tfds import DataNotFoundError
from metajax.files import read_bytes

Drawings = dict[tuple[str, int], list[bytes]]
"""PNG files of each character, by alphabet and number in it (from 1), in no particular order."""

PARTS = ("images_background", "images_evaluation")
_FILE = re.compile(r"(?:^|/)([^/]+)/character(\d+)/\d+_\d+\.png$")


def from_folder(folder: Path) -> Drawings:
    """Reads Lake's two archives, or the folders unpacked from them.

    Args:
        folder: holds ``images_background`` and ``images_evaluation``, each a zip or a folder; or
            is a clone of Lake's repository, where they lie in ``python``.

    Raises:
        DataNotFoundError: if one of the two parts is not there.
        ArgumentError: if an archive or a file cannot be read, or is larger than the limits of
            ``_image_files``.
    """
    drawings: Drawings = defaultdict(list)
    for part in PARTS:
        for name, png in _files(_locate(folder, part)):
            if match := _FILE.search(name):
                drawings[match[1], int(match[2])].append(png)
    return dict(drawings)


def from_builder(builder: Any) -> Drawings:
    """Reads tensorflow-datasets' ``omniglot``."""
    # The PNG files as they are: left to decode these 1-bit images, tensorflow-datasets returns 0
    # and 1, or 0 and 255, depending on what else is installed.
    decoders = {"image": _tfds.import_tfds().decode.SkipDecoding()}
    alphabets = builder.info.features["alphabet"]
    drawings: Drawings = defaultdict(list)
    for split in ("train", "test"):
        for example in _tfds.examples(builder, split, decoders):
            alphabet = alphabets.int2str(int(example["alphabet"]))
            character = int(example["alphabet_char_id"]) + 1
            drawings[alphabet, character].append(example["image"])
    return dict(drawings)


def _locate(folder: Path, part: str) -> Path:
    for parent in (folder, folder / "python"):
        for candidate in (parent / f"{part}.zip", parent / part):
            if candidate.exists():
                return candidate
    raise DataNotFoundError(
        f"folder={str(folder)!r} has neither {part}.zip nor {part}/. It must have both of Lake's"
        f" parts, {' and '.join(PARTS)}. (For a folder that tensorflow-datasets prepared, leave"
        " the folder out and set TFDS_DATA_DIR.)"
    )


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if not source.is_dir():
        yield from _image_files.unzipped(source, lambda name: _FILE.search(name) is not None)
        return
    for path in source.rglob("*.png"):
        if _FILE.search(path.as_posix()):
            content = read_bytes(path, _image_files.MOST_ENTRY_BYTES)
            yield path.relative_to(source).as_posix(), content
