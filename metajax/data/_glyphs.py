"""Glyphs: the data set that needs no download, drawn from the fonts that matplotlib ships."""

import functools
import importlib.metadata
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL

from metajax._checks import one_of
from metajax._extras import import_extra
from metajax.data import _cache
from metajax.data import _glyph_render as render
from metajax.data.episodes import ClassData, _equal_classes

Split = Literal["train", "validation", "test"]

CLASSES: dict[Split, int] = {"train": 840, "validation": 120, "test": 240}
"""Classes of each split; the fonts have some more, which are left out."""

IMAGES_PER_CLASS = 20
ALIKE = 0.045
"""Distance (1 − cosine of blurred drawings) below which two characters are one class."""

_SAME = 0.02  # below it, two characters of a face are the same picture

_VERSION = 2  # of the images: raised whenever the code below would draw others
_SEED = 20_170_309
_CATEGORIES = ("Lu", "Ll", "Lo", "Nd")  # letters, syllables and digits
_POSITIONAL = ("<initial>", "<medial>", "<final>", "<isolated>")  # Arabic forms in a word


class GlyphClass(NamedTuple):
    """One class of the data set.

    Attributes:
        characters: those that render alike; the first is the one drawn.
        faces: file names of the fonts that it is drawn in.
        split: ``"train"``, ``"validation"`` or ``"test"``.
    """

    characters: str
    faces: tuple[str, ...]
    split: Split


def is_candidate(code: int) -> bool:
    """Whether a class can be made of a code point: a letter, syllable or digit.

    Accented and stylistic variants (those that Unicode decomposes) are left out. The forms that
    Arabic letters take inside a word are not: their shapes differ.
    """
    category, parts = unicodedata.category(chr(code)), unicodedata.decomposition(chr(code))
    return category in _CATEGORIES and (not parts or parts.startswith(_POSITIONAL))


def _flat_signatures(characters: Sequence[str], face: str) -> tuple[list[str], np.ndarray]:
    """The characters with ink in this face, and their signatures ``[characters, 576]``."""
    drawings = {character: render.drawing(character, face) for character in characters}
    drawn = {character: ink for character, ink in drawings.items() if ink is not None}
    if not drawn:
        return [], np.zeros((0, 1), np.float32)
    return list(drawn), render.signatures(np.stack(list(drawn.values()))).reshape(len(drawn), -1)


