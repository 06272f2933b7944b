"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each."""

import hashlib
import io
import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from metajax._checks import one_of
from metajax.data import _cache, _image_files, _omniglot_sources, _tfds
from metajax.data._omniglot_sources import Drawings
from metajax.data.arrays import _fixed_order
from metajax.data.episodes import ClassData, _equal_classes
from metajax.errors import ArgumentError

Split = Literal["train", "validation", "test", "all"]
Protocol = Literal["maml", "vinyals", "lake"]

SIZE = 28
DRAWINGS = 20

# The canonical order of the classes: images_background, then images_evaluation; in each the
# alphabets by name; in an alphabet the characters by number.
BACKGROUND: tuple[tuple[str, int], ...] = (
    ("Alphabet_of_the_Magi", 20),
    ("Anglo-Saxon_Futhorc", 29),
    ("Arcadian", 26),
    ("Armenian", 41),
    ("Asomtavruli_(Georgian)", 40),
    ("Balinese", 24),
    ("Bengali", 46),
    ("Blackfoot_(Canadian_Aboriginal_Syllabics)", 14),
    ("Braille", 26),
    ("Burmese_(Myanmar)", 34),
    ("Cyrillic", 33),
    ("Early_Aramaic", 22),
    ("Futurama", 26),
    ("Grantha", 43),
    ("Greek", 24),
    ("Gujarati", 48),
    ("Hebrew", 22),
    ("Inuktitut_(Canadian_Aboriginal_Syllabics)", 16),
    ("Japanese_(hiragana)", 52),
    ("Japanese_(katakana)", 47),
    ("Korean", 40),
    ("Latin", 26),
    ("Malay_(Jawi_-_Arabic)", 40),
    ("Mkhedruli_(Georgian)", 41),
    ("N_Ko", 33),
    ("Ojibwe_(Canadian_Aboriginal_Syllabics)", 14),
    ("Sanskrit", 42),
    ("Syriac_(Estrangelo)", 23),
    ("Tagalog", 17),
    ("Tifinagh", 55),
)
EVALUATION: tuple[tuple[str, int], ...] = (
    ("Angelic", 20),
    ("Atemayar_Qelisayer", 26),
    ("Atlantean", 26),
    ("Aurek-Besh", 26),
    ("Avesta", 26),
    ("Ge_ez", 26),
    ("Glagolitic", 45),
    ("Gurmukhi", 45),
    ("Kannada", 41),
    ("Keble", 26),
    ("Malayalam", 47),
    ("Manipuri", 40),
    ("Mongolian", 30),
    ("Old_Church_Slavonic_(Cyrillic)", 45),
    ("Oriya", 46),
    ("Sylheti", 28),
    ("Syriac_(Serto)", 23),
    ("Tengwar", 25),
    ("Tibetan", 42),
    ("ULOG", 26),
)
CHARACTERS: tuple[tuple[str, int], ...] = tuple(
    (alphabet, number)
    for alphabet, characters in BACKGROUND + EVALUATION
    for number in range(1, characters + 1)
)
"""Alphabet and number of every class, in the order of the array."""

_VALIDATION_ALPHABETS = (
    "Armenian",
    "Bengali",
    "Early_Aramaic",
    "Hebrew",
    "Mkhedruli_(Georgian)",
)


