"""Where Omniglot comes from, on a small stand-in for its files."""

import os
import struct
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from omniglot_standin import (
    CHARACTERS,
    assert_same_drawings,
    expected,
    lake_files,
    png,
    write_folders,
    write_zips,
)

from metajax.data import DataNotFoundError, _image_files, _omniglot_sources, _tfds, omniglot

pytestmark = pytest.mark.usefixtures("small_omniglot")


def test_folders_zips_and_a_clone_give_one_array(tmp_path, monkeypatch):
    folders = omniglot("all", folder=write_folders(tmp_path / "unpacked"))
    arrays = [folders.examples]
    for index, root in enumerate(["zips", "clone/python"]):
        monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / f"cache{index}"))
        write_zips(tmp_path / root)
        named = tmp_path / root.split("/")[0]
        arrays.append(omniglot("all", folder=named).examples)
    assert_same_drawings(arrays[0])
    for other in arrays[1:]:
        np.testing.assert_array_equal(other, arrays[0])
    assert len(np.unique(arrays[0])) > 2  # grey levels
    assert arrays[0].max() == 255


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_OMNIGLOT", str(write_zips(tmp_path / "zips")))
    assert_same_drawings(omniglot("all").examples)
    monkeypatch.setenv("METAJAX_OMNIGLOT", str(tmp_path / "gone"))
    with pytest.raises(DataNotFoundError, match="gone"):
        omniglot("all")


def test_a_class_is_named_by_alphabet_and_character(tmp_path):
    data = omniglot("all", folder=write_folders(tmp_path / "unpacked"))
    names = [f"{alphabet}/character0{number}" for alphabet, number in CHARACTERS]
    assert data.names == tuple(names)
    drawings = data.examples[data.starts[2] :][: data.counts[2]]
    assert {d.tobytes() for d in drawings} == {d.tobytes() for d in expected()[2]}


def test_the_second_run_needs_no_source(tmp_path, monkeypatch):
    first = omniglot("all", folder=write_zips(tmp_path / "zips"))
    for source in ("from_folder", "from_builder"):
        monkeypatch.setattr(_omniglot_sources, source, lambda *_: pytest.fail("read a source"))
    np.testing.assert_array_equal(omniglot("all").examples, first.examples)


def test_a_named_folder_must_be_there_even_if_a_cache_is(tmp_path):
    omniglot("all", folder=write_zips(tmp_path / "zips"))
    with pytest.raises(DataNotFoundError, match="elsewhere"):
        omniglot("all", folder=tmp_path / "elsewhere")
    (tmp_path / "half").mkdir()
    (tmp_path / "zips" / "images_background.zip").rename(tmp_path / "half/images_background.zip")
    with pytest.raises(DataNotFoundError, match=r"neither images_evaluation\.zip nor"):
        omniglot("all", folder=tmp_path / "half")


def test_a_named_folder_with_other_drawings_is_not_answered_from_the_cache(tmp_path):
    omniglot("all", folder=write_zips(tmp_path / "zips"))
    cache = tmp_path / "cache" / "omniglot-28x28-v1.npz"
    before = cache.read_bytes()
    files = dict(lake_files())
    name = "images_evaluation/Aleph/character02/0007_03.png"
    files[name] = png(("Alpha", 1), 0)
    other = omniglot("all", folder=write_zips(tmp_path / "other", files.items()))
    images = {image.tobytes() for image in other.examples[18:]}
    assert expected()[0, 0].tobytes() in images
    assert cache.read_bytes() == before  # and what was cached is not harmed


def test_no_endless_and_no_huge_file_is_read(tmp_path):
    for part in _omniglot_sources.PARTS:
        (tmp_path / part / "Greek" / "character01").mkdir(parents=True)
    pipe = tmp_path / "images_background/Greek/character01/0001_01.png"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"0001_01\.png can't be read: it is no file"):
        omniglot("all", folder=tmp_path)
    pipe.unlink()
    pipe.write_bytes(bytes(_image_files.MOST_ENTRY_BYTES + 1))
    with pytest.raises(ValueError, match=r"0001_01\.png can't be read: it has more than"):
        omniglot("all", folder=tmp_path)


def test_an_unreadable_zip_is_named(tmp_path):
    root = write_zips(tmp_path / "zips")
    path = root / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"images_evaluation\.zip cannot be read as a zip"):
        omniglot("all", folder=root)


