import dataclasses
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from metajax.data import (
    ClassData,
    DataNotFoundError,
    episode_sampler,
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
    assert data.names == ("bird", "deer", "frog", "ship")
    for index, name in enumerate(data.names):
        own = inputs[labels == name]
        assert data.counts[index] == len(own)
        np.testing.assert_array_equal(class_of(data, index), own)
    assert data.examples.dtype == np.float32
    assert data.examples.shape == (50, 3, 2)


def class_of(data, index):
    return data.examples[data.starts[index] :][: data.counts[index]]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3, 1, 2, 3], ("1", "2", "3")),
        ([-5, 900, 7, -5, 900, 7], ("-5", "7", "900")),
        (np.array([1, 2, 255] * 2, np.uint8), ("1", "2", "255")),
        ([1.0, 2.0, 2.5] * 2, ("1.0", "2.0", "2.5")),
        (["c", "a", "b"] * 2, ("a", "b", "c")),
        (np.array(["c", "a", "b"] * 2, object), ("a", "b", "c")),
    ],
)
def test_any_labels_become_classes_from_0_on(labels, names):
    data = from_arrays(np.arange(6), labels)
    assert data.names == names
    assert data.counts.tolist() == [2, 2, 2]
    for i, name in enumerate(names):
        assert [str(labels[k]) for k in class_of(data, i)] == [name, name]


def test_labels_from_1_on_give_episodes_with_labels_from_0_on():
    data = from_arrays(np.arange(10), np.repeat([1, 2, 3, 4, 5], 2))
    episode = jax.jit(episode_sampler(data, n_way=5, k_shot=1, query=1))(jax.random.key(0))
    assert episode.support.targets.tolist() == episode.query.targets.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros([4, 2]), [0, 1, 2], r"labels \[examples\], got shapes \(4, 2\) and \(3,\)"),
        (np.zeros([4, 2]), np.zeros([4, 1]), r"and \(4, 1\)"),
        (np.array([[0.0], [np.nan], [np.inf]]), [0, 1, 2], "in 2 of 3.*number 1"),
        (np.zeros([0, 2]), [], "not empty"),
        (np.zeros([]), [], r"got shapes \(\)"),
        (np.zeros([2, 2]), [0.0, np.nan], "labels has NaN"),
        (np.zeros([2, 2]), ["a", None], "labels must be of one kind that can be sorted"),
        (np.zeros([2, 2]), np.array(["a", np.nan], object), "labels must be of one kind"),
        (np.zeros([2, 2]), [[0, 1], [1]], "labels must be"),
        (np.zeros([3, 2]), np.eye(3), r"and \(3, 3\)"),
        (["a", "b"], [0, 1], r"inputs must be an array of numbers, got \['a', 'b'\]"),
        ({"image": np.zeros([2, 3])}, [0, 1], "inputs must be an array of numbers, got {'image"),
        (np.array([1.0, np.nan * 1j]), [0, 1], "in 1 of 2"),
        (
            [np.zeros([84, 84, 3]), np.zeros([84, 84, 3]), np.zeros([80, 84, 3])],
            [0, 1, 2],
            r"one shape, got \(84, 84, 3\) \(number 0\), \(80, 84, 3\) \(number 2\)\. Resize",
        ),
        (
            [np.zeros([8, 8]), np.zeros([8, 6]), np.zeros([8, 6, 3]), np.zeros(2), np.zeros(3)],
            range(5),
            r"\(8, 8\) \(number 0\), \(8, 6\) \(number 1\), \(8, 6, 3\) \(number 2\) and others",
        ),
        ([Image.new("L", (5, 4)), Image.new("L", (5, 5))], [0, 1], r"\(4, 5\) .*, \(5, 5\)"),
        ([[[1], [1, 2]], [[1]]], [0, 1], r"rows of different lengths \(number 0\), \(1, 1\)"),
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
    assert data.examples.shape == (5, 5, 5, 3)
    assert data.examples.dtype == np.uint8
    assert data.names == ("a", "b")
    np.testing.assert_array_equal(data.counts, [2, 3])
    expected = [[255] * 3, [0] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    np.testing.assert_array_equal(data.examples[:, 2, 2], expected)


def test_images_of_any_size_are_resized(folder):
    """To the mean of the colours, which here are those of two halves."""
    image = Image.new("RGB", (30, 8), "black")
    image.paste("white", (15, 0, 30, 8))
    image.save(folder / "a" / "2.png")
    data = from_folder(folder, size=2)
    assert data.examples.shape == (6, 2, 2, 3)
    np.testing.assert_allclose(data.examples[2, :, :, 0], [[0, 255]] * 2, atol=30)


def test_from_folder_in_grey(folder):
    data = from_folder(folder, size=5, mode="L")
    assert data.examples.shape == (5, 5, 5, 1)
    # ITU-R 601: 0.299 red, 0.587 green, 0.114 blue
    np.testing.assert_array_equal(data.examples[2:, 0, 0, 0], [76, 150, 29])


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
    (folder / "c" / "Thumbs.db").write_bytes(b"from a system")
    with pytest.raises(ValueError, match=r"c is empty"):
        from_folder(folder)
    with pytest.raises(ValueError, match="size"):
        from_folder(folder, size=0)
    with pytest.raises(ValueError, match="mode must be one of"):
        from_folder(folder, mode="CMYK")  # pyright: ignore[reportArgumentType]


def test_what_systems_leave_is_passed_over(folder):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r"):
        (folder / "a" / name).write_bytes(b"from a system")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        (folder / name).mkdir()
    assert from_folder(folder, size=2).counts.tolist() == [2, 3]


@pytest.fixture
def nested(tmp_path):
    """Two folders of two classes, each with an image."""
    for index, name in enumerate(["test/cow", "test/elk", "train/cat", "train/dog"]):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (3, 3), 10 * index).save(tmp_path / name / "0.png")
    return tmp_path