def omniglot(
    split: Split = "train",
    *,
    protocol: Protocol = "maml",
    folder: str | os.PathLike[str] | None = None,
) -> ClassData:
    """Omniglot's characters at 28 × 28, ink = 255 on 0, with the grey levels of the resizing.

    The drawings are looked for in this order, and the resized array is cached, so that later
    calls need none of these:

    1. ``folder``, or the environment variable ``METAJAX_OMNIGLOT``: Lake's
       ``images_background.zip`` and ``images_evaluation.zip``, or the folders inside them. A named
       folder must be there even if a cache is, and the cache is used only if it was made from the
       same drawings.
    2. the cache, in ``metajax.data.cache_folder()``.
    3. what tensorflow-datasets has prepared, in ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``
       (read without TensorFlow).
    4. a download through tensorflow-datasets, which needs TensorFlow: ``metajax[prepare]``.

    The splits are constants. ``"maml"`` shuffles all 1,623 characters once and for all: 1,100 to
    train, 100 to validate, 423 to test. ``"vinyals"`` takes the first 1,200 in the order of the
    alphabets, of which five alphabets (172 characters) validate and 1,028 train, and the last
    423 to test: 236 characters of Lake's evaluation set train. ``"lake"`` keeps his sets apart: the
    background set's 964 characters, of which the same five alphabets validate and 792 train, and
    the evaluation set's 659, of 20 alphabets, to test. Within a class, the order of the 20 drawings
    has no meaning.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"``, or ``"all"`` for every class in the
            order of ``CHARACTERS``.
        protocol: ``"maml"``, ``"vinyals"`` or ``"lake"``, whose classes the split has.
        folder: where Lake's files are.

    Returns:
        ``ClassData`` with examples ``[classes * 20, 28, 28]`` in uint8, and names such as
        ``"Greek/character05"``.

    Raises:
        DataNotFoundError: if there are no drawings; it says where they were looked for.
        CacheError: if the cache file is damaged or isn't metajax's. It is left as it is.
        ArgumentError: if an argument is not one of its values, or the drawings are not all there.

    Example:
        >>> data = omniglot("train")  # doctest: +SKIP
        >>> data.examples.shape  # doctest: +SKIP
        (22000, 28, 28)

    References:
        Lake et al., "Human-level concept learning through probabilistic program induction",
        Science, 2015.
        Finn et al., "Model-Agnostic Meta-Learning", 2017, arXiv:1703.03400.
        Vinyals et al., "Matching Networks for One Shot Learning", 2016, arXiv:1606.04080.
    """
    classes = split_classes_of(split, protocol=protocol)
    names = [f"{alphabet}/character{number:02d}" for alphabet, number in CHARACTERS]
    return _equal_classes(_images(folder)[classes], tuple(names[c] for c in classes))


def omniglot_alphabets(split: Split = "train", *, protocol: Protocol = "maml") -> np.ndarray:
    """The alphabet of every class of a split, for ``episode_sampler(groups=...)``.

    Returns:
        int32 ``[classes]``, in the order of ``omniglot(split, protocol=protocol)``; equal numbers
        for the characters of one alphabet. Small alphabets have 14 characters, and what a split
        has of one may be fewer.

    Example:
        >>> len(set(omniglot_alphabets("test", protocol="vinyals").tolist()))
        13
    """
    names = list(dict.fromkeys(alphabet for alphabet, _ in CHARACTERS))
    classes = split_classes_of(split, protocol=protocol)
    return np.array([names.index(CHARACTERS[c][0]) for c in classes], np.int32)


def split_classes_of(split: Split, *, protocol: Protocol = "maml") -> np.ndarray:
    """The classes of a split, as indices into ``CHARACTERS``.

    Example:
        >>> [len(split_classes_of(s)) for s in ("train", "validation", "test")]
        [1100, 100, 423]
        >>> [len(split_classes_of(s, protocol="vinyals")) for s in ("train", "validation", "test")]
        [1028, 172, 423]
        >>> [len(split_classes_of(s, protocol="lake")) for s in ("train", "validation", "test")]
        [792, 172, 659]
    """
    one_of("split", split, get_args(Split))
    one_of("protocol", protocol, get_args(Protocol))
    if split == "all":
        return np.arange(len(CHARACTERS))
    if protocol == "maml":
        order = _fixed_order(len(CHARACTERS), "metajax omniglot")
        parts = {"train": order[:1100], "validation": order[1100:1200], "test": order[1200:]}
    else:
        first = 1200 if protocol == "vinyals" else sum(count for _, count in BACKGROUND)
        held_out = [CHARACTERS[i][0] in _VALIDATION_ALPHABETS for i in range(first)]
        parts = {
            "train": [i for i in range(first) if not held_out[i]],
            "validation": [i for i in range(first) if held_out[i]],
            "test": list(range(first, len(CHARACTERS))),
        }
    return np.array(sorted(parts[split]))


