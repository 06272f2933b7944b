"""The metrics file of a run: JSON lines that stay consistent over kills and resumes."""

import contextlib
import errno
import hashlib
import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import processes
from experiments.common.config import RunError
from experiments.common.disk import writing
from metajax.errors import FileError
from metajax.files import open_to_append, read_bytes, read_text, write_atomically

MOST_BYTES = 1 << 32
"""The most that a metrics file may have."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order; none where there is no file.

    A last line that a kill cut short is left out.

    Raises:
        RunError: another line is not JSON with a ``step``.
    """
    try:
        if not path.exists():
            return []
        text = read_text(path, MOST_BYTES)
    except (OSError, FileError) as error:
        raise RunError(
            f"{path} cannot be read ({error}). Restore it, or start a new run with another --out"
        ) from error
    lines = text.split("\n")[:-1]  # what follows the last line break was never finished
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int:
                raise TypeError("the step is no integer")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path}, line {number}, is not a line of metrics. Remove the line, or start a new"
                " run with another --out"
            ) from error
        records.append(record)
    return records


def digest(path: Path, step: int | None = None) -> str:
    """SHA-256 of a metrics file, or of its lines up to a step; of nothing where there is none."""
    content = read_bytes(path, MOST_BYTES) if path.exists() else b""
    if step is not None:
        lines = content.splitlines(keepends=True)
        records = read_metrics(path)
        content = b"".join(
            line for line, record in zip(lines, records, strict=False) if record["step"] <= step
        )
    return hashlib.sha256(content).hexdigest()


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Removes the lines past ``step``, which a resumed run computes again; returns the rest."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    if path.exists():
        with writing(path):
            write_atomically(path, "".join(_line(record) for record in kept))
    return kept


class MetricsLog(contextlib.AbstractContextManager):
    """Appends to ``metrics.jsonl`` and, where asked, writes the same numbers for TensorBoard.

    Where several processes share a run, the first writes; the others keep their lines in memory.

    Args:
        folder: the run folder.
        step: the meta-step that the run goes on from; later lines are dropped.
        tensorboard: write events into ``folder/tensorboard`` too.

    Raises:
        RunError: TensorBoard is asked for and ``tensorboardX`` is not installed, or the file can't
            be written.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = False) -> None:
        self._path = folder / "metrics.jsonl"
        self._file = self._writer = None
        self.records: list[dict[str, Any]] = []
        processes.on_first(lambda: self._open(step, tensorboard))

    def _open(self, step: int, tensorboard: bool) -> None:
        self._writer = _tensorboard_writer(self._path.parent, step) if tensorboard else None
        self.records = drop_after(self._path, step)
        with writing(self._path):
            # Without a buffer: what a full disk doesn't take isn't tried again when it is closed.
            self._file = open_to_append(self._path)

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line, of numbers and words; it is on its way to the disk when this returns.

        Raises:
            RunError: it can't be written, or the file isn't there any more.
        """
        record = {"step": step, **values}
        self.records.append(record)
        if self._file is None:
            return
        line = memoryview(_line(record).encode())
        with writing(self._path):
            while line:  # a disk that fills up may take a part
                line = line[self._file.write(line) :]
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Has all lines on the disk when it returns, so that no checkpoint is ahead of them."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    # JSON has no NaN and no infinity, though Python reads and writes both.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        module = importlib.import_module("tensorboardX")
    except ModuleNotFoundError as error:
        raise RunError(
            "tensorboard: tensorboardX is not installed. Install it with"
            " pip install 'metajax[tensorboard]', or leave --tensorboard out"
        ) from error
    return module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
