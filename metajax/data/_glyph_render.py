"""Characters as pictures: the fonts, what they cover, the drawing of a character, its distortion.

Everything here is NumPy on the host; ``glyphs`` makes a data set of it. matplotlib and SciPy, the
extra "glyphs", take half a second to import. The functions that draw import them; cached images
need neither.
"""

import functools
import math
import string
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from metajax._extras import import_extra

REFERENCE_FACE = "DejaVuSans"
"""The face that covers the most scripts: characters are compared in it."""

FACES = (
    REFERENCE_FACE,
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmti10",
    "cmss10",
    "cmtt10",
)
"""The fonts shipped by matplotlib that are used, by file name."""

SIZE = 28  # pixels a side of an image
_SUPERSAMPLING = 2  # samples a pixel and axis, averaged: this is what makes the grey levels
_CANVAS = 72  # pixels a side of the undistorted drawing
_INK_BOX = 52  # the longer side of its ink
_EM = 64  # font size that glyphs are rasterised at, in pixels
_SMALLEST_INK = 0.2 * _EM  # a lone dot, blown up to the common size, has no form left
_INK_LEVEL = 32  # grey level from which a pixel belongs to the ink's box

# Computer Modern files use TeX's encodings: only these code points mean what Unicode says.
_TEX_COVERAGE = frozenset(map(ord, string.ascii_letters + string.digits))

# Ranges of an image's random distortion, like a careful writer's. In 5-way 1-shot tasks, nearest
# neighbours in pixels are right at about 80 % with these, at 65 % with ranges half as large again.
_ROTATION = math.radians(8.0)
_SHEAR = 0.12
_SCALE = (0.85, 1.0)  # of the ink box below
_ASPECT = math.log(1.12)  # width over height, log-uniform
_SHIFT = 1.0  # pixels of the image
_TARGET_BOX = 22.0  # pixels of the image that an undistorted ink box spans
_ELASTIC = 0.45  # pixels of the image, standard deviation at a control point
_CONTROL_POINTS = 6  # a side


def _path(face: str) -> Path:
    matplotlib = import_extra("matplotlib", extra="glyphs")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@functools.cache
def coverage(face: str) -> frozenset[int]:
    """Code points that a face has a glyph for; a missing-glyph box is not one."""
    ft2font = import_extra("matplotlib.ft2font", extra="glyphs")
    charmap = ft2font.FT2Font(str(_path(face))).get_charmap()
    covered = frozenset(int(code) for code, glyph in charmap.items() if glyph != 0)
    return covered & _TEX_COVERAGE if face.startswith("cm") else covered


@functools.cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # Basic layout: shaping would join or reorder letters that stand alone here.
    return ImageFont.truetype(_path(face), _EM, layout_engine=ImageFont.Layout.BASIC)


def drawing(character: str, face: str) -> np.ndarray | None:
    """Draws one character, centred and scaled to the common size.

    Args:
        character: one code point that the face covers.
        face: one of ``FACES``.

    Returns:
        uint8 ``[72, 72]``, ink = 255, the ink's longer side 52 pixels; None where there is no
        ink, or no more than a dot.
    """
    mask, _ = _font(face).getmask2(character, mode="L")
    width, height = mask.size
    ink = np.asarray(mask, np.uint8).reshape(height, width)
    rows = np.flatnonzero((ink > _INK_LEVEL).any(1))
    columns = np.flatnonzero((ink > _INK_LEVEL).any(0))
    if not rows.size:
        return None
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if max(ink.shape) < _SMALLEST_INK:
        return None
    height, width = (max(1, round(side * _INK_BOX / max(ink.shape))) for side in ink.shape)
    scaled = Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    top, left = (_CANVAS - height) // 2, (_CANVAS - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(scaled)
    return canvas


def signatures(drawings: np.ndarray) -> np.ndarray:
    """What two drawings are compared by: small, blurred, of unit length.

    Args:
        drawings: ``[drawings, 72, 72]``.

    Returns:
        float32 ``[drawings, 24, 24]``; 1 − the dot product of two is their distance.
    """
    ndimage = import_extra("scipy.ndimage", extra="glyphs")
    small = drawings.reshape(-1, 24, 3, 24, 3).mean((2, 4), dtype=np.float32)
    # Blurred by half a stroke's width: thickness and a small shift then count for little, corners
    # still do (o and O are nearer than D and O).
    blurred = ndimage.gaussian_filter(small, (0, 1.0, 1.0))
    return blurred / np.linalg.norm(blurred, axis=(1, 2), keepdims=True)


@functools.cache
def _elastic_basis() -> np.ndarray:
    """Weights ``[samples, control points]`` that spread control points to a smooth curve."""
    samples = np.linspace(0, 1, SIZE * _SUPERSAMPLING)[:, None]
    points = np.linspace(0, 1, _CONTROL_POINTS)[None]
    weights = np.exp(-0.5 * ((samples - points) * (_CONTROL_POINTS - 1) / 0.7) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def handwritten(drawings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distorts each drawing by an affine and an elastic change of its own.

    Args:
        drawings: uint8 ``[images, 72, 72]``.
        rng: source of the changes; the same state gives the same images.

    Returns:
        uint8 ``[images, 28, 28]``, ink = 255 on 0, anti-aliased.
    """
    ndimage = import_extra("scipy.ndimage", extra="glyphs")
    images = len(drawings)
    angle = rng.uniform(-_ROTATION, _ROTATION, images)
    shear = rng.uniform(-_SHEAR, _SHEAR, images)
    scale = rng.uniform(*_SCALE, images) * _TARGET_BOX / _INK_BOX
    aspect = np.exp(rng.uniform(-_ASPECT, _ASPECT, images) / 2)
    shift = rng.uniform(-_SHIFT, _SHIFT, (images, 2))
    control = rng.normal(0, _ELASTIC, (images, 2, _CONTROL_POINTS, _CONTROL_POINTS))

    # Rows are y, columns x. The inverse map takes a place in the image back to the drawing.
    cos, sin, one, zero = np.cos(angle), np.sin(angle), np.ones(images), np.zeros(images)
    rotate = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    slant = np.stack([one, zero, shear, one], -1).reshape(-1, 2, 2)
    stretch = np.stack([scale / aspect, zero, zero, scale * aspect], -1).reshape(-1, 2, 2)
    inverse = np.linalg.inv(rotate @ slant @ stretch)

    basis = _elastic_basis()
    samples = (np.arange(SIZE * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - SIZE / 2
    grid = np.stack(np.meshgrid(samples, samples, indexing="ij"))
    place = grid + basis @ control @ basis.T - shift[:, :, None, None]
    source = np.einsum("nij,njyx->niyx", inverse, place) + (_CANVAS - 1) / 2

    out = np.empty((images, SIZE, SIZE), np.uint8)
    for index in range(images):
        ink = ndimage.map_coordinates(drawings[index].astype(np.float32), source[index], order=1)
        pixels = ink.reshape(SIZE, _SUPERSAMPLING, SIZE, _SUPERSAMPLING).mean((1, 3))
        out[index] = np.rint(pixels)
    return out