def _images(folder: str | os.PathLike[str] | None) -> np.ndarray:
    """All classes, uint8 ``[1623, 20, 28, 28]``, from a source or from the cache."""
    folder = folder or os.environ.get("METAJAX_OMNIGLOT")
    path = _cache.cache_folder() / "omniglot-28x28-v1.npz"
    cached = _cache.read(path, (len(CHARACTERS), DRAWINGS, SIZE, SIZE))
    if folder is not None:
        where = f"folder={os.fspath(folder)!r}"
        drawings = _omniglot_sources.from_folder(Path(folder).expanduser())
    elif cached is not None:
        return cached.images
    else:
        where, drawings = _tfds.find(
            "Omniglot",
            "omniglot",
            _omniglot_sources.from_builder,
            tried=[
                "a folder with Lake's zips: none was named",
                f"the cache in {path.parent}: empty",
            ],
            remedy="Three ways to go on:\n"
            "  1. Get images_background.zip and images_evaluation.zip from\n"
            "     https://github.com/brendenlake/omniglot/tree/master/python, and name their\n"
            "     folder: folder=... or METAJAX_OMNIGLOT=...\n"
            "  2. Let tensorflow-datasets download it: pip install 'metajax[prepare]'; or set\n"
            "     TFDS_DATA_DIR to a folder where it has been prepared.\n"
            "  3. Take metajax.data.glyphs, which needs no download; make demo trains on it.",
        )
    _check_complete(drawings, where)
    fingerprint = _fingerprint(drawings)
    if cached is not None and cached.fingerprint == fingerprint:
        return cached.images
    images = _to_array(drawings)
    if cached is None:
        _cache.write(path, _cache.Cached(images, fingerprint), "Omniglot")
    return images


def _check_complete(drawings: Drawings, where: str) -> None:
    wrong = [
        f"{alphabet}/character{number:02d} has {len(drawings.get((alphabet, number), []))}"
        for alphabet, number in CHARACTERS
        if len(drawings.get((alphabet, number), [])) != DRAWINGS
    ]
    wrong += [f"{a}/character{n:02d} is unknown" for a, n in drawings.keys() - set(CHARACTERS)]
    if wrong:
        raise ArgumentError(
            f"{where} does not hold Omniglot's {len(CHARACTERS)} characters with {DRAWINGS}"
            f" drawings each: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more." if len(wrong) > 3 else ".")
            + " Get it again, or name another folder."
        )


def _fingerprint(drawings: Drawings) -> str:
    """A digest of the PNG files that does not depend on their order within a class."""
    digest = hashlib.sha256()
    for character in CHARACTERS:
        for each in sorted(hashlib.sha256(png).digest() for png in drawings[character]):
            digest.update(each)
    return digest.hexdigest()


def _to_array(drawings: Drawings) -> np.ndarray:
    """uint8 ``[classes, 20, 28, 28]``: equal for equal drawings, whatever their source.

    tensorflow-datasets shuffles and doesn't keep the file's number, so the images of a class are
    put in order by their own bytes.
    """
    return np.stack(
        [
            np.stack(sorted((_resized(png, character) for png in drawings[character]), key=bytes))
            for character in CHARACTERS
        ]
    )


def _resized(png: bytes, character: tuple[str, int]) -> np.ndarray:
    """One drawing as uint8 ``[28, 28]``, ink = 255.

    To grey levels first: Pillow resizes a 1-bit image by the nearest pixel, whatever the filter.
    """
    alphabet, number = character
    grey = _image_files.decoded(
        io.BytesIO(png),
        lambda image: image.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS),
        name=f"A drawing of {alphabet}/character{number:02d}",
        remedy="Get Omniglot again, or name another folder.",
    )
    return 255 - np.asarray(grey)
