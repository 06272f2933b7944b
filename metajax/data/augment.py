"""Samplers that change the images of another sampler at random."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.tree_util import Partial, all_leaves

from metajax._checks import between, non_negative_float, non_negative_int
from metajax.errors import ArgumentError
from metajax.types import Episode, Sampler


def random_shifts(sample: Sampler, pixels: int) -> Sampler:
    """The same episodes, every image shifted by up to ``pixels`` rows and columns either way.

    Each image of support and query has a shift of its own, uniformly drawn; what comes in is zero.

    Args:
        sample: draws episodes of two ``Batch`` with images ``[examples, height, width, channels]``.
        pixels: 0 or more, less than the images' height and width.

    Returns:
        A sampler: a pytree with the leaves of ``sample``, or a plain function if that is one.

    Raises:
        ArgumentError: if ``pixels`` is negative; when it draws, if the inputs aren't images, or are
            too small.

    Example:
        >>> image = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1].set(1.0)
        >>> from metajax import Batch
        >>> episode = Episode(Batch(image, jnp.zeros(1, int)), Batch(image, jnp.zeros(1, int)))
        >>> shifted = random_shifts(lambda key: episode, 1)(jax.random.key(1))
        >>> shifted.support.inputs.shape, float(shifted.support.inputs.sum())
        ((1, 4, 4, 1), 1.0)
    """
    return sample if non_negative_int("pixels", pixels) == 0 else _changed(sample, _Shift(pixels))


def random_flips(sample: Sampler) -> Sampler:
    """The same episodes, every image mirrored left to right with a chance of one half.

    Args:
        sample: draws episodes of two ``Batch`` with images ``[examples, height, width, channels]``.

    Returns:
        A sampler: a pytree with the leaves of ``sample``, or a plain function if that is one.

    Raises:
        ArgumentError: when it draws, if the inputs aren't images.

    Example:
        >>> from metajax import Batch
        >>> images = Batch(jnp.arange(2.0).reshape(1, 1, 2, 1), jnp.zeros(1, int))
        >>> flipped = random_flips(lambda key: Episode(images, images))(jax.random.key(7))
        >>> flipped.support.inputs.ravel().tolist(), flipped.query.inputs.ravel().tolist()
        ([0.0, 1.0], [1.0, 0.0])
    """
    return _changed(sample, _flip)


def random_colours(sample: Sampler, strength: float = 0.4) -> Sampler:
    """The same episodes, every image's brightness, contrast and saturation changed at random.

    One after the other the image is mixed with black, with its mean grey, and with itself in grey:
    f × image + (1 − f) × the other, with f uniform in [1 − strength, 1 + strength], drawn for each;
    what falls outside [0, 1] is cut off. Grey is 0.299 R + 0.587 G + 0.114 B.

    Args:
        sample: draws episodes of two ``Batch`` with images ``[examples, height, width, 3]`` in
            [0, 1].
        strength: from 0, no change, to 1.

    Returns:
        A sampler: a pytree with the leaves of ``sample``, or a plain function if that is one.

    Raises:
        ArgumentError: if ``strength`` isn't in [0, 1]; when it draws, if the inputs aren't images
            of three channels.

    Example:
        >>> from metajax import Batch
        >>> images = Batch(jnp.full((1, 4, 4, 3), 0.5), jnp.zeros(1, int))
        >>> changed = random_colours(lambda key: Episode(images, images))(jax.random.key(0))
        >>> bool((abs(changed.support.inputs - 0.5) <= 0.2).all())
        True

    Source: the colours' part of the augmentation of Lee et al. 2019 (arXiv 1904.03758), with 0.4.
    """
    return _changed(sample, _Colours(between("strength", strength, 0, 1)))


def random_affine(
    sample: Sampler,
    *,
    degrees: float = 10.0,
    shear: float = 0.3,
    scale: float = 0.2,
    pixels: float = 2.0,
) -> Sampler:
    """The same episodes, every image turned, sheared, scaled and shifted at random.

    Each image is read through a map of its own about its centre, between pixels by linear
    interpolation; what comes in is zero. Each of the four parts is left out with a chance of one
    half, and else drawn uniformly.

    Args:
        sample: draws episodes of two ``Batch`` with images ``[examples, height, width, channels]``.
        degrees: the largest turn either way, in degrees.
        shear: the largest shear either way of rows and of columns, in pixels a pixel.
        scale: height and width are multiplied by 1 − scale to 1 + scale; below 1.
        pixels: the largest shift of rows and of columns either way.

    Returns:
        A sampler: a pytree with the leaves of ``sample``, or a plain function if that is one.

    Raises:
        ArgumentError: if a number is negative, ``scale`` isn't below 1, or ``degrees`` above 180;
            when it draws, if the inputs aren't images.

    Example:
        >>> from metajax import Batch
        >>> images = Batch(jnp.zeros((1, 5, 5, 1)).at[0, 2, 2].set(1.0), jnp.zeros(1, int))
        >>> changed = random_affine(lambda key: Episode(images, images), pixels=0.0)
        >>> float(changed(jax.random.key(0)).query.inputs[0, 2, 2, 0])  # the centre stays
        1.0

    Source: the distortions of Koch et al. 2015, "Siamese Neural Networks for One-shot Image
    Recognition", section 3.3.
    """
    return _changed(
        sample,
        _Affine(
            math.radians(between("degrees", degrees, 0, 180)),
            non_negative_float("shear", shear),
            between("scale", scale, 0, 1, ends="[)"),
            non_negative_float("pixels", pixels),
        ),
    )


_Change = Callable[[jax.Array, jax.Array], jax.Array]
"""``change(key, images) -> images``, each image by itself."""


def _changed(sample: Sampler, change: _Change) -> Sampler:
    # A plain function is itself a leaf. Around one, the result is a plain function too.
    kind = functools.partial if all_leaves([sample]) else Partial
    return kind(_Draw(change), sample)


@dataclasses.dataclass(frozen=True)
class _Draw:
    change: _Change

    def __call__(self, sample: Sampler, key: jax.Array) -> Episode:
        key, support_key, query_key = jax.random.split(key, 3)
        episode = sample(key)
        return episode._replace(
            support=self._images(support_key, episode.support),
            query=self._images(query_key, episode.query),
        )

    def _images(self, key: jax.Array, batch: Any) -> Any:
        return batch._replace(inputs=self.change(key, batch.inputs))


@dataclasses.dataclass(frozen=True)
class _Shift:
    pixels: int

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        pixels = self.pixels
        if images.ndim != 4 or min(images.shape[1:3]) <= pixels:
            raise ArgumentError(
                f"pixels is {pixels}, which needs larger images [examples, height, width, "
                f"channels]; got inputs of shape {tuple(images.shape)}."
            )
        starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
        border = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))

        def cut(image, start):
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

        return jax.vmap(cut)(jnp.pad(images, border), starts)


def _flip(key: jax.Array, images: jax.Array) -> jax.Array:
    if images.ndim != 4:
        raise ArgumentError(
            f"inputs must be images [examples, height, width, channels], got shape {images.shape}."
        )
    flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True)
class _Colours:
    strength: float

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ArgumentError(
                f"inputs must be images [examples, height, width, 3], got shape {images.shape}."
            )
        low, high = 1 - self.strength, 1 + self.strength
        factors = jax.random.uniform(key, (3, len(images), 1, 1, 1), images.dtype, low, high)
        grey = lambda images: (images * jnp.array(_GREY, images.dtype)).sum(-1, keepdims=True)
        others = (
            lambda images: jnp.zeros_like(images),
            lambda images: grey(images).mean((1, 2), keepdims=True),
            grey,
        )
        for factor, other in zip(factors, others, strict=True):
            images = jnp.clip(factor * images + (1 - factor) * other(images), 0, 1)
        return images


@dataclasses.dataclass(frozen=True)
class _Affine:
    turn: float  # radians
    shear: float
    scale: float
    pixels: float

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        if images.ndim != 4:
            raise ArgumentError(
                "inputs must be images [examples, height, width, channels], got shape "
                f"{images.shape}."
            )
        return jax.vmap(self._change)(jax.random.split(key, len(images)), images)

    def _change(self, key: jax.Array, image: jax.Array) -> jax.Array:
        matrix, shift = self._draw(key)
        size = jnp.array(image.shape[:2])
        centre = (size[:, None, None] - 1) / 2
        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape[:2]), indexing="ij")) - centre
        read = jnp.tensordot(matrix, places, 1) + centre + shift[:, None, None]
        channel = functools.partial(map_coordinates, coordinates=list(read), order=1)
        return jax.vmap(channel, in_axes=2, out_axes=2)(image)

    def _draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where in the image each pixel is read, about the centre: a matrix, and a shift."""
        draw_key, keep_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (7,), minval=-1.0, maxval=1.0)
        turn, shear, scale, shift = jnp.split(draws, [1, 3, 5])
        kept = jax.random.bernoulli(keep_key, shape=(4,))
        turn = kept[0] * self.turn * turn[0]
        rows, columns = kept[1] * self.shear * shear
        cos, sin = jnp.cos(turn), jnp.sin(turn)
        matrix = jnp.array([[cos, -sin], [sin, cos]]) @ jnp.array([[1.0, rows], [columns, 1.0]])
        return matrix / (1 + kept[2] * self.scale * scale), kept[3] * self.pixels * shift


_GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance of ITU-R BT.601."""
