"""Samplers that change the images of another sampler at random."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, all_leaves

from metajax._checks import non_negative_int
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
    if non_negative_int("pixels", pixels) == 0:
        return sample
    # A plain function is itself a leaf. Around one, the result is a plain function too.
    kind = functools.partial if all_leaves([sample]) else Partial
    return kind(_Draw(pixels), sample)


@dataclasses.dataclass(frozen=True)
class _Draw:
    pixels: int

    def __call__(self, sample: Sampler, key: jax.Array) -> Episode:
        key, support_key, query_key = jax.random.split(key, 3)
        episode = sample(key)
        return episode._replace(
            support=self._shifted(support_key, episode.support),
            query=self._shifted(query_key, episode.query),
        )

    def _shifted(self, key: jax.Array, batch: Any) -> Any:
        pixels, images = self.pixels, batch.inputs
        if images.ndim != 4 or min(images.shape[1:3]) <= pixels:
            raise ArgumentError(
                f"pixels is {pixels}, which needs larger images [examples, height, width, "
                f"channels]; got inputs of shape {tuple(images.shape)}."
            )
        starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
        border = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))

        def cut(image, start):
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

        return batch._replace(inputs=jax.vmap(cut)(jnp.pad(images, border), starts))
