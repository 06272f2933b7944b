"""Bad input to the data sets' readers and samplers: values, folders and files."""

import os
import struct
import tracemalloc
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from table import Row, each, refused

import metajax
from metajax import data
from metajax.data import ClassData, _image_files, _omniglot_sources
from metajax.data.arrays import read_image

KEY = jax.random.key(0)
CLASSES = ClassData(np.zeros([6, 4, 8, 8], np.uint8), np.full(6, 4))
EPISODES = {"n_way": 2, "k_shot": 1, "query": 1}
FLOATS = ClassData(np.zeros([6, 4, 3], np.float32), np.full(6, 4))


def episodes(own=CLASSES, **options):
    return data.episode_sampler(own, **EPISODES | options)


def variable(**options):
    options = {"max_way": 3, "max_shot": 2, "query": 1} | options
    return data.variable_episode_sampler(CLASSES, **options)


VALUES = [
    Row("ragged", lambda: data.from_arrays([[1], [2, 3]], [0, 1]), ("inputs must be an array",)),
    Row("ragged-labels", lambda: data.from_arrays([1.0, 2.0], [[0], [1, 2]]), ("labels must be",)),
    Row("texts", lambda: data.from_arrays(["a", "b"], [0, 1]), ("inputs must be integers",)),
    Row("objects", lambda: data.from_arrays([{}, {}], [0, 1]), ("inputs must be integers",)),
    Row("path", lambda: data.from_folder(None), ("path must be a path", "None")),
    Row("path-null", lambda: data.from_folder("a\0b"), ("path must be a path", "a\\x00b")),
    Row("size-nan", lambda: data.from_folder("x", size=float("nan")), ("size must be", "nan")),
    Row("size-bool", lambda: data.from_folder("x", size=True), ("size must be", "True")),
    Row("mode-list", lambda: data.from_folder("x", mode=["L"]), ("mode must be one of", "['L']")),
    Row("imagenet-path", lambda: data.mini_imagenet(7), ("folder must be a path", "7")),
    Row(
        "imagenet-split", lambda: data.mini_imagenet("x", "val"), ("split must be one of", "'val'")
    ),
    Row("omniglot-path", lambda: data.omniglot(folder=7), ("folder must be a path", "7")),
    Row("omniglot-protocol", lambda: data.omniglot(protocol=None), ("protocol must be", "None")),
    Row("split-array", lambda: data.cifar_fs(np.ones(2)), ("split must be one of 'train'",)),
    Row("glyphs", lambda: data.glyphs("tests"), ("split must be one of 'train'", "'tests'")),
    Row("select-data", lambda: data.select_classes([1], [0]), ("data must be ClassData",)),
    Row("select-ragged", lambda: data.select_classes(CLASSES, [[0], [1, 2]]), ("classes must be",)),
    Row("fractions", lambda: data.split_classes(CLASSES, "0.5"), ("fractions must be", "'0.5'")),
    Row("fraction-text", lambda: data.split_classes(CLASSES, ["a"]), ("fractions must be", "'a'")),
    Row("split-seed", lambda: data.split_classes(CLASSES, seed=None), ("seed must be", "None")),
    Row("n-way", lambda: episodes(n_way=0), ("n_way must be at least 1", "got 0")),
    Row("n-way-many", lambda: episodes(n_way=7), ("n_way is 7", "only 6 classes")),
    Row("k-shot", lambda: episodes(k_shot="1"), ("k_shot must be", "'1'")),
    Row("k-shot-many", lambda: episodes(k_shot=4), ("k_shot + query is 4 + 1 = 5", "only 4")),
    Row("query", lambda: episodes(query=-3), ("query must be", "-3")),
    Row("rotations", lambda: episodes(rotations=True), ("rotations must be one of", "True")),
    Row(
        "no-images", lambda: episodes(FLOATS, rotations="per_class"), ("square images", "(6, 4, 3)")
    ),
    Row("groups", lambda: episodes(groups=[[0], [1, 2]]), ("groups must be integers",)),
    Row("no-data", lambda: episodes(np.zeros(3)), ("data must be ClassData", "float64[3]")),
    Row(
        "counts", lambda: episodes(CLASSES._replace(counts=np.ones(2, int))), ("data.counts", "[2]")
    ),
    Row("seed", lambda: episodes()(0), ("key must be one random key", "int 0")),
    Row("keys", lambda: episodes()(jax.random.split(KEY)), ("key must be one random key", "[2]")),
    Row("max-way", lambda: variable(max_way="3"), ("max_way must be", "'3'")),
    Row("min-way", lambda: variable(min_way=1), ("min_way must be", "1")),
    Row("balanced", lambda: variable(balanced=1), ("balanced must be True or False", "int 1")),
    Row("sinusoid", lambda: data.sinusoid_sampler(k_shot=0), ("k_shot must be at least 1", "0")),
    Row("sinusoid-key", lambda: data.sinusoid_sampler()("a"), ("key must be one random", "'a'")),
    Row("pixels", lambda: data.random_shifts(episodes(), -1), ("pixels must be", "-1")),
    Row("pixels-float", lambda: data.random_shifts(episodes(), 1.0), ("pixels must be", "1.0")),
    Row("shifted", lambda: data.random_shifts(1, 1), ("sample must be a function", "int 1")),
    Row(
        "shifted-tuple",
        lambda: data.random_shifts(lambda key: (1, 2), 1)(KEY),
        ("sample returns must be an Episode", "(1, 2)"),
    ),
    Row(
        "shifted-vectors",
        lambda: data.random_shifts(data.sinusoid_sampler(), 1)(KEY),
        ("larger images", "(10, 1)"),
    ),
]


