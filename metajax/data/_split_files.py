"""Any data set that comes with a file for each split, of its classes or its images."""

import collections
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, get_args

from metajax import _checks, files
from metajax._checks import one_of, positive_int
from metajax.data import _image_files
from metajax.data._tfds import DataNotFoundError
from metajax.data.episodes import ClassData
from metajax.errors import ArgumentError

_FILES = ("filename", "file_name", "image_name", "image", "file", "path")
_LABELS = ("label", "category", "class", "class_name")
_PLACES = ("", "images")


def from_splits(
    folder: str | os.PathLike[str],
    split: str | os.PathLike[str],
    *,
    size: int = 84,
    mode: _image_files.Mode = "RGB",
) -> ClassData:
    """Reads the classes of a split that a file lists, such as CUB's or tieredImageNet's.

    These files are known:

    - a list of classes, as Torchmeta has it: ``["cat", "dog"]``, or ``[["pets", "cat"], ...]``;
    - the files of each class: ``{"cat": ["1.jpg", "2.jpg"], ...}``;
    - three lists, as Chen et al. 2019 have it: ``{"label_names": [...], "image_names": [...],
      "image_labels": [...]}``, of which a label is a place in the names;
    - CSV with a line for each image, as Ravi and Larochelle (``filename,label``) and Meta-Album
      (``FILE_NAME,CATEGORY``) have it. Other columns don't matter.

    A class's folder, and an image, is looked for in ``folder`` and in its ``images``; an image also
    in the folder of its class. Of a longer path the last two parts count, so that nothing outside
    ``folder`` is read.

    Args:
        folder: where the images lie.
        split: the file; a JSON file is one whose name ends with ``.json``.
        size: height and width that images are resized to, in pixels.
        mode: ``"RGB"`` for colour (3 channels) or ``"L"`` for grey (1 channel).

    Returns:
        ``ClassData`` with examples ``[images, size, size, channels]`` in uint8, and the classes in
        the order of their names.

    Raises:
        metajax.data.DataNotFoundError: if there is no such folder or file, or classes or images of
            the split are not there; it lists which.
        ArgumentError: if the file is none of these, names a class or an image more than once, or
            has an image without a class; or an image is refused as by ``from_folder``.

    Example:
        >>> from_splits("CUB_200_2011", "splits/test.json").names[:2]  # doctest: +SKIP
        ('004.Groove_billed_Ani', '008.Rhinoceros_Auklet')
    """
    positive_int("size", size)
    one_of("mode", mode, get_args(_image_files.Mode))
    root, file = _checks.path_of("folder", folder), _checks.path_of("split", split)
    for name, path in (("folder", root), ("split", file)):
        if not path.exists():
            raise DataNotFoundError(f"{name}={str(path)!r} does not exist.")
    listed = _listed(file)
    found, missing = {}, []
    for name in sorted(listed):
        files = listed[name]
        if files is None:
            places = [place for place in _inside(root, _parts(name)) if place.is_dir()]
            found[name] = _image_files.visible(places[0]) if places else []
            missing += [] if places else [name]
            if places and not found[name]:
                raise ArgumentError(f"{places[0]} is empty: class {name!r} has no image.")
        else:
            found[name] = [_file_of(root, name, each) for each in files]
            missing += [each for each, path in zip(files, found[name], strict=True) if not path]
    if missing:
        raise DataNotFoundError(
            f"folder={str(root)!r} lacks {len(missing)} of what {file} lists: "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}."
        )
    images, counts = _image_files.read_files(list(found.values()), size, mode)
    return ClassData(images, counts, tuple(found))


def _listed(file: Path) -> dict[str, list[str] | None]:
    """The files of each class, or None for all in its folder."""
    try:
        text = files.read_text(file, encoding="utf-8-sig")
        content = json.loads(text) if file.suffix.lower() == ".json" else None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"split: {file} cannot be read: {error}.") from error
    if isinstance(content, list):
        names = [each[-1] if isinstance(each, list) and each else each for each in content]
        found: dict[str, list[str] | None] = dict.fromkeys(_once(names, "class", file))
    elif content is None:
        found = _by_class(_rows(text, file), file)
    elif isinstance(content, dict) and "image_names" in content:
        found = _by_class(_three_lists(content, file), file)
    elif isinstance(content, dict) and all(isinstance(each, list) for each in content.values()):
        found = _by_class(((each, name) for name, files in content.items() for each in files), file)
    else:
        raise ArgumentError(f"split: {file} holds neither a list of classes nor images of classes.")
    if not found:
        raise ArgumentError(f"split: {file} lists nothing.")
    return found


def _rows(text: str, file: Path) -> Iterable[tuple[Any, Any]]:
    """File and class of each line."""
    rows = list(csv.reader(io.StringIO(text)))
    header = [each.strip().lower() for each in rows[0]] if rows else []
    columns = [
        next((header.index(name) for name in known if name in header), -1)
        for known in (_FILES, _LABELS)
    ]
    if -1 in columns:
        raise ArgumentError(
            f"split: {file} must have a column of {' or '.join(_FILES)} and one of "
            f"{' or '.join(_LABELS)}, got the columns {', '.join(header) or 'none'}."
        )
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        each, name = (row[place].strip() if place < len(row) else "" for place in columns)
        if not each or not name:
            raise ArgumentError(f"split: line {number} of {file} lacks a file or a class.")
        yield each, name


def _three_lists(content: Mapping[str, Any], file: Path) -> Iterable[tuple[Any, Any]]:
    lists = [content.get(key) for key in ("image_names", "image_labels", "label_names")]
    files, labels, names = (each if isinstance(each, list) else [] for each in lists)
    if not names or len(files) != len(labels):
        raise ArgumentError(
            f"split: {file} must have as many image_labels as image_names, and label_names."
        )
    _once(names, "class", file)
    for each, label in zip(files, labels, strict=True):
        if type(label) is not int or not 0 <= label < len(names):
            raise ArgumentError(
                f"split: {file} has the label {label!r} for {each!r}, of {len(names)} label_names."
            )
        yield each, names[label]


def _by_class(rows: Iterable[tuple[Any, Any]], file: Path) -> dict[str, list[str] | None]:
    rows = list(rows)
    _once([f"{name}/{each}" for each, name in rows], "image", file)
    found: dict[str, list[str] | None] = {}
    for each, name in rows:
        for value in (each, name):
            if not isinstance(value, str) or not value:
                raise ArgumentError(f"split: {file} has {value!r} where a name was expected.")
        files = found.setdefault(name, [])
        assert files is not None
        files.append(each)
    return found


def _once(names: list[Any], what: str, file: Path) -> list[str]:
    """The names, which are strings, each once."""
    for name in names:
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"split: {file} has {name!r} where a {what} was expected.")
    name, count = collections.Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ArgumentError(f"split: {file} names the {what} {name!r} {count} times.")
    return names


def _parts(name: str) -> list[str]:
    """The parts of a path, without a drive or root; none if it leads upwards."""
    path = PureWindowsPath(name)  # which reads both kinds of slashes
    parts = list(path.relative_to(path.anchor).parts)
    return [] if ".." in parts else parts


def _inside(root: Path, parts: list[str]) -> list[Path]:
    """Where something may lie."""
    return [root.joinpath(place, *parts) for place in _PLACES] if parts else []


def _file_of(root: Path, name: str, file: str) -> Path | None:
    """An image's path, or None."""
    parts = _parts(file)
    tried = [parts[-2:], _parts(name) + parts[-1:], parts[-1:]] if parts else []
    places = (path for each in tried for path in _inside(root, each))
    return next((path for path in places if path.is_file()), None)
