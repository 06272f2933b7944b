"""Files read within bounds, and written whole or not at all."""

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metajax.errors import FileError

__all__ = [
    "open_to_append",
    "open_to_read",
    "read_bytes",
    "read_json",
    "read_text",
    "replacing",
    "sync_folder",
    "write_atomically",
]

MOST_BYTES = 1 << 28
"""The most that a file may have which is read at once."""
_BINARY = getattr(os, "O_BINARY", 0)  # these three aren't on every system
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_to_read(path: Path) -> io.BufferedReader:
    """A regular file, open to read. A pipe or a device might never end.

    Raises:
        FileError: it is missing, can't be opened, or is no regular file.

    Example:
        >>> try:
        ...     open_to_read(Path("/dev/zero"))
        ... except FileError as error:
        ...     print(error)
        /dev/zero can't be read: it is no file.
    """
    try:
        # Opened without waiting: a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_WAIT)
    except FileNotFoundError:
        raise FileError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} can't be read: {error}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{path} can't be read: it is no file.")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most so many bytes; else a ``FileError``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", "whole")
        ...     read_bytes(Path(folder) / "a.txt", most=5)
        b'whole'
    """
    with open_to_read(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise FileError(f"{path} can't be read: {error}.") from error
    if len(content) > most:
        raise FileError(f"{path} can't be read: it has more than {most} bytes.")
    return content


def read_text(path: Path, most: int = MOST_BYTES, encoding: str = "utf-8") -> str:
    """The same as text, with a line break as ``\\n``; else a ``FileError``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", "whole")
        ...     read_text(Path(folder) / "a.txt")
        'whole'
    """
    try:
        text = read_bytes(path, most).decode(encoding)
    except UnicodeDecodeError as error:
        raise FileError(f"{path} can't be read: {error}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, most: int = 1 << 26) -> Any:
    """What a JSON file holds; else a ``FileError``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.json", '{"r": 8}')
        ...     read_json(Path(folder) / "a.json")
        {'r': 8}
    """
    text = read_text(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} isn't JSON: {error}.") from error


def open_to_append(path: Path) -> io.FileIO:
    """A regular file, open to append to without a buffer; made where there is none.

    A link isn't followed: what it leads to isn't ours to write to.

    Raises:
        OSError: it can't be opened, is a link, or is no regular file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open_to_append(Path(folder) / "a.txt") as file:
        ...         file.write(b"whole")
        5
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY | _NO_WAIT | _NO_LINK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return io.FileIO(descriptor, "r+")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the file there then takes the place of ``path``.

    A reader, or a crash, finds the old content or the new, never a part.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a link there would be followed
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file as ``replacing`` does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", "whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk, where the system can do that.

    Example:
        >>> sync_folder(Path("."))
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
