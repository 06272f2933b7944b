import numpy as np
import pytest
from PIL import Image

from metajax.data import (
    ClassData,
    from_arrays,
    from_folder,
    select_classes,
    split_classes,
)
from metajax.errors import ArgumentError


def test_from_arrays_puts_every_example_in_its_class_in_order():
    rng = np.random.Generator(np.random.PCG64(0))
    labels = rng.choice(["ship", "bird", "frog", "deer"], 50, p=[0.4, 0.3, 0.2, 0.1])
    inputs = np.arange(50 * 6, dtype=np.float32).reshape(50, 3, 2)
    data = from_arrays(inputs, labels)
    for index, name in enumerate(["bird", "deer", "frog", "ship"]):
        own = inputs[labels == name]
        assert data.counts[index] == len(own)
        np.testing.assert_array_equal(data.examples[index, : len(own)], own)
        assert not data.examples[index, len(own) :].any()
    assert data.examples.dtype == np.float32
    assert data.counts.sum() == 50


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros([4, 2]), [0, 1, 2], r"labels \[examples\], got shapes \(4, 2\) and \(3,\)"),
        (np.zeros([4, 2]), np.zeros([4, 1]), r"and \(4, 1\)"),
        (np.array([[0.0], [np.nan], [np.inf]]), [0, 1, 2], "in 2 of 3.*number 1"),
        (np.zeros([0, 2]), [], "not empty"),
        (np.zeros([]), [], r"got shapes \(\)"),
        (np.zeros([2, 2]), [0.0, np.nan], "labels has NaN"),
    ],
)
def test_from_arrays_refuses_bad_input(inputs, labels, message):
    with pytest.raises(ArgumentError, match=message):
        from_arrays(inputs, labels)


@pytest.fixture
def folder(tmp_path):
    """Two classes of plain colours: class b has one image more."""
    for name, colours in {"b": ["red", "lime", "blue"], "a": ["white", "black"]}.items():
        (tmp_path / name).mkdir()
        for index, colour in enumerate(colours):
            Image.new("RGB", (12, 7), colour).save(tmp_path / name / f"{index}.png")
    (tmp_path / "a" / ".hidden").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not a class")
    return tmp_path


def test_from_folder_reads_classes_by_name_and_images_by_name(folder):
    data = from_folder(folder, size=5)
    assert data.examples.shape == (2, 3, 5, 5, 3)
    assert data.examples.dtype == np.uint8
    np.testing.assert_array_equal(data.counts, [2, 3])
    expected = [[[255] * 3, [0] * 3, [0] * 3], [[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    np.testing.assert_array_equal(data.examples[:, :, 2, 2], expected)


def test_from_folder_in_grey(folder):
    data = from_folder(folder, size=5, mode="L")
    assert data.examples.shape == (2, 3, 5, 5, 1)
    # ITU-R 601: 0.299 red, 0.587 green, 0.114 blue
    np.testing.assert_array_equal(data.examples[1, :, 0, 0, 0], [76, 150, 29])


def test_one_bit_images_keep_their_grey_levels_when_resized(tmp_path):
    (tmp_path / "a").mkdir()
    stripes = np.zeros([40, 40], np.uint8)
    stripes[:, ::3] = 255
    Image.fromarray(stripes).convert("1").save(tmp_path / "a" / "0.png")
    data = from_folder(tmp_path, size=10, mode="L")
    assert len(np.unique(data.examples)) > 2


def test_from_folder_names_what_it_cannot_read(folder):
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        from_folder(folder, size=5)


def test_a_truncated_image_is_named(folder):
    path = folder / "b" / "0.png"
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        from_folder(folder, size=5)


def test_images_of_16_bits_are_refused_rather_than_clipped(folder):
    Image.fromarray(np.full([6, 6], 40_000, np.uint16)).save(folder / "b" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits"):
        from_folder(folder, size=5)


def test_from_folder_refuses_empty_folders(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="has no subfolders"):
        from_folder(tmp_path_factory.mktemp("empty"))
    (folder / "c").mkdir()
    with pytest.raises(ValueError, match=r"c is empty"):
        from_folder(folder)
    with pytest.raises(ValueError, match="size"):
        from_folder(folder, size=0)
    with pytest.raises(ValueError, match="mode must be one of"):
        from_folder(folder, mode="CMYK")  # pyright: ignore[reportArgumentType]


def numbered(classes=10):
    counts = np.arange(classes, dtype=np.int32) % 3 + 1
    examples = np.zeros([classes, 3], np.float32)
    for c in range(classes):
        examples[c, : counts[c]] = c
    return ClassData(examples, counts)


def test_select_classes_by_index_and_by_mask():
    data = select_classes(numbered(), [4, 3])
    np.testing.assert_array_equal(data.counts, [2, 1])
    np.testing.assert_array_equal(data.examples, [[4, 4], [3, 0]])  # padding is cut to the largest
    data = select_classes(numbered(), numbered().counts == 3)
    np.testing.assert_array_equal(data.examples[:, 0], [2, 5, 8])


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        ([10], IndexError),
        ([-1], ArgumentError),
        ([1, 1], ArgumentError),
        ([0.5], IndexError),
        (np.zeros(10, bool), ArgumentError),
        (np.ones(9, bool), IndexError),
    ],
)
def test_select_classes_refuses(classes, error):
    with pytest.raises(error):
        select_classes(numbered(), classes)


def test_split_classes_is_a_fixed_partition():
    parts = split_classes(numbered(), (0.5, 0.2, 0.3))
    classes = [part.examples[:, 0].astype(int).tolist() for part in parts]
    assert [len(part) for part in classes] == [5, 2, 3]
    # A constant: splits must not move with a version of any library.
    assert classes == [[0, 4, 6, 8, 9], [5, 7], [1, 2, 3]]
    assert classes != [
        p.examples[:, 0].astype(int).tolist()
        for p in split_classes(numbered(), (0.5, 0.2, 0.3), seed=1)
    ]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.5, 0.4), "add up to 1"),
        ((1.2, -0.2), "positive"),
        ((), "add up to 1"),
        ((0.99, 0.01), "without a class"),
    ],
)
def test_split_classes_refuses(fractions, message):
    with pytest.raises(ValueError, match=message):
        split_classes(numbered(), fractions)
