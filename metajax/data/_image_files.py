"""Image files, and folders and archives of them; damaged files and bombs are refused."""

import contextlib
import itertools
import math
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.files import open_to_read

MOST_PIXELS = 1 << 26
"""The most pixels of an image (8192 × 8192): a tiny file can declare any number."""
MOST_ENTRIES = 100_000
"""The most files of an archive; Omniglot's larger one has 20,000."""
MOST_ENTRY_BYTES = 1 << 20
"""The most bytes of one file of an archive, unpacked; a drawing of Omniglot has a few hundred."""
MOST_BYTES = 1 << 28
"""The most bytes of an archive's files together, unpacked; Omniglot's drawings have 10 MB."""

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000")
"""The formats that are read. Of the others that Pillow knows, one calls a program and some write
files."""

SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")
"""What Windows and macOS put into folders, in small letters."""

Mode = Literal["RGB", "L"]
Result = TypeVar("Result")


def read_classes(
    folders: Sequence[Path], size: int, mode: Mode, *, remedy: str = "Move it elsewhere."
) -> tuple[np.ndarray, np.ndarray]:
    """The images of several folders, each of which is a class.

    Returns:
        uint8 ``[images, size, size, channels]``, and how many each folder has, int32 ``[folders]``.

    Raises:
        ArgumentError: if a folder is empty, holds a folder (``remedy`` ends the message), or one of
            its files is refused by ``read_image``.
    """
    files = [visible(folder) for folder in folders]
    for folder, inside in zip(folders, files, strict=True):
        if not inside:
            raise ArgumentError(
                f"{folder} is empty. Put the images of the class there, or remove it."
            )
        for file in inside:
            if file.is_dir():
                raise ArgumentError(
                    f"{file} is a folder, where an image of class {folder.name!r} was expected. "
                    f"{remedy}"
                )
    return read_files(files, size, mode)


def read_files(
    files: Sequence[Sequence[Path]], size: int, mode: Mode
) -> tuple[np.ndarray, np.ndarray]:
    """The images of several classes, given by their files.

    Returns:
        uint8 ``[images, size, size, channels]``, and how many each class has, int32 ``[classes]``.
    """
    counts = np.array([len(inside) for inside in files], np.int32)
    shape = (int(counts.sum()), size, size, Image.getmodebands(mode))
    _checks.fits(f"size={size}: {shape[0]} images", math.prod(shape))
    images = np.empty(shape, np.uint8)
    for image, file in zip(images, itertools.chain.from_iterable(files), strict=True):
        image[:] = read_image(file, size, mode)
    return images, counts


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names.

    Raises:
        ArgumentError: if there are none, it is a file, or it holds a link that leads nowhere.
    """
    if not folder.is_dir():
        raise ArgumentError(
            f"{folder} is a file, not a folder. Unpack it first if it is an archive."
        )
    inside = visible(folder)
    for path in inside:
        if not path.exists():
            raise ArgumentError(f"{path} is a link that leads nowhere. Mend or remove it.")
    found = [path for path in inside if path.is_dir()]
    if not found:
        raise ArgumentError(
            f"{folder} has no subfolders. It must have one for each class, with its images in it."
        )
    return found


def visible(folder: Path) -> list[Path]:
    """What a folder holds, in the order of its names, but for hidden files and those of systems."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM
    )


def read_image(file: Path, size: int, mode: Mode) -> np.ndarray:
    """One image as uint8 ``[size, size, channels]``, whatever its proportions.

    Raises:
        ArgumentError: if ``decoded`` refuses it, or it has more than 8 bits a channel.
    """

    def converted_of(image: Image.Image) -> Image.Image | None:
        if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits to white
            return None
        # To 8-bit channels first: an image with a palette or one bit is resized without greys.
        return on_white(ImageOps.exif_transpose(image)).convert(mode)

    converted = decoded(file, converted_of, name=str(file), remedy="Repair or remove it.")
    if converted is None:
        raise ArgumentError(f"{file} has more than 8 bits a channel. Convert it to 8 bits.")
    resized = np.asarray(converted.resize((size, size), Image.Resampling.LANCZOS))
    return resized.reshape(size, size, -1)


def on_white(image: Image.Image) -> Image.Image:
    """The image on white paper where it is transparent.

    Raises:
        ValueError: if it is white there, so that nothing would be left of it.
    """
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    least, most = layer.getchannel("A").getextrema()
    if least != most and flat.convert("L").getextrema() == (255, 255):
        raise ValueError("it is white on transparent, of which nothing is left on white")
    return flat


def decoded(
    source: Path | BytesIO, use: Callable[[Image.Image], Result], *, name: str, remedy: str
) -> Result:
    """Opens an image and returns what ``use`` makes of it.

    Args:
        source: a file, or its content.
        use: decodes the image, which is only opened before.
        name: the file's name, for messages.
        remedy: the end of the error's message.

    Raises:
        ArgumentError: if it is no image of ``FORMATS``, is damaged, or has more than
            ``MOST_PIXELS`` pixels.
    """
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_to_read(source)) if isinstance(source, Path) else source
            stack.enter_context(warnings.catch_warnings())
            # Pillow warns of somewhat more pixels than the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats) as image:
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
    """The name and content of every file of an archive whose name is ``wanted``.

    Nothing is written to disk. One file is in memory at a time, whatever sizes the archive
    declares.

    Raises:
        ArgumentError: if it isn't an archive or is damaged; if any of its names leads out of it (an
            absolute path, a drive or ``..``) or is that of a symbolic link; or if it has more
            files, or larger ones, than the limits of this module.
    """
    total = 0
    try:
        with open_to_read(path) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise _refused(path, f"it has {len(entries)} files, more than {MOST_ENTRIES}")
            for entry in entries:
                _check_place(path, entry)
            for entry in entries:
                if entry.is_dir() or not wanted(entry.filename):
                    continue
                with archive.open(entry) as inside:
                    content = inside.read(MOST_ENTRY_BYTES + 1)
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
