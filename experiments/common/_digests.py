"""SHA-256 of every file in a folder, in one beside them that ``sha256sum -c`` reads."""

import hashlib
import os
from pathlib import Path

from metajax.files import sync_folder, write_atomically

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    """Writes the list, and sees to it that what it lists is on the disk before it is.

    Whoever finds the list knows that the folder was finished.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = (Path(name) / "data").write_bytes(b"numbers")
        ...     write(Path(name))
        ...     before = problem(Path(name))
        ...     _ = (Path(name) / "data").write_bytes(b"Numbers")
        ...     before, problem(Path(name))
        (None, 'data is not what was written')
    """
    files, folders = _contents(folder)
    lines = [f"{_digest(path, sync=True)}  {name}\n" for name, path in files.items()]
    for path in folders:
        sync_folder(path)
    write_atomically(folder / NAME, "".join(lines))
    sync_folder(folder)
    sync_folder(folder.parent)


def written(folder: Path) -> bool:
    """Whether the folder was finished, whatever became of it since."""
    return (folder / NAME).exists()


def problem(folder: Path) -> str | None:
    """What differs from the list, in words; None where every byte is as it was written."""
    try:
        text = (folder / NAME).read_bytes().decode()
        entries = [line.split("  ", 1) for line in text.splitlines()]
        listed = {name: digest for digest, name in entries}
    except FileNotFoundError:
        return f"it has no {NAME}, so its writing was cut short"
    except (OSError, ValueError) as error:
        return f"its {NAME} cannot be read ({error})"
    try:
        files, _ = _contents(folder)
        for name, digest in listed.items():
            if name not in files:
                return f"{name} is missing"
            if _digest(files[name]) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    unlisted = sorted(set(files) - set(listed))
    # Also where a line of the list was lost, so that no file goes unchecked.
    return f"{unlisted[0]} is not in its {NAME}" if unlisted else None


def _contents(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    found = sorted(folder.rglob("*"))
    files = {str(path.relative_to(folder)): path for path in found if not path.is_dir()}
    files.pop(NAME, None)
    return files, [path for path in found if path.is_dir()]


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
