"""Any content of the files that data sets are read from."""

import io
import zipfile

import numpy as np
import pytest
from fuzzing import contained, damaged, examples
from hypothesis import given
from PIL import Image

from metajax import data
from metajax.data import _cache, _image_files, _omniglot_sources
from metajax.data._omniglot import _resized

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "MPO"]


def image_of(kind, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_any_image(kind, sandbox):
    folder = sandbox / "files" / "class"
    folder.mkdir()
    file = folder / "image"

    @examples(40)
    @given(damaged(image_of(kind)))
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            found = data.from_folder(folder.parent, size=4)
            assert found.examples.shape == (1, 4, 4, 3)

    any_content()


def test_any_drawing(sandbox):
    @examples(40)
    @given(damaged(image_of("PNG", "1")))
    def any_content(content):
        with contained(sandbox):
            assert _resized(content, ("Greek", 1)).shape == (28, 28)

    any_content()


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_any_archive(method, sandbox):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as opened:
        for number in (1, 2):
            name = f"images_background/Greek/character01/0001_0{number}.png"
            opened.writestr(name, image_of("PNG", "1"))
    folder = sandbox / "files"
    (folder / "images_evaluation").mkdir()
    file = folder / "images_background.zip"

    @examples(50)
    @given(damaged(archive.getvalue()))
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            for drawings in _omniglot_sources.from_folder(folder).values():
                assert max(map(len, drawings)) <= _image_files.MOST_ENTRY_BYTES

    any_content()


def test_any_cache(sandbox):
    file = sandbox / "files" / "cache.npz"
    images = np.random.default_rng(0).integers(0, 255, (3, 4), np.uint8)
    _cache.write(file, _cache.Cached(images, "made from"), "")
    content = file.read_bytes()

    @examples(80)
    @given(damaged(content))
    def any_content(content):
        file.write_bytes(content)
        with contained(sandbox):
            found = _cache.read(file, images.shape)
            # What is read is what was written: the images have a checksum.
            assert found is not None
            np.testing.assert_array_equal(found.images, images)

    any_content()
