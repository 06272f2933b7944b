"""The cache is never trusted, and never harmed, when it isn't what was written."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from omniglot_standin import assert_same_drawings, write_zips

from metajax.data import CacheError, _cache, cache_folder, omniglot

pytestmark = pytest.mark.usefixtures("small_omniglot")


@pytest.fixture
def cached(tmp_path):
    omniglot("all", folder=write_zips(tmp_path / "zips"))
    return tmp_path / "cache" / "omniglot-28x28-v1.npz"


def assert_refused(path, message):
    before = path.read_bytes()
    with pytest.raises(CacheError, match=message) as caught:
        omniglot("all")
    assert str(path) in str(caught.value)
    assert "METAJAX_CACHE" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_cache_is_refused_and_left(cached, keep):
    cached.write_bytes(cached.read_bytes()[:keep])
    assert_refused(cached, "cannot be read")


def test_every_flipped_byte_of_the_images_is_noticed(cached):
    content = cached.read_bytes()
    for position in range(100, 600, 71):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        cached.write_bytes(bytes(damaged))
        assert_refused(cached, "cannot be read|checksum|holds")


def test_foreign_files_are_refused(cached):
    cached.write_text("something else")
    assert_refused(cached, "cannot be read")
    np.savez(cached, images=np.zeros([7, 3, 28, 28], np.uint8))
    assert_refused(cached, "cannot be read")
    with cached.open("wb") as file:
        np.save(file, np.zeros([7, 3, 28, 28], np.uint8))
    assert_refused(cached, "cannot be read")
    _cache.write(cached, _cache.Cached(np.zeros([7, 3, 28, 27], np.uint8), "x"), "")
    assert_refused(cached, r"holds uint8 \(7, 3, 28, 27\)")
    _cache.write(cached, _cache.Cached(np.zeros([7, 3, 28, 28], np.float32), "x"), "")
    assert_refused(cached, "holds float32")


def test_a_cache_with_pickled_content_is_not_run(cached):
    np.savez(cached, images=np.array([object()]), fingerprint="x", checksum="x", allow_pickle=True)
    assert_refused(cached, "cannot be read")


def test_a_checksum_that_does_not_fit_is_refused(cached):
    with np.load(cached) as content:
        parts = dict(content)
    parts["images"][0, 0, 0, 0] ^= 1
    np.savez(cached, **parts)
    assert_refused(cached, "checksum")


def test_what_would_unpack_to_more_than_was_written_is_refused(tmp_path):
    path = tmp_path / "cache.npz"
    _cache.write(path, _cache.Cached(np.zeros([4, 8], np.uint8), "x"), "")
    assert _cache.read(path, (4, 8)) is not None
    np.savez_compressed(path, images=np.zeros(1 << 24, np.uint8), fingerprint="x", checksum="x")
    assert path.stat().st_size < 40_000
    with pytest.raises(CacheError, match=r"cache\.npz .*images\.npy has .* more than"):
        _cache.read(path, (4, 8))
    np.savez_compressed(path, images=np.zeros([4, 8], np.uint8), fingerprint="x" * 9999)
    with pytest.raises(CacheError, match=r"fingerprint\.npy has"):
        _cache.read(path, (4, 8))


def test_the_cache_folder_is_the_users_unless_it_is_named(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"  # named by the fixture
    monkeypatch.delenv("METAJAX_CACHE")
    monkeypatch.setattr(_cache.platformdirs, "user_cache_dir", lambda name: f"/caches/{name}")
    assert cache_folder() == pathlib.Path("/caches/metajax")


def test_a_write_that_fails_leaves_nothing_and_harms_nothing(tmp_path, monkeypatch):
    target = tmp_path / "a.npz"
    _cache.write(target, _cache.Cached(np.ones([2], np.uint8), "first"), "")

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.warns(UserWarning, match=r"Words could not be cached.*disk full"):
        _cache.write(target, _cache.Cached(np.zeros([2], np.uint8), "second"), "Words")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    found = _cache.read(target, (2,))
    assert found is not None
    assert found.fingerprint == "first"


def test_a_cache_that_cannot_be_written_warns_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / "file" / "below"))
    root = write_zips(tmp_path / "zips")
    with pytest.warns(UserWarning, match="could not be cached"):
        assert_same_drawings(omniglot("all", folder=root).examples)


WRITER = """
import sys, types
for name in ("metajax", "metajax.data"):  # the cache alone, without what takes seconds to import
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name.replace(".", "/")]
from pathlib import Path
import numpy as np
from metajax.data import _cache
value = int(sys.argv[2])
for _ in range(30):
    cached = _cache.Cached(np.full([200, 200], value, np.uint8), str(value))
    _cache.write(Path(sys.argv[1]), cached, "the test")
"""


def test_two_processes_that_fill_the_same_cache_leave_one_of_their_files_at_any_time(tmp_path):
    target = tmp_path / "a.npz"
    root = _cache.__file__.removesuffix("/metajax/data/_cache.py")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(target), str(value)], cwd=root)
        for value in (1, 2)
    ]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = _cache.read(target, (200, 200))  # raises for anything but a whole file
        if found is not None:
            reads += 1
            assert (found.images == int(found.fingerprint)).all()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
