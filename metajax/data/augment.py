"""Samplers around a sampler, that change its images at random."""

from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.types import Batch, Episode, MaskedBatch, Sampler


def random_shifts(sample: Sampler, pixels: int) -> Sampler:
    """The same episodes, every image shifted by up to ``pixels`` rows and columns either way.

    Each image of support and query is shifted by itself, uniformly; what comes in is zero.

    Args:
        sample: draws episodes of two ``Batch`` with images ``[examples, height, width, channels]``.
        pixels: 0 or more, less than the images' height and width.

    Raises:
        ArgumentError: if ``pixels`` is negative; when run, if the inputs aren't images, or not
            larger.

    Example:
        >>> image = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1].set(1.0)
        >>> episode = Episode(Batch(image, jnp.zeros(1, int)), Batch(image, jnp.zeros(1, int)))
        >>> shifted = random_shifts(lambda key: episode, 1)(jax.random.key(1))
        >>> shifted.support.inputs.shape, float(shifted.support.inputs.sum())
        ((1, 4, 4, 1), 1.0)
    """
    _checks.function("sample", sample, "sample(key)")
    pixels = _checks.non_negative_int("pixels", pixels)
    if pixels == 0:
        return sample

    def shifted(key: jax.Array, batch: Any) -> Any:
        _checks.instance("what sample returns", batch, Batch | MaskedBatch, "an Episode of Batch")
        images = _checks.array("inputs", batch.inputs)
        if images.ndim != 4 or min(images.shape[1:3]) <= pixels:
            raise ArgumentError(
                f"pixels is {pixels}, which needs larger images [examples, height, width, "
                f"channels]; got inputs of shape {tuple(images.shape)}."
            )
        starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
        border = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))
        padded = jnp.pad(images, border)

        def cut(image, start):
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

        return batch._replace(inputs=jax.vmap(cut)(padded, starts))

    def sample_shifted(key: jax.Array, /) -> Episode:
        key, support_key, query_key = jax.random.split(key, 3)
        episode = sample(key)
        wanted = "an Episode of Batch"
        _checks.instance("what sample returns", episode, Episode, wanted)
        return Episode(shifted(support_key, episode.support), shifted(query_key, episode.query))

    return sample_shifted
