"""Image files and archives: the formats that are read, and what is refused."""

import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from metajax.data import _image_files, from_folder
from metajax.data._image_files import read_image
from metajax.errors import ArgumentError

GOOD = "images_background/Greek/character01/0001_01.png"


def listing(folder):
    return sorted(
        (path.relative_to(folder).as_posix(), path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    )


def zip_of(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read(path):
    return dict(_image_files.unzipped(path, lambda name: name.endswith(".png")))


def refused(path, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_what_an_archive_holds(tmp_path):
    path = zip_of(tmp_path / "a.zip", {GOOD: b"png", "readme.txt": b"text", "folder.png/": b""})
    assert read(path) == {GOOD: b"png"}


@pytest.mark.parametrize(
    "name",
    ["../out.png", "a/../../out.png", "/out.png", "C:/out.png", "C:out.png", "..\\out.png",
     "\\\\host\\share\\out.png", "a/..", "//out.png"],
)  # fmt: skip
def test_a_name_that_leads_out_of_its_archive(tmp_path, name):
    path = tmp_path / "zips" / "a.zip"
    path.parent.mkdir()
    zip_of(path, {GOOD: b"png", name: b"outside"})
    before = listing(tmp_path)
    refused(path, "leads out of it")
    assert listing(tmp_path) == before


def test_a_symbolic_link_in_an_archive(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    refused(zip_of(tmp_path / "a.zip", {link: "/etc/passwd"}), "'link.png' is a symbolic link")


def test_bombs_in_an_archive(tmp_path, monkeypatch):
    """Sizes are those that come out, whatever an archive declares, and nothing is held beyond."""
    zeros = bytes(_image_files.MOST_ENTRY_BYTES + 1)
    path = zip_of(tmp_path / "one.zip", {"a.png": zeros})
    assert path.stat().st_size < 3000
    refused(path, f"'a.png' has more than {_image_files.MOST_ENTRY_BYTES} bytes")
    monkeypatch.setattr(_image_files, "MOST_BYTES", 1000)
    path = zip_of(tmp_path / "all.zip", {f"{n}.png": bytes(400) for n in range(3)})
    refused(path, "more than 1000 bytes together")
    monkeypatch.setattr(_image_files, "MOST_ENTRIES", 2)
    refused(path, "3 files, more than 2")


def test_a_size_that_is_declared_and_not_there(tmp_path):
    """No room is made for it: what counts is what comes out."""
    path = zip_of(tmp_path / "a.zip", {"a.png": bytes(2000)})
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 2000)) == 2
    path.write_bytes(content.replace(struct.pack("<L", 2000), struct.pack("<L", 1 << 31)))
    assert read(path) == {"a.png": bytes(2000)}


def test_memory_is_bounded_while_a_bomb_is_refused(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"a.png": bytes(1 << 26)})
    tracemalloc.start()
    refused(path, r"'a\.png' has more than")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * _image_files.MOST_ENTRY_BYTES


def test_an_archive_with_a_password(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"a.png": b"png"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(bytes(content))
    refused(path, "cannot be read as a zip.*encrypted")


def png(width, height):
    """A grey PNG that declares a size and has no pixels."""

    def chunk(kind, content):
        checksum = struct.pack(">L", zlib.crc32(kind + content))
        return struct.pack(">L", len(content)) + kind + content + checksum

    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("side", [8193, 12_000, 60_000, 2**31 - 1])
def test_an_image_that_declares_too_many_pixels(tmp_path, side):
    """Below, at and above the sizes of which Pillow warns and which it refuses itself."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    limits = f"more than the limit {_image_files.MOST_PIXELS}|exceeds limit"
    with pytest.raises(ArgumentError, match=rf"bomb\.png cannot be read.*pixels.*({limits})"):
        read_image(path, 8, "L")


def test_a_program_in_place_of_an_image_is_not_run(tmp_path):
    """Pillow would hand PostScript to Ghostscript."""
    path = tmp_path / "program.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ArgumentError, match=r"program\.png cannot .*cannot identify"):
        read_image(path, 8, "L")


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "class").mkdir()
    os.mkfifo(tmp_path / "class" / "pipe.png")
    with pytest.raises(ArgumentError, match=r"pipe\.png cannot .*no file"):
        from_folder(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_the_common_formats_are_read(tmp_path, kind):
    path = tmp_path / f"image.{kind.lower()}"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(path, kind)
    assert abs(int(read_image(path, 4, "RGB").mean()) - 200) <= 2