def test_a_folder_of_train_and_test_says_what_to_pass(nested):
    message = (
        r"test.cow is a folder, where an image of class 'test' .* pass one of them: from_folder"
    )
    with pytest.raises(ArgumentError, match=message):
        from_folder(nested)
    assert from_folder(nested / "train", size=2).names == ("cat", "dog")


def test_classes_in_groups_of_classes(nested):
    with pytest.raises(ArgumentError, match="pass depth=2"):
        from_folder(nested)
    data = from_folder(nested, size=2, mode="L", depth=2)
    assert data.names == ("test/cow", "test/elk", "train/cat", "train/dog")
    np.testing.assert_array_equal(data.examples[:, 0, 0, 0], [0, 10, 20, 30])
    with pytest.raises(ArgumentError, match=r"cow has no subfolders"):
        from_folder(nested, depth=3)
    with pytest.raises(ArgumentError, match="depth must be at least 1, got 0"):
        from_folder(nested, depth=0)


def test_from_folder_needs_a_folder(folder):
    with pytest.raises(DataNotFoundError, match=r"path=.*nowhere.* does not exist"):
        from_folder(folder / "nowhere")
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("a/0.png", b"")
    with pytest.raises(ArgumentError, match=r"all\.zip is a file, not a folder"):
        from_folder(folder / "all.zip")
    with pytest.raises(ArgumentError, match=r"a has no subfolders.*one for each class"):
        from_folder(folder / "a")
    with pytest.raises(ArgumentError, match="path must be a path, got int 3"):
        from_folder(3)  # pyright: ignore[reportArgumentType]


def test_links_are_followed_or_named(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "x").symlink_to(folder / "b")
    (linked / "y").mkdir()
    (linked / "y" / "0.png").symlink_to(folder / "a" / "0.png")
    data = from_folder(linked, size=2)
    assert (data.names, data.counts.tolist()) == (("x", "y"), [3, 1])
    (linked / "y" / "1.png").symlink_to(folder / "gone.png")
    with pytest.raises(ArgumentError, match=r"1\.png cannot be read.*is missing"):
        from_folder(linked)
    (linked / "z").symlink_to(folder / "gone")
    with pytest.raises(ArgumentError, match="z is a link that leads nowhere"):
        from_folder(linked)


def numbered(classes=10):
    counts = np.arange(classes, dtype=np.int32) % 3 + 1
    examples = np.repeat(np.arange(classes, dtype=np.float32), counts)
    return ClassData(examples, counts, tuple(f"class {c}" for c in range(classes)))


def test_select_classes_by_index_and_by_mask():
    data = select_classes(numbered(), [4, 3])
    np.testing.assert_array_equal(data.counts, [2, 1])
    np.testing.assert_array_equal(data.examples, [4, 4, 3])
    assert data.names == ("class 4", "class 3")
    data = select_classes(numbered(), numbered().counts == 3)
    np.testing.assert_array_equal(data.examples, [2, 2, 2, 5, 5, 5, 8, 8, 8])
    assert select_classes(dataclasses.replace(numbered(), names=()), [1]).names == ()


def test_data_on_the_device_can_be_selected_from():
    data = select_classes(jax.tree.map(jnp.asarray, numbered()), [4, 3])
    np.testing.assert_array_equal(data.examples, [4, 4, 3])


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
    classes = [classes_of(part) for part in parts]
    assert [len(part) for part in classes] == [5, 2, 3]
    assert parts[1].names == ("class 5", "class 7")
    # A constant: splits must not move with a version of any library.
    assert classes == [[0, 4, 6, 8, 9], [5, 7], [1, 2, 3]]
    assert classes != [
        classes_of(part) for part in split_classes(numbered(), (0.5, 0.2, 0.3), seed=1)
    ]


def classes_of(part):
    return part.examples[part.starts].astype(int).tolist()


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