def group_alike(characters: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Puts characters that render alike, whatever their size and position, into groups.

    In the order given, a character joins the group whose first member is nearest if that is
    nearer than ``ALIKE``, and otherwise starts a group. So no chain of small differences can
    merge characters that look different, and all first members are at least ``ALIKE`` apart.

    Args:
        characters: characters of the reference face; those without a form are left out.

    Returns:
        The groups, each a string of its members, and the first members' signatures
        ``[groups, 576]``.
    """
    drawn, signature = _flat_signatures(characters, render.REFERENCE_FACE)
    distance = 1 - signature @ signature.T
    first: list[int] = []
    groups: list[str] = []
    for index, character in enumerate(drawn):
        nearest = int(np.argmin(distance[index, first])) if first else -1
        if first and distance[index, first[nearest]] < ALIKE:
            groups[nearest] += character
        else:
            first.append(index)
            groups.append(character)
    return groups, signature[first]


def usable_faces(characters: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The faces that draw each of these characters unlike all others of them.

    An italic Cyrillic т looks like an m: neither is drawn in that face.
    """
    faces: dict[str, list[str]] = {character: [] for character in characters}
    for face in render.FACES:
        covered = [c for c in characters if ord(c) in render.coverage(face)]
        drawn, signature = _flat_signatures(covered, face)
        distance = 1 - signature @ signature.T
        np.fill_diagonal(distance, np.inf)
        for character, nearest in zip(drawn, distance.min(1, initial=np.inf), strict=True):
            if nearest >= _SAME:
                faces[character].append(face)
    return {character: tuple(names) for character, names in faces.items()}


def _splits(signature: np.ndarray) -> list[Split | None]:
    """Assigns each class to a split, or to none once the splits are full.

    Classes that are alike after quarter turns stay in one split. Otherwise the rotations that
    Omniglot's protocols train with would show test classes.
    """
    classes = len(signature)
    pictures = signature.reshape(classes, 24, 24)
    turns = [np.rot90(pictures, k, (1, 2)).reshape(classes, -1) for k in range(4)]
    distance = 1 - np.max([signature @ turned.T for turned in turns], axis=0)
    csgraph = import_extra("scipy.sparse.csgraph", extra="glyphs")
    families, family = csgraph.connected_components(distance < ALIKE, directed=False)
    splits: list[Split | None] = [None] * classes
    room: dict[Split, int] = dict(CLASSES)
    for chosen in np.random.Generator(np.random.PCG64(_SEED)).permutation(families):
        members = np.flatnonzero(family == chosen).tolist()
        for split in get_args(Split):
            if room[split] >= len(members):
                room[split] -= len(members)
                for member in members:
                    splits[member] = split
                break
    if any(room.values()):
        raise RuntimeError(
            f"matplotlib {_matplotlib()} ships fonts with only {classes} distinct "
            f"characters, the glyphs need {sum(CLASSES.values())}; install another version of it."
        )
    return splits


@functools.cache
def glyph_classes() -> tuple[GlyphClass, ...]:
    """All classes of the data set, letters before digits, each in code-point order.

    ``glyphs(split)`` holds those of its split in the same order.
    """
    candidates = map(chr, sorted(filter(is_candidate, render.coverage(render.REFERENCE_FACE))))
    # Letters first: else S would be one of 5's, and drawn as it.
    groups, signature = group_alike(sorted(candidates, key=str.isdecimal))
    faces = usable_faces([group[0] for group in groups])
    return tuple(
        GlyphClass(group, faces[group[0]], split)
        for group, split in zip(groups, _splits(signature), strict=True)
        if split is not None
    )


def class_images(character: str, faces: Sequence[str]) -> np.ndarray:
    """The images of one class, which depend only on these arguments.

    Args:
        character: the character to draw.
        faces: the fonts to draw it in, each used as often as the others, give or take one.

    Returns:
        uint8 ``[20, 28, 28]``, ink = 255 on 0.
    """
    rng = np.random.Generator(np.random.PCG64([_SEED, ord(character)]))
    drawings = {face: render.drawing(character, face) for face in faces}
    order = np.resize(rng.permutation(len(faces)), IMAGES_PER_CLASS).tolist()
    inks = [ink for ink in (drawings[faces[index]] for index in order) if ink is not None]
    return render.handwritten(np.stack(inks), rng)


def glyphs(split: Split = "train") -> ClassData:
    """Characters of many scripts, 20 images each, drawn from the fonts that matplotlib ships.

    A class is a letter, syllable or digit with all characters that render like it (Latin, Greek and
    Cyrillic A; o and O, as size and position don't count). Its images are drawn in several fonts
    where these have it, each distorted at random. The splits (840, 120 and 240 classes) are
    constants, and no class of one is a class of another turned by 90 degrees. The first call takes
    some seconds; later ones read ``metajax.data.cache_folder()``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        ``ClassData`` with examples ``[classes * 20, 28, 28]``, uint8, ink = 255 on 0. A class has
        the character that is drawn as its name.

    Raises:
        ArgumentError: if ``split`` is none of these.
        CacheError: if the cache file is damaged or isn't metajax's. It is left as it is.
        ImportError: if they aren't cached, and ``metajax[glyphs]`` is not installed.

    Example:
        >>> data = glyphs("validation")
        >>> data.examples.shape, len(data.names)
        ((2400, 28, 28), 120)
    """
    one_of("split", split, get_args(Split))
    shape = (CLASSES[split], IMAGES_PER_CLASS, render.SIZE, render.SIZE)
    path = _cache.cache_folder() / f"glyphs-v{_VERSION}-{split}.npz"
    cached = _cache.read(path, shape)
    if cached is None or not _is_current(cached):
        chosen = [glyph for glyph in glyph_classes() if glyph.split == split]
        images = np.stack([class_images(glyph.characters[0], glyph.faces) for glyph in chosen])
        names = "".join(glyph.characters[0] for glyph in chosen)
        cached = _cache.Cached(images, _drawn_with(), names)
        _cache.write(path, cached, "The glyphs")
    return _equal_classes(cached.images, tuple(cached.names))


def _is_current(cached: _cache.Cached) -> bool:
    """Whether the libraries that are here would draw the same images; they are if none is here.

    Earlier versions cached no names.
    """
    try:
        return cached.fingerprint == _drawn_with() and bool(cached.names)
    except importlib.metadata.PackageNotFoundError:
        return True


def _drawn_with() -> str:
    """The libraries that the images depend on: fonts and rasteriser."""
    return f"matplotlib {_matplotlib()}, Pillow {PIL.__version__}"


def _matplotlib() -> str:
    return importlib.metadata.version("matplotlib")
