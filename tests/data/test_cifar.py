"""CIFAR-FS and FC100 on what tensorflow-datasets' own mocking makes of its ``cifar100``: no
TensorFlow and no download, but the real builder, with its features and metadata files."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from metajax.data import CacheError, DataNotFoundError, _tfds, cifar_fs, fc100
from metajax.data._cifar import CIFAR_FS, FC100, PER_CLASS, SUPERCLASSES, read

pytestmark = pytest.mark.usefixtures("nothing_there")
NAMES = sorted(name for part in CIFAR_FS.values() for name in part)  # CIFAR-100's own order
SIZES = {"train": 500, "test": 100}  # images of a class


class Complete(Sequence):
    """One of CIFAR-100's splits, the last class first; an image's first pixel tells which it is."""

    def __init__(self, split, missing=0):
        self.first = 0 if split == "train" else SIZES["train"]
        self.length = 100 * SIZES[split] - missing

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index >= self.length:
            raise IndexError(index)
        label, i = 99 - index % 100, self.first + index // 100
        image = np.zeros((32, 32, 3), np.uint8)
        image[0, 0] = label, i // 256, i % 256
        return {
            "id": f"{index:05d}",
            "image": image,
            "label": np.int64(label),
            "coarse_label": np.int64(label // 5),
        }


@pytest.fixture
def mocked(tmp_path, monkeypatch):
    """``tfds.testing.mock_data`` for a folder with the metadata of a prepared ``cifar100``."""
    folder = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    tfds = _tfds.import_tfds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mock_data, policy = tfds.testing.mock_data, tfds.testing.MockPolicy.USE_FILES
        builder = tfds.builder("cifar100", data_dir=folder, file_format="array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_dir, dataset_name=builder.name, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=name, shard_lengths=[100 * size], num_bytes=0, filename_template=template
        )
        for name, size in SIZES.items()
    ]
    builder.info.set_splits(tfds.core.SplitDict(splits))
    # Only a download tells the builder these; the prepared folder then keeps them.
    builder.info.features["label"].names = NAMES
    Path(builder.data_dir).mkdir(parents=True)
    builder.info.write_to_directory(builder.data_dir)
    return lambda **options: mock_data(policy=policy, data_dir=str(folder), **options)


@pytest.mark.parametrize(
    ("splits", "counts"),
    [(CIFAR_FS, [64, 16, 20]), (FC100, [60, 20, 20])],
    ids=["cifar-fs", "fc100"],
)
def test_the_published_splits_share_no_class(splits, counts):
    assert [len(splits[split]) for split in ("train", "validation", "test")] == counts
    assert sorted(name for part in splits.values() for name in part) == NAMES
    assert len(set(NAMES)) == 100
    assert all(list(part) == sorted(part) for part in splits.values())


def test_fc100_has_whole_superclasses():
    found = [classes.split() for part in SUPERCLASSES.values() for classes in part.values()]
    assert len(found) == 20
    assert all(len(classes) == 5 for classes in found)
    for split, part in SUPERCLASSES.items():
        assert set(" ".join(part.values()).split()) == set(FC100[split])


@pytest.mark.slow
def test_all_images_of_the_split_s_classes(mocked):
    asked = []

    def source(builder, split, decoders=None):
        asked.append((builder.name, split))
        return Complete(split)

    with mocked(as_data_source_fn=source):
        for load, splits in ((cifar_fs, CIFAR_FS), (fc100, FC100)):
            for split, names in splits.items():
                data, classes = load(split), len(names)
                assert data.examples.shape == (classes * PER_CLASS, 32, 32, 3)
                assert data.counts.tolist() == [600] * classes
                assert data.names == names
                labels = data.examples[:, 0, 0, 0].reshape(classes, PER_CLASS)
                assert (labels == np.array([NAMES.index(n) for n in names])[:, None]).all()
                high, low = data.examples[:PER_CLASS, 0, 0, 1:].astype(int).T
                np.testing.assert_array_equal(256 * high + low, np.arange(PER_CLASS))
    assert asked == [("cifar100", "train"), ("cifar100", "test")]  # then it was in the cache


def test_random_images_go_to_the_class_of_their_fine_label(mocked):
    with mocked(num_examples=120):
        builder = _tfds.prepared("cifar100", _tfds.prepared_folder())
        images = read(builder, NAMES)
        drawn = list(builder.as_data_source(split="train"))
    assert set(drawn[0]) == {"id", "image", "label", "coarse_label"}
    assert sum(map(len, images.values())) == 2 * len(drawn)  # the mock's splits are alike
    for name, found in images.items():
        expected = [each["image"] for each in drawn if each["label"] == NAMES.index(name)]
        assert len(found) == 2 * len(expected)
        if expected:
            np.testing.assert_array_equal(found, expected * 2)


def test_a_damaged_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    (tmp_path / "cifar-fs-v1.npz").write_bytes(b"not a cache")
    with pytest.raises(CacheError, match="cifar-fs-v1"):
        cifar_fs("train")


def test_an_incomplete_data_set_is_refused(mocked):
    """One image less, of the first class; and random labels, which no class has 600 of."""
    less = lambda builder, split, decoders=None: Complete(split, missing=split == "test")
    for options, message in (
        ({"as_data_source_fn": less}, "apple has 599. Prepare it again"),
        ({"num_examples": 30}, r"folder .*tfds does not hold 600 .* has \d+; .* and others"),
    ):
        with mocked(**options), pytest.raises(ValueError, match=message):
            cifar_fs("train")


def test_where_it_was_looked_for_is_told():
    for load in (cifar_fs, fc100):
        with pytest.raises(DataNotFoundError, match=r"CIFAR-100 was not found(.|\n)*metajax\[prep"):
            load("train")


def test_the_split_is_named():
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test'"):
        cifar_fs("val")
