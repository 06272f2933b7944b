"""miniImageNet's split on small folders."""

import numpy as np
import pytest
from PIL import Image

from metajax.data import DataNotFoundError, mini_imagenet
from metajax.data._mini_imagenet import CLASSES


@pytest.fixture
def folder(tmp_path):
    """Every class with two images of one colour, spread over train, val and the folder itself."""
    names = sorted(name for part in CLASSES.values() for name in part)
    for i, name in enumerate(names):
        place = tmp_path / ("train", "val", "")[i % 3] / name
        place.mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (9, 7), (2 * i, j, 0)).save(place / f"{j}.png")
    return tmp_path


def test_the_published_split_has_64_16_and_20_classes():
    assert [len(CLASSES[split]) for split in ("train", "validation", "test")] == [64, 16, 20]
    assert len({name for part in CLASSES.values() for name in part}) == 100


def test_the_identifier_decides_the_split(folder):
    names = sorted(name for part in CLASSES.values() for name in part)
    for split in ("train", "validation", "test"):
        data = mini_imagenet(folder, split, size=4)
        assert data.examples.shape == (2 * len(CLASSES[split]), 4, 4, 3)
        colours = [2 * names.index(name) for name in CLASSES[split]]
        np.testing.assert_array_equal(data.examples[::2, 0, 0, 0], colours)


def test_a_class_in_the_folders_of_two_splits_is_named_with_both(folder):
    name = sorted(name for part in CLASSES.values() for name in part)[0]  # in train already
    (folder / "test" / name).mkdir(parents=True)
    split = next(split for split, part in CLASSES.items() if name in part)
    both = rf"class {name} is there twice: .*train.{name} and .*test.{name}"
    with pytest.raises(ValueError, match=both):
        mini_imagenet(folder, split, size=4)


def test_what_is_missing_or_twice_there_is_named(folder):
    first = CLASSES["test"][0]
    place = next(path for path in folder.rglob(first))
    twin = folder / "images" / first
    twin.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"class {first} is there twice"):
        mini_imagenet(folder, "test", size=4)
    twin.rmdir()
    place.rename(folder / "elsewhere")
    with pytest.raises(DataNotFoundError, match=rf"lacks 1 of the 20 .* test split: {first}"):
        mini_imagenet(folder, "test", size=4)
    with pytest.raises(ValueError, match="split must be one of"):
        mini_imagenet(folder, "val")
