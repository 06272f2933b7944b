"""Omniglot's splits, and its facts on the real data where they are found."""

import os
from pathlib import Path

import numpy as np
import pytest

from metajax.data import _omniglot_sources, omniglot, omniglot_alphabets
from metajax.data._omniglot import BACKGROUND, CHARACTERS, EVALUATION, split_classes_of

REAL_FOLDER = os.environ.get("METAJAX_OMNIGLOT")
REAL_PREPARED = os.environ.get("TFDS_DATA_DIR")
needs_folder = pytest.mark.skipif(
    not REAL_FOLDER, reason="METAJAX_OMNIGLOT does not name a folder with Lake's Omniglot"
)
needs_prepared = pytest.mark.skipif(
    not REAL_PREPARED, reason="TFDS_DATA_DIR does not name a folder with a prepared Omniglot"
)


def test_the_table_of_characters():
    assert sum(n for _, n in BACKGROUND) == 964
    assert sum(n for _, n in EVALUATION) == 659
    assert len(BACKGROUND) == 30
    assert len(EVALUATION) == 20
    for part in (BACKGROUND, EVALUATION):
        assert [name for name, _ in part] == sorted(name for name, _ in part)
    assert len(set(CHARACTERS)) == 1623


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [("maml", [1100, 100, 423]), ("vinyals", [1028, 172, 423]), ("lake", [792, 172, 659])],
)
def test_splits_are_disjoint_and_have_the_published_sizes(protocol, sizes):
    parts = [split_classes_of(s, protocol=protocol) for s in ("train", "validation", "test")]
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1623))


def test_maml_split_is_a_constant_that_mixes_both_sources():
    test = split_classes_of("test")
    assert test[:8].tolist() == [0, 1, 2, 3, 4, 15, 17, 22]
    assert split_classes_of("validation")[:4].tolist() == [18, 36, 81, 83]
    background = np.mean(test < 964)
    assert abs(background - 964 / 1623) < 0.08


def test_vinyals_cut_falls_inside_gurmukhi():
    name = lambda split: [CHARACTERS[i] for i in split_classes_of(split, protocol="vinyals")]
    assert {n for a, n in name("train") if a == "Gurmukhi"} == set(range(1, 42))
    assert {n for a, n in name("test") if a == "Gurmukhi"} == {42, 43, 44, 45}
    assert {a for a, _ in name("validation")} == {
        "Armenian",
        "Bengali",
        "Early_Aramaic",
        "Hebrew",
        "Mkhedruli_(Georgian)",
    }


def test_lake_s_evaluation_set_teaches_nothing():
    alphabets = lambda split: {CHARACTERS[i][0] for i in split_classes_of(split, protocol="lake")}
    background, evaluation = ({name for name, _ in part} for part in (BACKGROUND, EVALUATION))
    assert alphabets("train") | alphabets("validation") == background
    assert len(alphabets("train")) == 25
    assert alphabets("test") == evaluation
    counts = np.unique(omniglot_alphabets("test", protocol="lake"), return_counts=True)[1]
    assert counts.min() == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split must be one of"),
        ({"protocol": "lakes"}, "protocol must be one of"),
    ],
)
def test_unknown_split_or_protocol(arguments, message):
    with pytest.raises(ValueError, match=message):
        omniglot(**arguments)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.fixture
def real(real_cache, monkeypatch):
    """All 1,623 characters as read from Lake's files."""
    monkeypatch.setenv("METAJAX_CACHE", str(real_cache))
    return omniglot("all", folder=REAL_FOLDER)


@pytest.mark.slow
@needs_folder
def test_real_facts(real):
    assert real.examples.shape == (1623 * 20, 28, 28)
    assert real.examples.dtype == np.uint8
    np.testing.assert_array_equal(real.counts, 20)
    assert len(np.unique(real.examples)) > 200  # grey levels
    assert 0.03 < real.examples.mean() / 255 < 0.15  # little ink on an empty ground
    border = np.concatenate([real.examples[..., 0, :], real.examples[..., -1, :]], axis=-1)
    assert border.mean() / 255 < 0.02
    assert np.all(real.examples.reshape(1623 * 20, -1).max(axis=1) > 100)  # none is empty
    # No drawing stands for two characters: the classes are not mixed up.
    first = {image.tobytes() for image in real.examples[::20]}
    assert len(first) == 1623


@pytest.mark.slow
@needs_folder
@needs_prepared
def test_real_zips_equal_real_tensorflow_datasets(real, tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / "other"))
    monkeypatch.delenv("METAJAX_OMNIGLOT")
    prepared = omniglot("all")
    np.testing.assert_array_equal(prepared.examples, real.examples)
    files = [path.name for path in (tmp_path / "other").iterdir()]
    assert files == ["omniglot-28x28-v1.npz"]


@needs_folder
def test_real_classes_by_source():
    counts = {}
    for part in _omniglot_sources.PARTS:
        source = _omniglot_sources._locate(Path(str(REAL_FOLDER)), part)
        names = [
            _omniglot_sources._FILE.search(name) for name, _ in _omniglot_sources._files(source)
        ]
        counts[part] = len({match.groups() for match in names if match})
    assert counts == {"images_background": 964, "images_evaluation": 659}