def test_a_damaged_drawing_is_named(tmp_path):
    files = dict(lake_files())
    files["images_background/Alpha/character02/0002_01.png"] = b"\x89PNG\r\n\x1a\nrubbish"
    root = write_folders(tmp_path / "folders", files.items())
    with pytest.raises(ValueError, match="Alpha/character02 cannot be read"):
        omniglot("all", folder=root)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_background/Alpha/character02/0002_01.png": None}, "Alpha/character02 has 2"),
        ({"images_background/Alpha/character09/0099_01.png": b""}, "Alpha/character09 is unknown"),
    ],
)
def test_incomplete_drawings_are_refused(tmp_path, change, message):
    files = {n: c for n, c in ({**dict(lake_files()), **change}).items() if c is not None}
    root = write_folders(tmp_path / "folders", files.items())
    with pytest.raises(ValueError, match=message):
        omniglot("all", folder=root)
    assert not (tmp_path / "cache").exists()


def test_nothing_found_says_what_was_tried_and_three_ways_on(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        omniglot("train")
    message = str(caught.value)
    for part in (
        "none was named",
        str(tmp_path / "cache"),
        str(tmp_path / "no tfds"),
        "holds no prepared omniglot",
        "TensorFlow, which is not installed",
        "METAJAX_OMNIGLOT",
        "metajax[prepare]",
        "TFDS_DATA_DIR",
        "make demo",
    ):
        assert part in message
    assert isinstance(caught.value, FileNotFoundError)
    assert not (tmp_path / "cache").exists()


class FakeBuilder:
    """Stands for tensorflow-datasets' builder; the drawings come in another order."""

    def __init__(self, log, file_format="array_record"):
        names = sorted({alphabet for alphabet, _ in CHARACTERS})
        alphabet = types.SimpleNamespace(int2str=names.__getitem__)
        self.names, self.log = names, log
        self.info = types.SimpleNamespace(
            features={"alphabet": alphabet},
            file_format=types.SimpleNamespace(value=file_format),
        )

    def download_and_prepare(self):
        self.log.append("download_and_prepare")

    def as_data_source(self, *, split, decoders):
        assert decoders == {"image": "skip"}
        self.log.append(split)
        warnings.warn("noise that users can do nothing about", DeprecationWarning, stacklevel=1)
        chosen = CHARACTERS[:5] if split == "train" else CHARACTERS[5:]
        for drawing in (1, 2, 0):
            for character in chosen[::-1]:
                yield {
                    "alphabet": np.int64(self.names.index(character[0])),
                    "alphabet_char_id": np.int64(character[1] - 1),
                    "image": png(character, drawing),
                }


@pytest.fixture
def fake_tfds(monkeypatch):
    log = []
    fake = types.SimpleNamespace(
        decode=types.SimpleNamespace(SkipDecoding=lambda: "skip"),
        builder=lambda name, data_dir: (log.append((name, data_dir)), FakeBuilder(log))[1],
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    return log


def test_a_download_is_prepared_and_gives_the_same_array(tmp_path, monkeypatch, fake_tfds):
    monkeypatch.setattr(_tfds.importlib.util, "find_spec", lambda name: object())
    downloaded = omniglot("all").examples
    assert fake_tfds == [
        ("omniglot", tmp_path / "no tfds"),
        "download_and_prepare",
        "train",
        "test",
    ]
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / "cache2"))
    lake = omniglot("all", folder=write_zips(tmp_path / "zips")).examples
    np.testing.assert_array_equal(downloaded, lake)


def test_prepared_files_are_read_before_anything_is_downloaded(tmp_path, monkeypatch, fake_tfds):
    monkeypatch.setattr(_tfds.importlib.util, "find_spec", lambda name: object())
    version = tmp_path / "no tfds" / "omniglot" / "3.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    assert_same_drawings(omniglot("all").examples)
    assert "download_and_prepare" not in fake_tfds


def test_a_failed_download_is_told(monkeypatch, fake_tfds):
    monkeypatch.setattr(_tfds.importlib.util, "find_spec", lambda name: object())

    def fail(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeBuilder, "download_and_prepare", fail)
    with pytest.raises(DataNotFoundError, match="no route to host"):
        omniglot("all")


def test_records_in_tensorflows_own_format_are_read_without_it(tmp_path):
    """The default format of tensorflow-datasets, which its own data_source refuses."""
    contents = [b"first", b"", b"the third record"]
    path = tmp_path / "omniglot-train.tfrecord-00000-of-00001"
    path.write_bytes(b"".join(struct.pack("<Q", len(c)) + b"SUM1" + c + b"SUM2" for c in contents))
    builder = FakeBuilder([], "tfrecord")
    builder.info.splits = {"train": types.SimpleNamespace(filepaths=[path])}
    builder.info.features = types.SimpleNamespace(
        deserialize_example_np=lambda record, decoders: {"image": record, "decoders": decoders}
    )
    found = list(_tfds.examples(builder, "train", {"image": "skip"}))
    assert [example["image"] for example in found] == contents


def test_the_prepared_folder_has_a_default(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert _tfds.prepared_folder() == Path.home() / "tensorflow_datasets"
