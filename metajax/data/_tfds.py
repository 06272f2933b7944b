"""Data sets that tensorflow-datasets has prepared, or downloads: read without TensorFlow."""

import importlib.util
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from metajax.errors import MetajaxError
from metajax.files import open_to_read

Result = TypeVar("Result")


class DataNotFoundError(MetajaxError, FileNotFoundError):
    """A data set is at none of the places where it was looked for; the message lists them."""


def find(
    title: str, name: str, read: Callable[[Any], Result], *, tried: list[str], remedy: str
) -> tuple[str, Result]:
    """Reads a data set where it has been prepared, or else downloads it first.

    Args:
        title: the data set's name, for the error.
        name: tensorflow-datasets' name for it.
        read: reads the data set from its builder.
        tried: what was looked for before, for the error.
        remedy: the end of the error's message.

    Returns:
        Where it was found, and what ``read`` returned.

    Raises:
        DataNotFoundError: if neither works; it tells why.
    """
    tried, data_dir = list(tried), prepared_folder()
    for where, builder_of in (
        (f"tensorflow-datasets' folder {data_dir}", prepared),
        (f"a download by tensorflow-datasets to {data_dir}", _downloaded),
    ):
        try:
            return where, read(builder_of(name, data_dir))
        except Exception as error:  # tensorflow-datasets raises of many types; all are reported
            reason = str(error).strip() or repr(error)
            tried.append(f"{where}: {reason if len(reason) < 300 else reason[:300] + ' ...'}")
    lines = "".join(f"  - {line}\n" for line in tried)
    raise DataNotFoundError(f"{title} was not found. Tried:\n{lines}{remedy}")


def prepared_folder() -> Path:
    """Where tensorflow-datasets keeps what it has prepared."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(name: str, data_dir: Path) -> Any:
    """The builder of a prepared data set, or a DataNotFoundError."""
    if not any((data_dir / name).glob("*/dataset_info.json")):
        raise DataNotFoundError(f"holds no prepared {name}")
    return import_tfds().builder(name, data_dir=data_dir)


def _downloaded(name: str, data_dir: Path) -> Any:
    """The builder of a data set that is downloaded and prepared first."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError("needs TensorFlow, which is not installed")
    builder = import_tfds().builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    return builder


def import_tfds() -> Any:
    """The package, without the warnings of its dependencies, which users can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    return tfds


def examples(
    builder: Any, split: str, decoders: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The examples of a split one by one, decoded by each feature's own decoder by default."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if builder.info.file_format.value != "tfrecord":
            yield from builder.as_data_source(split=split, decoders=decoders)
            return
        # tensorflow-datasets' default format, which it reads only with TensorFlow: length (8
        # bytes), checksum (4), record, checksum (4).
        for path in builder.info.splits[split].filepaths:
            with open_to_read(Path(path)) as file:
                content, start = file.read(), 0
            while start < len(content):
                (length,) = struct.unpack_from("<Q", content, start)
                record = content[start + 12 : start + 12 + length]
                yield builder.info.features.deserialize_example_np(record, decoders=decoders)
                start += 16 + length
