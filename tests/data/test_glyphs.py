"""The embedded data set: what its classes are, that its images are sound, that it repeats."""

import importlib.metadata
import string
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from metajax.data import _cache, glyphs
from metajax.data import _glyph_render as render
from metajax.data import _glyphs as module
from metajax.data._glyphs import (
    class_images,
    glyph_classes,
    group_alike,
    is_candidate,
    usable_faces,
)

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of this module's own: what is tested was built by this code."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAJAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def test_split(cache):
    return glyphs("test")


def class_of(character):
    return next(glyph for glyph in glyph_classes() if character in glyph.characters)


@pytest.mark.slow
def test_1200_classes_in_three_splits():
    classes = glyph_classes()
    counts = [sum(glyph.split == split for glyph in classes) for split in SPLITS]
    assert counts == [840, 120, 240]
    assert len(classes) == 1200
    first = classes[0]
    assert (first.characters[0], first.split, first.faces[0]) == ("A", "train", "DejaVuSans")


@pytest.mark.slow
def test_many_scripts():
    scripts = {unicodedata.name(glyph.characters[0]).split()[0] for glyph in glyph_classes()}
    assert scripts >= {"LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "GEORGIAN", "LAO"}


@pytest.mark.slow
def test_a_character_is_in_one_class():
    characters = "".join(glyph.characters for glyph in glyph_classes())
    assert len(characters) == len(set(characters))


@pytest.mark.parametrize(
    "alike",
    [
        "\N{LATIN CAPITAL LETTER A}\N{GREEK CAPITAL LETTER ALPHA}\N{CYRILLIC CAPITAL LETTER A}",
        "\N{LATIN CAPITAL LETTER H}\N{GREEK CAPITAL LETTER ETA}\N{CYRILLIC CAPITAL LETTER EN}",
        "\N{LATIN SMALL LETTER P}\N{CYRILLIC SMALL LETTER ER}\N{GREEK SMALL LETTER RHO}",
        "\N{LATIN CAPITAL LETTER O}\N{LATIN SMALL LETTER O}\N{GREEK CAPITAL LETTER OMICRON}",
        "\N{LATIN CAPITAL LETTER C}\N{LATIN SMALL LETTER C}\N{CYRILLIC CAPITAL LETTER ES}",
        "\N{LATIN CAPITAL LETTER S}\N{LATIN SMALL LETTER S}\N{CYRILLIC CAPITAL LETTER DZE}",
    ],
)
def test_characters_that_render_alike_are_one_class(alike):
    assert len({class_of(character).characters for character in alike}) == 1


def test_characters_that_look_different_are_not_merged():
    for different in ("AΔЖ", "bdpq", "nu", "eca", "EFL", "אבג", "\u1401\u1403\u1405"):
        groups, _ = group_alike(different)
        assert groups == list(different)


def independent_rendering(character, face):
    """Ink cut out and drawn on 32 × 32, by Pillow's own drawing, for a check of the classes."""
    font = ImageFont.truetype(render._path(face), 100)
    left, top, right, bottom = font.getbbox(character)
    picture = Image.new("L", (right - left + 20, bottom - top + 20))
    ImageDraw.Draw(picture).text((10 - left, 10 - top), character, fill=255, font=font)
    picture = picture.crop(picture.getbbox())
    side = max(picture.size)
    square = Image.new("L", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((32, 32), Image.Resampling.BOX), np.float32)


def test_distinct_classes_do_not_render_alike():
    firsts = [glyph.characters[0] for glyph in glyph_classes()]
    pictures = np.stack([independent_rendering(c, render.REFERENCE_FACE) for c in firsts])
    flat = pictures.reshape(len(firsts), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    distance = 1 - flat @ flat.T + np.eye(len(firsts))
    assert distance.min() > 0.04  # without the blur, what is 0.04 apart with it is further


def test_no_face_draws_two_classes_alike():
    classes = glyph_classes()
    for face in ("DejaVuSans-Bold", "DejaVuSerif-Italic", "STIXGeneral"):
        drawn = [render.drawing(g.characters[0], face) for g in classes if face in g.faces]
        signature = render.signatures(np.stack(drawn)).reshape(len(drawn), -1)
        distance = 1 - signature @ signature.T + np.eye(len(drawn))
        assert len(drawn) > 100
        assert distance.min() >= module._SAME


def test_an_italic_that_looks_like_another_letter_is_left_out():
    faces = usable_faces(["m", "\N{CYRILLIC SMALL LETTER TE}"])
    for names in faces.values():
        assert render.REFERENCE_FACE in names
        assert "DejaVuSerif-Italic" not in names


def test_every_class_keeps_the_reference_face():
    assert all(render.REFERENCE_FACE in glyph.faces for glyph in glyph_classes())


def test_classes_alike_after_a_quarter_turn_share_a_split():
    # Canadian syllabics turn: E, I, O and A are one triangle in four positions.
    assert len({class_of(chr(code)).split for code in (0x1401, 0x1403, 0x1405, 0x140A)}) == 1
    classes = glyph_classes()
    drawn = [render.drawing(glyph.characters[0], render.REFERENCE_FACE) for glyph in classes]
    signature = render.signatures(np.stack(drawn))
    turned = np.rot90(signature, 1, (1, 2)).reshape(len(classes), -1)
    near = 1 - signature.reshape(len(classes), -1) @ turned.T < module.ALIKE
    split = np.array([glyph.split for glyph in classes])
    rows, columns = np.nonzero(near)
    assert len(rows) > 50
    assert (split[rows] == split[columns]).all()


@pytest.mark.parametrize(
    ("character", "why"),
    [
        (" ", "blank"),
        ("\x07", "control character"),
        ("\N{COMBINING ACUTE ACCENT}", "combining mark"),
        ("\N{LATIN CAPITAL LETTER E WITH ACUTE}", "accented variant"),
        ("\N{MATHEMATICAL BOLD CAPITAL A}", "stylistic variant"),
        ("\N{BRAILLE PATTERN DOTS-12}", "pattern"),
        ("\N{BOX DRAWINGS LIGHT HORIZONTAL}", "drawing element"),
        (".", "punctuation"),
    ],
)
def test_what_is_no_letter_founds_no_class(character, why):
    assert not is_candidate(ord(character)), why


def test_a_character_without_a_glyph_is_not_covered():
    missing = "\N{CJK UNIFIED IDEOGRAPH-4E00}"
    assert not any(ord(missing) in render.coverage(face) for face in render.FACES)
    assert not any(missing in glyph.characters for glyph in glyph_classes())


def test_tex_encodings_are_not_read_as_unicode():
    assert render.coverage("cmr10") == set(map(ord, string.ascii_letters + string.digits))


def test_a_dot_and_a_blank_have_no_drawing():
    assert render.drawing(" ", render.REFERENCE_FACE) is None
    assert render.drawing(".", render.REFERENCE_FACE) is None


def test_drawings_are_of_one_size_and_centred():
    for character in "AiMגд":
        ink = np.nonzero(render.drawing(character, render.REFERENCE_FACE))
        sides = [places.max() - places.min() + 1 for places in ink]
        middle = [(places.max() + places.min()) / 2 for places in ink]
        assert max(sides) == pytest.approx(52, abs=1)
        np.testing.assert_allclose(middle, 35.5, atol=1)


def test_undistorted_image_is_the_drawing_made_smaller(monkeypatch):
    for name in ("_ROTATION", "_SHEAR", "_ASPECT", "_SHIFT", "_ELASTIC"):
        monkeypatch.setattr(render, name, 0.0)
    monkeypatch.setattr(render, "_SCALE", (28 / 72 * 52 / 22,) * 2)  # the whole canvas
    drawing = render.drawing("R", render.REFERENCE_FACE)
    assert drawing is not None
    image = render.handwritten(drawing[None], np.random.default_rng(0))[0]
    expected = Image.fromarray(drawing).resize((28, 28), Image.Resampling.BOX)
    assert np.abs(image.astype(float) - np.asarray(expected)).mean() < 5


def test_images_of_a_class_repeat_and_depend_on_it_alone():
    groups, _ = group_alike(["A", "B", "\N{GREEK CAPITAL LETTER ALPHA}"])
    assert groups == ["A\N{GREEK CAPITAL LETTER ALPHA}", "B"]
    faces = usable_faces(["A", "B"])
    first, again = (class_images("A", faces["A"]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (class_images("B", faces["B"]) != first).any()


@pytest.mark.slow
def test_test_split_is_twenty_images_a_class(test_split):
    classes = [glyph for glyph in glyph_classes() if glyph.split == "test"]
    assert test_split.examples.shape == (len(classes) * 20, 28, 28)
    assert test_split.names == tuple(glyph.characters[0] for glyph in classes)
    assert test_split.examples.dtype == np.uint8
    np.testing.assert_array_equal(test_split.counts, np.full(len(classes), 20))
    for index in (0, len(classes) // 2, len(classes) - 1):
        glyph = classes[index]
        expected = class_images(glyph.characters[0], glyph.faces)
        np.testing.assert_array_equal(test_split.examples[20 * index : 20 * index + 20], expected)


def test_ink_is_bright_on_black_with_grey_levels(test_split):
    images = np.asarray(test_split.examples)
    assert images.min() == 0
    assert images.max() == 255
    assert (images.max((1, 2)) > 150).all()  # every image has ink
    assert 0.08 < images.mean() / 255 < 0.25  # and is mostly paper
    grey = ((images > 20) & (images < 235)).mean()
    assert 0.05 < grey < 0.4
    assert (images[:, [0, -1]].max((1, 2)) > 128).mean() < 0.1  # little is cut at an edge


def test_images_of_a_class_differ(test_split):
    images = np.asarray(test_split.examples).reshape(len(test_split.counts), 20, -1)
    for one in images:
        assert len(np.unique(one, axis=0)) == 20


def test_five_way_one_shot_is_a_sensible_task(test_split):
    """Nearest pixels are right far more often than chance, and far from always."""
    images = np.asarray(test_split.examples, np.float32).reshape(-1, 20, 28, 28) / 255
    rng = np.random.default_rng(0)
    right = []
    for _ in range(200):
        chosen = rng.choice(len(images), 5, replace=False)
        support, query = images[chosen, 0].reshape(5, -1), images[chosen, 1:].reshape(95, -1)
        distance = ((query[:, None] - support) ** 2).sum(-1)
        right.append((distance.argmin(1) == np.repeat(np.arange(5), 19)).mean())
    assert 0.7 < np.mean(right) < 0.9


def test_second_call_reads_the_cache(test_split, cache, monkeypatch):
    def fail(*_):
        raise RuntimeError("built again")

    monkeypatch.setattr(module, "class_images", fail)
    again = glyphs("test")
    np.testing.assert_array_equal(again.examples, test_split.examples)
    assert again.names == test_split.names
    with pytest.raises(RuntimeError, match="built again"):
        glyphs("validation")  # not in this cache


@pytest.mark.parametrize(
    ("library", "draw"),
    [
        ("matplotlib", lambda: render.coverage.__wrapped__("cmr10")),
        ("matplotlib.ft2font", lambda: render.coverage.__wrapped__("cmr10")),
        ("scipy.ndimage", lambda: render.signatures(np.ones((1, 72, 72)))),
        ("scipy.ndimage", lambda: class_images("A", (render.REFERENCE_FACE,))),
        ("scipy.sparse.csgraph", lambda: module._splits(np.ones((1, 576)))),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library, draw):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library.split('.')[0]} .*'metajax\[glyphs\]'"):
        draw()


def test_cached_images_need_no_library(test_split, monkeypatch):
    for library in ("matplotlib", "scipy"):
        monkeypatch.setitem(sys.modules, library, None)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    np.testing.assert_array_equal(glyphs("test").examples, test_split.examples)


def test_a_cache_without_names_is_made_anew(test_split, tmp_path, monkeypatch):
    """As earlier versions wrote it; it is read where it can't be."""
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    file = tmp_path / f"glyphs-v{module._VERSION}-test.npz"
    images = test_split.examples.reshape(-1, 20, 28, 28)
    _cache.write(file, _cache.Cached(images, module._drawn_with()), "")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", missing)
        assert glyphs("test").names == ()
    monkeypatch.setattr(module, "class_images", lambda character, faces: images[0])
    assert glyphs("test").names == test_split.names


def test_other_fonts_are_drawn_anew(test_split, monkeypatch):
    def fail(*_):
        raise RuntimeError("built again")

    monkeypatch.setattr(module, "class_images", fail)
    monkeypatch.setattr(module, "_drawn_with", lambda: "another matplotlib")
    with pytest.raises(RuntimeError, match="built again"):
        glyphs("test")


def test_a_foreign_cache_file_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path))
    foreign = tmp_path / f"glyphs-v{module._VERSION}-train.npz"
    foreign.write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"glyphs-v.*Delete or move"):
        glyphs("train")
    assert foreign.read_bytes() == b"not an array"


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split must be one of 'train'.*'valid'"):
        glyphs("valid")  # pyright: ignore[reportArgumentType]
