"""CIFAR-FS on data that tensorflow-datasets' own mocking would give: labels and random images."""

import types

import numpy as np
import pytest

from metajax.data import CacheError, DataNotFoundError, _tfds, cifar_fs
from metajax.data.cifar_fs import CLASSES, PER_CLASS

pytestmark = pytest.mark.usefixtures("nothing_there")
NAMES = sorted(name for part in CLASSES.values() for name in part)


class FakeBuilder:
    """CIFAR-100 as tensorflow-datasets reads it; image i of a class tells the two."""

    def __init__(self, missing=0):
        label = types.SimpleNamespace(int2str=NAMES.__getitem__)
        self.info = types.SimpleNamespace(
            features={"label": label}, file_format=types.SimpleNamespace(value="array_record")
        )
        self.missing = missing

    def as_data_source(self, *, split, decoders):
        assert decoders == {}
        each = range(500) if split == "train" else range(500, PER_CLASS - self.missing)
        for i in reversed(each):
            for label in range(100):
                image = np.zeros((32, 32, 3), np.uint8)
                image[0, 0] = label, i // 256, i % 256
                yield {"label": np.int64(label), "image": image}


@pytest.fixture
def prepared(monkeypatch):
    asked = []
    monkeypatch.setattr(_tfds, "prepared", lambda name, folder: asked.append(name) or FakeBuilder())
    return asked


def test_the_published_split_has_64_16_and_20_classes():
    assert [len(CLASSES[split]) for split in ("train", "validation", "test")] == [64, 16, 20]
    assert len(set(NAMES)) == 100
    assert all(list(part) == sorted(part) for part in CLASSES.values())


def test_all_images_of_the_split_s_classes(prepared):
    data = cifar_fs("test")
    assert data.examples.shape == (20, PER_CLASS, 32, 32, 3)
    labels = data.examples[:, :, 0, 0, 0]
    assert (labels == np.array([NAMES.index(n) for n in CLASSES["test"]])[:, None]).all()
    high, low = data.examples[0, :, 0, 0, 1:].astype(int).T
    np.testing.assert_array_equal(256 * high + low, np.arange(PER_CLASS))
    assert len(cifar_fs("train").counts) == 64
    assert prepared == ["cifar100"]  # then it was in the cache


def test_a_damaged_cache_is_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    (tmp_path / "cifar-fs-v1.npz").write_bytes(b"not a cache")
    with pytest.raises(CacheError, match="cifar-fs-v1"):
        cifar_fs("train")


def test_an_incomplete_data_set_is_refused(monkeypatch):
    monkeypatch.setattr(_tfds, "prepared", lambda name, folder: FakeBuilder(missing=1))
    with pytest.raises(ValueError, match="apple has 599"):
        cifar_fs("train")


def test_where_it_was_looked_for_is_told():
    with pytest.raises(DataNotFoundError, match=r"CIFAR-100 was not found(.|\n)*metajax\[prepare"):
        cifar_fs("train")


def test_the_split_is_named():
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test'"):
        cifar_fs("val")
