"""Tests across domains: what is read, which trainings are needed, and the pixels' own figure."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import common
from experiments.fewshot import cross_domain, target_domain
from experiments.fewshot.cifar import config as cifar
from experiments.fewshot.cifar import train as cifar_train
from experiments.fewshot.omniglot import metric, train
from metajax.data import from_arrays

GREY = {"size": 28, "channels": 1, "known": ()}


def letters(dark=False):
    """Seven classes of 20 images, each a bright square of its own place, with noise."""
    labels = np.repeat(np.arange(7), 20)
    images = np.random.default_rng(0).integers(0, 40, (140, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4, 4 * label : 4 * label + 4] = 250
    return (255 - images if dark else images).astype(np.uint8), labels


@pytest.fixture
def npz(tmp_path):
    images, labels = letters()
    np.savez(tmp_path / "letters.npz", x=images, y=labels)
    return tmp_path / "letters.npz"


def test_an_npz_file_and_a_folder_of_dark_writing_are_the_same(tmp_path, npz):
    for number, (image, label) in enumerate(zip(*letters(dark=True), strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / str(label) / f"{number:03d}.png")
    one = target_domain.read(str(npz), **GREY)
    other = target_domain.read(str(tmp_path / "folder"), **GREY)
    assert (one.name, other.name) == ("letters", "folder")
    np.testing.assert_array_equal(one.data.examples, np.asarray(other.data.examples)[..., 0])
    assert one.task(5) == "5-way 5-shot, letters"


def test_what_doesn_t_fit_is_named(tmp_path, npz):
    with pytest.raises(common.RunError, match=r"shape \(32, 32, 3\).* has \(28, 28\) in uint8"):
        target_domain.read(str(npz), size=32, channels=3, known=())
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(common.RunError, match=r"target_domain: .*other\.npz can't be read"):
        target_domain.read(str(tmp_path / "other.npz"), **GREY)
    with pytest.raises(common.RunError, match=r"nothing\.npz can't be read"):
        target_domain.read("nothing.npz", **GREY)


def test_classes_of_fc100_that_are_known_are_left_out(monkeypatch):
    names = list("abcdefgh")
    images = np.zeros((80, 32, 32, 3), np.uint8)
    monkeypatch.setattr(target_domain, "fc100", lambda _: from_arrays(images, np.repeat(names, 10)))
    found = target_domain.read("fc100", size=32, channels=3, known=("b", "h", "z"))
    assert found.data.names == tuple("acdefg")


def test_the_models_of_both_tables_are_needed(tmp_path):
    config = cross_domain.Config(cyrillic=tmp_path / "letters.npz", steps=7)
    plan = cross_domain.trainings(config)
    folders = {t.folder for t in plan}
    assert "../omniglot-table/maml-fast-5way-7-seed0" in folders
    assert "../cifar-table/cifar-fs-conv4-maml-1shot-7-seed0" in folders
    assert not any("fc100-conv4" in folder or "20way" in folder for folder in folders)
    cells = {(t.method, cell) for t in plan for cell in t.cells}
    assert {cell for method, cell in cells if method == "prototypical"} == set(cross_domain.CELLS)
    of_method = {cell for method, cell in cells if method == "reptile"}
    assert of_method == {"cyrillic-1shot", "cyrillic-5shot"}
    for training in plan:
        if training.method != cross_domain.PIXELS:
            module = next(m for m in (train, metric, cifar_train) if m.main is training.main)
            module = cifar if module is cifar_train else module
            parsed = common.parse(module.Config, training.options, "", preset=module.preset)
            assert parsed.target_domain in ("fc100", str(config.cyrillic))


def test_the_pixels_tell_squares_apart(tmp_path, npz):
    """A table of the pixels alone; squares that lie apart are told apart by their means."""
    options = ["--methods", "pixels", "--cells", "cyrillic-1shot", "--cyrillic", str(npz)]
    out = tmp_path / "out"
    cross_domain.main([*options, "--test-episodes", "20", "--out", str(out)])
    lines = json.loads((out / "table.json").read_text())
    assert [(line["method"], line["cell"]) for line in lines] == [
        ("pixels", "cyrillic-1shot"),
        ("pixels", "cyrillic-5shot"),
    ]
    assert lines[0]["not_transductive"][0] > 99
    assert lines[0]["transductive"] is None


def test_cyrillic_cells_need_their_images(tmp_path):
    with pytest.raises(ValueError, match="cyrillic must name the letters' images"):
        cross_domain.main(["--cells", "cyrillic-1shot", "--out", str(tmp_path)])
