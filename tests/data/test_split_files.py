"""Splits by the files that data sets come with, on small folders."""

import json

import numpy as np
import pytest
from PIL import Image

from metajax.data import DataNotFoundError, from_splits
from metajax.errors import ArgumentError

COLOURS = {"ant": 10, "bee": 20, "cat": 30}


@pytest.fixture(params=["", "images"], ids=["in the folder", "in images"])
def folder(request, tmp_path):
    """Three classes of two images; a class's number and the image's are its colour."""
    for name, colour in COLOURS.items():
        inside = tmp_path / request.param / name
        inside.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (6, 4), (colour + number,) * 3).save(inside / f"{name}_{number}.png")
    return tmp_path


def written(folder, content):
    if isinstance(content, str):
        path = folder / "split.csv"
        path.write_text(content, encoding="utf-8")
    else:
        path = folder / "split.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


EVERY_FORM = {
    "classes": ["cat", "ant"],
    "classes of superclasses": [["mammals", "cat"], ["insects", "ant"]],
    "files of classes": {"cat": ["cat_0.png", "cat_1.png"], "ant": ["ant_0.png", "ant_1.png"]},
    "three lists": {
        "label_names": ["ant", "bee", "cat"],
        "image_names": [f"/elsewhere/{n}/{n}_{i}.png" for n in ("cat", "ant") for i in (0, 1)],
        "image_labels": [2, 2, 0, 0],
    },
    "lines": "filename,label\ncat_0.png,cat\nant_0.png,ant\nant_1.png,ant\n\ncat_1.png,cat\n",
    "lines of Meta-Album": "\ufeffFILE_NAME,CATEGORY,SUPER_CATEGORY\n"
    "cat/cat_0.png,cat,a\ncat\\cat_1.png,cat,a\nant/ant_0.png,ant,b\nant/ant_1.png,ant,b\n",
}


@pytest.mark.parametrize("form", EVERY_FORM)
def test_every_form_gives_the_same_classes(folder, form):
    data = from_splits(folder, written(folder, EVERY_FORM[form]), size=5)
    assert data.names == ("ant", "cat")
    assert data.counts.tolist() == [2, 2]
    assert data.examples.shape == (4, 5, 5, 3)
    assert data.examples[:, 0, 0, 0].tolist() == [10, 11, 30, 31]
    grey = from_splits(folder, written(folder, EVERY_FORM[form]), size=5, mode="L")
    np.testing.assert_array_equal(grey.examples, data.examples[..., :1])


def test_images_that_lie_together_are_found_by_their_names(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (4, 4), number).save(tmp_path / "images" / f"n{number}.png")
    lines = "filename,label\nn2.png,x\nn0.png,y\nn1.png,x\n"
    data = from_splits(tmp_path, written(tmp_path, lines), size=4, mode="L")
    assert data.names == ("x", "y")
    assert data.examples[:, 0, 0, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["ant", "cat", "ant"], "names the class 'ant' 2 times"),
        (["ant", 3], "has 3 where a class was expected"),
        ([], "lists nothing"),
        ({"ant": ["ant_0.png", "ant_0.png"]}, "names the image 'ant/ant_0.png' 2 times"),
        ({"ant": "ant_0.png"}, "neither a list of classes nor images of classes"),
        ({"ant": [7]}, "has 7 where a name was expected"),
        ("filename,kind\na,b\n", "must have a column of .* got the columns filename, kind"),
        ("", "got the columns none"),
        ("filename,label\nant_0.png,ant\nant_1.png\n", "line 3 of .* lacks a file or a class"),
        (
            {"label_names": ["ant"], "image_names": ["ant_0.png"], "image_labels": [1]},
            "has the label 1 for 'ant_0.png', of 1 label_names",
        ),
        (
            {"label_names": ["ant"], "image_names": ["ant_0.png"], "image_labels": []},
            "as many image_labels as image_names",
        ),
        (
            {"label_names": ["ant", "ant"], "image_names": [], "image_labels": []},
            "names the class 'ant' 2 times",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(folder, content, message):
    with pytest.raises(ArgumentError, match=message):
        from_splits(folder, written(folder, content))


@pytest.mark.parametrize(
    ("content", "lacking"),
    [
        (["ant", "dog"], "lacks 1 of what .* lists: dog"),
        (["ant", "../ant"], r"lists: \.\./ant"),
        ({"ant": ["ant_0.png", "ant_7.png"]}, "lists: ant_7.png"),
        ({"ant": ["../../ant_0.png"]}, r"lists: \.\./\.\./ant_0.png"),
        ({"ant": [f"{n}.png" for n in range(9)]}, "lacks 9 .* 0.png, 1.png, 2.png and others"),
    ],
)
def test_what_is_not_there_is_named(folder, content, lacking):
    with pytest.raises(DataNotFoundError, match=lacking):
        from_splits(folder, written(folder, content))


def test_damaged_files_are_named(folder, tmp_path):
    (tmp_path / "split.json").write_text('["ant"', encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"split: .*split\.json cannot be read"):
        from_splits(folder, tmp_path / "split.json")
    for name, given in (("folder", (tmp_path / "no", tmp_path)), ("split", (tmp_path, "no.csv"))):
        with pytest.raises(DataNotFoundError, match=f"{name}='.*no.*' does not exist"):
            from_splits(*given)
    image = next(folder.rglob("ant_1.png"))
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(ArgumentError, match=r"ant_1.png cannot be read as an image"):
        from_splits(folder, written(folder, ["ant"]))
    for file in image.parent.iterdir():
        file.unlink()
    with pytest.raises(ArgumentError, match="is empty: class 'ant' has no image"):
        from_splits(folder, written(folder, ["ant"]))
