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


def test_a_size_beyond_memory_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"size=10000000: 1 images would take .* GiB, more than"):
        from_folder(tmp_path, size=10_000_000)


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


def stroke(paper, ink, size=12):
    """A bar of ink, whose values are tuples or numbers as the mode has them."""
    pixels = np.empty((size, size, len(paper)), np.uint8)
    pixels[:] = paper
    pixels[:, 4:8] = ink
    return pixels.squeeze()


def palette(transparent):
    """The bar with colour 1 on colour 0, which is transparent: as a number, or by its alpha."""
    image = Image.fromarray(stroke([0], [1])).convert("P")
    image.putpalette([0, 0, 0, 30, 30, 30])
    return image, {"transparency": transparent}


TRANSPARENT = {
    "RGBA": lambda: (Image.fromarray(stroke([0, 0, 0, 0], [0, 0, 0, 255])), {}),
    "LA": lambda: (Image.fromarray(stroke([0, 0], [0, 255])), {}),
    "RGBA, all but black": lambda: (Image.fromarray(stroke([90, 0, 9, 0], [3, 3, 3, 255])), {}),
    "palette, a number": lambda: palette(0),
    "palette, alpha": lambda: palette(bytes([0, 255])),
    "L with a transparent value": lambda: (
        Image.fromarray(stroke([7], [0])), {"transparency": 7}
    ),
    "RGB with a transparent value": lambda: (
        Image.fromarray(stroke([7, 8, 9], [0, 0, 0])), {"transparency": (7, 8, 9)}
    ),
    "1 bit with a transparent value": lambda: (
        Image.fromarray(stroke([255], [0])).convert("1"), {"transparency": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_lies_on_white(tmp_path, name, mode):
    path = tmp_path / "image.png"
    image, options = TRANSPARENT[name]()
    image.save(path, **options)
    pixels = read_image(path, 12, mode)
    assert pixels[:, :4].min() == 255
    assert pixels[:, 8:].min() == 255
    assert pixels[:, 4:8].max() <= 30


def test_half_transparent_is_mixed_with_white(tmp_path):
    """One term of Porter and Duff's "over": alpha · colour + (1 − alpha) · 255."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colour, alpha = (each.ravel() for each in np.meshgrid(levels, levels))
    pixels = np.stack([colour, colour, colour, alpha], axis=-1).reshape(len(levels), -1, 4)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = read_image(tmp_path / "image.png", len(levels), "RGB")[..., 0].ravel()
    share = alpha / 255
    np.testing.assert_allclose(found, share * colour + (1 - share) * 255, atol=1)


@pytest.mark.parametrize(("kind", "animated"), [("GIF", True), ("WEBP", False), ("TIFF", False)])
def test_other_formats_with_transparency_and_the_first_image_of_an_animation(
    tmp_path, kind, animated
):
    path = tmp_path / "image"
    first, second = (Image.fromarray(stroke([0, 0, 0, 0], [ink, 0, 0, 255])) for ink in (9, 250))
    options = {"save_all": True, "append_images": [second]} if animated else {"lossless": True}
    first.save(path, kind, **options)
    pixels = read_image(path, 12, "RGB")
    assert pixels[:, :4].min() == 255
    assert pixels[:, 4:8].max() <= 9


@pytest.mark.parametrize("pixels", [stroke([255, 0], [255, 255]), stroke([0, 0], [255, 200])])
def test_white_on_transparent_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with pytest.raises(ArgumentError, match=r"image\.png cannot .*white on transparent"):
        read_image(tmp_path / "image.png", 12, "L")


def test_opaque_and_blank_images_are_not_changed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    opaque = np.concatenate([noise, np.full((12, 12, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 12, "RGB"), noise)
    for alpha in (0, 255):
        Image.new("LA", (12, 12), (255, alpha)).save(tmp_path / "blank.png")
        assert read_image(tmp_path / "blank.png", 12, "L").min() == 255


def test_other_kinds_of_colour(tmp_path):
    """CMYK, and a picture that is to be turned."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg", 4, "RGB")[0, 0], [255, 0, 0], atol=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    turned.save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", 8, "RGB"), upright)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"empty\.png cannot be read as an image"):
        read_image(tmp_path / "empty.png", 8, "L")