@each(VALUES)
def test_it_is_refused_by_name(row):
    refused(row.call, row.words)


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


GOOD = "images_background/Greek/character01/0001_01.png"


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
    refused(lambda: read(path), (str(path), "leads out of it"), metajax.ArgumentError)
    assert listing(tmp_path) == before


def test_a_symbolic_link_in_an_archive(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = zip_of(tmp_path / "a.zip", {link: "/etc/passwd"})
    refused(lambda: read(path), ("'link.png' is a symbolic link",))


def test_bombs_in_an_archive(tmp_path, monkeypatch):
    """Sizes are those that come out, whatever an archive declares, and nothing is held beyond."""
    zeros = bytes(_image_files.MOST_ENTRY_BYTES + 1)
    path = zip_of(tmp_path / "one.zip", {"a.png": zeros})
    assert path.stat().st_size < 3000
    refused(lambda: read(path), (str(path), "'a.png'", str(_image_files.MOST_ENTRY_BYTES)))
    monkeypatch.setattr(_image_files, "MOST_BYTES", 1000)
    path = zip_of(tmp_path / "all.zip", {f"{n}.png": bytes(400) for n in range(3)})
    refused(lambda: read(path), (str(path), "more than 1000 bytes together"))
    monkeypatch.setattr(_image_files, "MOST_ENTRIES", 2)
    refused(lambda: read(path), (str(path), "3 files, more than 2"))


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
    refused(lambda: read(path), ("'a.png' has more than",))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * _image_files.MOST_ENTRY_BYTES


def test_an_archive_with_a_password(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"a.png": b"png"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(bytes(content))
    refused(lambda: read(path), ("cannot be read as a zip", "encrypted"))


def test_omniglot_reads_no_endless_and_no_huge_file(tmp_path):
    for part in _omniglot_sources.PARTS:
        (tmp_path / part / "Greek" / "character01").mkdir(parents=True)
    pipe = tmp_path / GOOD
    os.mkfifo(pipe)
    refused(lambda: _omniglot_sources.from_folder(tmp_path), (str(pipe), "no file"))
    pipe.unlink()
    pipe.write_bytes(bytes(_image_files.MOST_ENTRY_BYTES + 1))
    refused(lambda: _omniglot_sources.from_folder(tmp_path), (str(pipe), "more than"))


def png(width, height, rows):
    """A grey PNG that declares a size, and has some rows of zeros."""

    def chunk(kind, content):
        return (
            struct.pack(">L", len(content))
            + kind
            + content
            + struct.pack(">L", zlib.crc32(kind + content))
        )

    head = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 1) * rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8193, 12_000, 60_000, 2**31 - 1])
def test_an_image_that_declares_too_many_pixels(tmp_path, side):
    """Below, at and above the sizes of which Pillow warns and which it refuses itself."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 0))
    message = str(refused(lambda: read_image(path, 8, "L"), (str(path), "pixels")))
    assert str(_image_files.MOST_PIXELS) in message or "exceeds limit" in message


def test_a_program_in_place_of_an_image_is_not_run(tmp_path):
    """Pillow would hand PostScript to Ghostscript."""
    path = tmp_path / "program.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    refused(lambda: read_image(path, 8, "L"), (str(path), "cannot identify"))


def test_what_is_no_file_is_no_image(tmp_path):
    (tmp_path / "class").mkdir()
    os.mkfifo(tmp_path / "class" / "pipe.png")
    refused(lambda: data.from_folder(tmp_path), ("pipe.png", "no file"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_the_common_formats_are_read(tmp_path, kind):
    path = tmp_path / f"image.{kind.lower()}"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(path, kind)
    assert abs(int(read_image(path, 4, "RGB").mean()) - 200) <= 2


def test_a_cache_that_would_unpack_to_more_than_was_written(tmp_path):
    path = tmp_path / "cache.npz"
    data._cache.write(path, data._cache.Cached(np.zeros([4, 8], np.uint8), "x"))
    assert data._cache.read(path, (4, 8)) is not None
    np.savez_compressed(path, images=np.zeros(1 << 24, np.uint8), fingerprint="x", checksum="x")
    assert path.stat().st_size < 40_000
    refused(lambda: data._cache.read(path, (4, 8)), (str(path), "images.npy", "more than"))
    np.savez_compressed(path, images=np.zeros([4, 8], np.uint8), fingerprint="x" * 9999)
    refused(lambda: data._cache.read(path, (4, 8)), (str(path), "fingerprint.npy"))


def test_labels_beyond_the_classes_are_never_right():
    """The value of a label isn't known when a program is built; what comes of it is defined."""
    logits = jnp.zeros((2, 3))
    _, metrics = metajax.losses.classification_outcome(logits, jnp.array([7, -9]))
    assert float(metrics["accuracy"]) == 0
