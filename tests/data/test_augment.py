"""Random shifts against numpy's roll."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.data import random_shifts


def images(count, size=6, border=2):
    """Random images whose border is zero, so that a shift loses nothing."""
    inner = np.random.default_rng(0).uniform(1, 2, (count, size, size, 1))
    return np.pad(inner, ((0, 0), (border, border), (border, border), (0, 0)))


def episode_of(inputs):
    batch = metajax.Batch(jnp.asarray(inputs), jnp.arange(len(inputs)))
    return metajax.Episode(batch, batch)


def offsets(before, after, pixels):
    """The one shift of each image that explains it."""
    steps = range(-pixels, pixels + 1)
    found = []
    for old, new in zip(before, after, strict=True):
        rolled = {(i, j): np.roll(old, (i, j), (0, 1)) for i in steps for j in steps}
        matching = [shift for shift, image in rolled.items() if np.array_equal(image, new)]
        assert len(matching) == 1
        found += matching
    return found


def test_every_image_is_shifted_by_itself_and_every_shift_occurs():
    before = images(200).astype(np.float32)
    episode = jax.jit(random_shifts(lambda key: episode_of(before), 2))(jax.random.key(0))
    support = offsets(before, np.asarray(episode.support.inputs), 2)
    query = offsets(before, np.asarray(episode.query.inputs), 2)
    assert len(set(support)) == 25
    assert support != query
    np.testing.assert_array_equal(episode.support.targets, np.arange(200))


def test_what_comes_in_is_zero():
    before = np.ones((50, 3, 3, 1), np.float32)
    episode = random_shifts(lambda key: episode_of(before), 1)(jax.random.key(1))
    sums = np.unique(np.asarray(episode.query.inputs).sum((1, 2, 3)))
    np.testing.assert_array_equal(sums, [4, 6, 9])


def test_no_shift_is_the_same_sampler():
    sample = lambda key: episode_of(images(2))
    assert random_shifts(sample, 0) is sample


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="pixels must be at least 0, got -1"):
        random_shifts(lambda key: episode_of(images(2)), -1)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 2, 1)])
def test_small_images_are_named(shape):
    sample = random_shifts(lambda key: episode_of(np.zeros(shape)), 2)
    with pytest.raises(ValueError, match=r"pixels is 2, which needs larger images"):
        sample(jax.random.key(0))
