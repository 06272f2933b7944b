"""What tensorflow-datasets has prepared, or downloads: read without TensorFlow."""

import importlib.util
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metajax.errors import MetajaxError


class DataNotFoundError(MetajaxError, FileNotFoundError):
    """A data set is at none of the places where it was looked for; the message lists them."""


def prepared_folder() -> Path:
    """Where tensorflow-datasets keeps what it has prepared."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(name: str, data_dir: Path) -> Any:
    """The builder of a prepared data set; needs no TensorFlow.

    Raises:
        DataNotFoundError: if ``data_dir`` holds no prepared data set of that name.
    """
    if not any((data_dir / name).glob("*/dataset_info.json")):
        raise DataNotFoundError(f"holds no prepared {name}")
    return import_tfds().builder(name, data_dir=data_dir)


def downloaded(name: str, data_dir: Path) -> Any:
    """The builder of a data set that tensorflow-datasets downloads and prepares.

    Raises:
        ImportError: without TensorFlow, which preparing (but not reading) needs.
        Exception: whatever tensorflow-datasets raises when the download fails.
    """
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
    """The examples of a split, one by one, with each feature's own decoder if None is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if builder.info.file_format.value != "tfrecord":
            yield from builder.as_data_source(split=split, decoders=decoders)
            return
        # tensorflow-datasets' default format, which it reads only with TensorFlow: length (8
        # bytes), checksum (4), record, checksum (4).
        for path in builder.info.splits[split].filepaths:
            content, start = Path(path).read_bytes(), 0
            while start < len(content):
                (length,) = struct.unpack_from("<Q", content, start)
                record = content[start + 12 : start + 12 + length]
                yield builder.info.features.deserialize_example_np(record, decoders=decoders)
                start += 16 + length


def find(name: str, sources: dict[str, Any], *, tried: list[str], remedy: str) -> tuple[str, Any]:
    """The first source that works, by its name, and what it gave.

    Args:
        name: of the data set, for the error.
        sources: functions without arguments, in the order in which they are tried.
        tried: what was looked for before.
        remedy: the end of the error's message.

    Raises:
        DataNotFoundError: if none works; it tells why, source by source.
    """
    tried = list(tried)
    for where, source in sources.items():
        try:
            return where, source()
        except Exception as error:  # tensorflow-datasets raises of many types; all are reported
            reason = str(error).strip() or repr(error)
            tried.append(f"{where}: {reason if len(reason) < 300 else reason[:300] + ' ...'}")
    lines = "".join(f"  - {line}\n" for line in tried)
    raise DataNotFoundError(f"{name} was not found. Tried:\n{lines}{remedy}")
