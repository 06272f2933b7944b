"""A run's folder on the disk: errors in words, a lock, and the SHA-256 of its files."""

import contextlib
import errno
import hashlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.common.config import RunError
from metajax.files import (
    open_to_append,
    open_to_read,
    read_text,
    sync_folder,
    write_atomically,
)

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

LOCK = ".lock"
DIGESTS = "SHA256SUMS"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says when ``path`` can't be written into words for the user.

    Raises:
        RunError: in place of an ``OSError``.

    Example:
        >>> try:
        ...     with writing(Path("runs/demo")):
        ...         raise OSError(errno.ENOSPC, "No space left on device")
        ... except RunError as error:
        ...     print(str(error)[:50])
        runs/demo cannot be written: No space left on devi
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error for a path, whoever found that it can't be written."""
    number = error.errno if isinstance(error, OSError) else _number_in(str(error))
    said = os.strerror(number) if number else first_line(error)
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        return RunError(
            f"{path} cannot be written: {said}. Was the folder removed or replaced? Put it back and"
            " go on with --resume, or start a new run with another --out"
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Make the folder writable"
    else:
        remedy = "Mend that"
    return RunError(
        f"{path} cannot be written: {said}. {remedy}, then go on with --resume; what was there"
        " before is kept"
    )


def first_line(error: Exception) -> str:
    """An error's type and the beginning of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _number_in(message: str) -> int | None:
    """The errno of an error from TensorStore, which has the system's words in its message."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
             errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # fmt: skip
    return next((number for number in known if os.strerror(number) in message), None)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder, which it makes where there is none.

    The system lets go when the process ends, however it ends. Where the file system has no locks, a
    warning says so and nothing is kept out.

    Raises:
        RunError: another process has it, or the folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, locked(Path(name)):
        ...     pass
    """
    if jax.process_index() > 0:  # the first of several processes of one run has it for all
        yield
        return
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_to_append(path)
    with file:
        if not _lock(file.fileno(), path):
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip() or "which one is not known"
            raise RunError(
                f"out: another process is using {folder} ({holder}). Wait until it has ended, stop"
                " it, or name another folder with --out"
            )
        with contextlib.suppress(OSError):  # who has it is a help, not what locks
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _lock(descriptor: int, path: Path) -> bool:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}): see to it that no other process uses"
            " this run's folder",
            stacklevel=5,
        )
    return True


def write_digests(folder: Path) -> None:
    """Lists the SHA-256 of every file in a folder, as ``sha256sum -c`` reads it.

    All that is listed is on the disk before the list is.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = (Path(name) / "data").write_bytes(b"numbers")
        ...     write_digests(Path(name))
        ...     before = damage_in(Path(name))
        ...     _ = (Path(name) / "data").write_bytes(b"Numbers")
        ...     before, damage_in(Path(name))
        (None, 'data is not what was written')
    """
    lines = [f"{_digest(path, sync=True)}  {name}\n" for name, path in _files(folder).items()]
    for path in filter(Path.is_dir, folder.rglob("*")):
        sync_folder(path)
    write_atomically(folder / DIGESTS, "".join(lines))
    sync_folder(folder)


def damage_in(folder: Path) -> str | None:
    """How a folder differs from its list, in words; None where every byte is as it was written."""
    try:
        entries = [line.split("  ", 1) for line in read_text(folder / DIGESTS).splitlines()]
        listed = {name: digest for digest, name in entries}
        files = _files(folder)
        for name, digest in listed.items():
            if name not in files:
                return f"{name} is missing"
            if _digest(files[name]) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"it cannot be checked: {first_line(error)}"
    # Also where a line of the list was lost, so that no file goes unchecked.
    unlisted = sorted(set(files) - set(listed))
    return f"{unlisted[0]} is not in its {DIGESTS}" if unlisted else None


def _files(folder: Path) -> dict[str, Path]:
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {name: path for name, path in found.items() if not path.is_dir() and name != DIGESTS}


def _digest(path: Path, *, sync: bool = False) -> str:
    with open_to_read(path) as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
