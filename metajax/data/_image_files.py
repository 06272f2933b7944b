"""Image files and archives of them, read with limits: what is damaged or a bomb is refused."""

import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from PIL import Image

from metajax.errors import ArgumentError

MOST_PIXELS = 1 << 26
"""Of one image (8192 × 8192): a tiny file can declare any number of pixels."""
MOST_ENTRIES = 100_000
"""Of one archive; Omniglot's larger one has 20,000."""
MOST_ENTRY_BYTES = 1 << 20
"""Of one file of an archive, unpacked; a drawing of Omniglot's has a few hundred."""
MOST_BYTES = 1 << 28
"""Of all files of an archive together, unpacked; all of Omniglot's drawings have 10 MB."""

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000")
"""What is read. Pillow knows others, of which one calls a program and some write files."""

Result = TypeVar("Result")


def decoded(
    source: Path | BytesIO, use: Callable[[Image.Image], Result], *, name: str, remedy: str
) -> Result:
    """What ``use`` makes of an image; an ArgumentError with its name if it can't be read.

    Args:
        source: a file, or its content.
        use: decodes the image, which is opened only.
        name: of the file, for messages.
        remedy: the end of the error's message.

    Raises:
        ArgumentError: if it is no image of ``FORMATS``, is damaged, or has more than
            ``MOST_PIXELS``.
    """
    if isinstance(source, Path) and not source.is_file():
        raise ArgumentError(f"{name} cannot be read as an image (it is no file). {remedy}")
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns of somewhat more pixels than the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source, formats=formats) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise _TooLarge(f"{width} × {height} pixels, more than the limit {MOST_PIXELS}")
                return use(image)
    except Exception as error:  # on damaged files Pillow raises of a dozen types
        reason = str(error) or repr(error)
        raise ArgumentError(f"{name} cannot be read as an image ({reason}). {remedy}") from error


class _TooLarge(Exception):
    """An image with too many pixels, before it is decoded."""


def unzipped(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The files of an archive whose names are wanted: name and content, in memory alone.

    Nothing is written. No more is held at a time than one file, whatever sizes the archive
    declares.

    Raises:
        ArgumentError: if it isn't an archive or is damaged; if any of its names leads out of it (an
            absolute path, a drive or ``..``), or is that of a symbolic link; or if it has more
            files, or larger ones, than the limits of this module.
    """
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise _refused(path, f"it has {len(entries)} files, more than {MOST_ENTRIES}")
            for entry in entries:
                _check_place(path, entry)
            for entry in entries:
                if entry.is_dir() or not wanted(entry.filename):
                    continue
                with archive.open(entry) as file:
                    content = file.read(MOST_ENTRY_BYTES + 1)
                if len(content) > MOST_ENTRY_BYTES:
                    raise _refused(
                        path, f"{entry.filename!r} has more than {MOST_ENTRY_BYTES} bytes"
                    )
                total += len(content)
                if total > MOST_BYTES:
                    raise _refused(path, f"its files have more than {MOST_BYTES} bytes together")
                yield entry.filename, content
    except ArgumentError:
        raise
    except Exception as error:  # on damaged files zipfile and its decoders raise of a dozen types
        raise ArgumentError(
            f"{path} cannot be read as a zip: {str(error) or repr(error)}. Fetch it again."
        ) from error


def _check_place(path: Path, entry: zipfile.ZipInfo) -> None:
    # As Windows reads it, where drives, backslashes and slashes all count.
    place = PureWindowsPath(entry.filename)
    if place.drive or place.root or ".." in place.parts:
        raise _refused(path, f"{entry.filename!r} leads out of it")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise _refused(path, f"{entry.filename!r} is a symbolic link")


def _refused(path: Path, reason: str) -> ArgumentError:
    return ArgumentError(f"{path} is not read as a zip: {reason}. Fetch it again.")
