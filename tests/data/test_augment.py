"""Random shifts against numpy's roll, flips by hand, colours against Pillow's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

import metajax
from metajax.data import random_affine, random_colours, random_flips, random_shifts
from metajax.data.augment import _Affine, _Colours


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


def test_half_of_the_images_are_mirrored():
    before = images(400).astype(np.float32)
    episode = jax.jit(random_flips(lambda key: episode_of(before)))(jax.random.key(0))
    flipped = []
    for batch in (episode.support, episode.query):
        after = np.asarray(batch.inputs)
        mirrored = (after == before[:, :, ::-1]).all((1, 2, 3))
        assert (mirrored | (after == before).all((1, 2, 3))).all()
        assert 0.4 < mirrored.mean() < 0.6
        flipped.append(mirrored)
    assert (flipped[0] != flipped[1]).any()


def test_colours_change_as_pillow_changes_them():
    before = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    key = jax.random.key(2)
    after = np.asarray(_Colours(0.4)(key, jnp.asarray(before, jnp.float32) / 255))
    factors = np.asarray(jax.random.uniform(key, (3, 20), minval=0.6, maxval=1.4))
    assert factors.std() > 0.1
    for image, found, each in zip(before, after, factors.T, strict=True):
        expected = Image.fromarray(image)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance, factor in zip(enhancers, each, strict=True):
            expected = enhance(expected).enhance(float(factor))
        np.testing.assert_allclose(255 * found, np.asarray(expected), atol=4)  # Pillow rounds


def test_colours_of_support_and_query_are_drawn_for_each_image():
    before = np.full((30, 4, 4, 3), 0.5, np.float32)
    episode = random_colours(lambda key: episode_of(before), 0.2)(jax.random.key(0))
    support, query = (np.asarray(batch.inputs)[:, 0, 0, 0] for batch in episode[:2])
    assert len(np.unique(np.concatenate([support, query]))) == 60
    assert (abs(support - 0.5) <= 0.1 + 1e-6).all()
    same = random_colours(lambda key: episode_of(before), 0)(jax.random.key(0))
    np.testing.assert_allclose(same.query.inputs, before, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda sample: random_colours(sample, 1.5), r"strength must be in \[0, 1\], got 1.5"),
        (
            lambda sample: random_colours(sample)(jax.random.key(0)),
            r"width, 3\], got shape \(2, 4\)",
        ),
        (lambda sample: random_flips(sample)(jax.random.key(0)), r"channels\], got shape \(2, 4\)"),
    ],
)
def test_what_has_no_colours_or_sides_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(lambda key: episode_of(np.zeros((2, 4))))


def test_augmented_samplers_of_a_pytree_are_pytrees():
    sample = metajax.data.episode_sampler(
        metajax.data.from_arrays(np.zeros((20, 6, 6, 3), np.uint8), np.arange(20) // 4),
        n_way=2, k_shot=1, query=1,
    )  # fmt: skip
    both = random_colours(random_flips(sample))
    assert len(jax.tree.leaves(both)) == len(jax.tree.leaves(sample))
    assert both(jax.random.key(0)).support.inputs.shape == (2, 6, 6, 3)


def test_an_affine_change_is_scipys():
    """Pixels are read through the map that was drawn; SciPy reads through the same one."""
    ndimage = pytest.importorskip("scipy.ndimage")
    before = images(20).astype(np.float32)
    change = _Affine(turn=0.5, shear=0.3, scale=0.2, pixels=2.0)
    keys = jax.random.split(jax.random.key(3), len(before))
    after = change(jax.random.key(3), jnp.asarray(before))
    unchanged = 0
    for key, old, new in zip(keys, before, after, strict=True):
        matrix, shift = (np.asarray(part, np.float64) for part in change._draw(key))
        centre = (np.array(old.shape[:2]) - 1) / 2
        offset = centre + shift - matrix @ centre
        expected = ndimage.affine_transform(
            old[..., 0], matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(new[..., 0], expected, atol=2e-4)
        unchanged += np.allclose(new, old)
    assert unchanged < 6


def test_nothing_is_changed_by_zero_and_channels_alike():
    before = np.repeat(images(10), 3, axis=-1).astype(np.float32)
    sample = lambda key: episode_of(before)
    still = random_affine(sample, degrees=0, shear=0, scale=0, pixels=0)(jax.random.key(0))
    np.testing.assert_allclose(still.query.inputs, before, atol=1e-6)
    moved = random_affine(sample)(jax.random.key(0)).support.inputs
    np.testing.assert_array_equal(moved[..., 0], moved[..., 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"degrees": 200}, "degrees"), ({"scale": 1.0}, "scale"), ({"shear": -1}, "shear")],
)
def test_affine_numbers_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        random_affine(lambda key: episode_of(images(2)), **options)
