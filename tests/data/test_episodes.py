import collections
import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data import (
    ClassData,
    episode_sampler,
    from_arrays,
    select_classes,
    sinusoid_sampler,
)


def grouped(examples, counts=None, names=()):
    """Of each class of ``[classes, per_class, ...]``, the first of ``counts``."""
    counts = np.asarray([examples.shape[1]] * len(examples) if counts is None else counts)
    parts = [part[:count] for part, count in zip(examples, counts, strict=True)]
    return ClassData(np.concatenate(parts), counts, names)


def coded(classes=12, per_class=6, height=4, dtype=np.uint8, counts=None):
    """Images that say where they come from: every pixel's value is its class and number."""
    codes = np.arange(classes)[:, None] * per_class + np.arange(per_class)
    assert codes.max() < 256
    examples = np.broadcast_to(
        codes[..., None, None, None], (classes, per_class, height, height, 1)
    )
    return grouped(examples.astype(dtype), counts)


def draw(sample, episodes, seed=0):
    drawn = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(seed), episodes))
    return jax.tree.map(np.asarray, drawn)


def codes_of(batch):
    """[episodes, examples]: the code that the images of a batch carry."""
    return np.rint(np.asarray(batch.inputs)[:, :, 0, 0, 0] * 255).astype(int)


def chi_square(counts, expected):
    counts = np.asarray(counts, float)
    return float(np.sum((counts - expected) ** 2 / expected))


def chi_square_bound(freedom):
    """Wilson and Hilferty's approximation of the quantile that is exceeded once in 30,000."""
    return freedom * (1 - 2 / (9 * freedom) + 4.0 * np.sqrt(2 / (9 * freedom))) ** 3


def test_shapes_dtypes_and_balanced_labels():
    sample = episode_sampler(coded(), n_way=5, k_shot=2, query=3)
    episode = jax.jit(sample)(jax.random.key(0))
    chex.assert_shape(episode.support.inputs, (10, 4, 4, 1))
    chex.assert_shape(episode.query.inputs, (15, 4, 4, 1))
    chex.assert_type([episode.support.inputs, episode.query.inputs], jnp.float32)
    chex.assert_type([episode.support.targets, episode.query.targets], jnp.int32)
    np.testing.assert_array_equal(episode.support.targets, np.repeat(np.arange(5), 2))
    np.testing.assert_array_equal(episode.query.targets, np.repeat(np.arange(5), 3))
    assert episode.support.inputs.max() <= 1.0


@pytest.mark.parametrize("rotations", ["none", "per_class"])
def test_images_belong_to_their_label_and_are_never_shared(rotations):
    per_class = 6
    data = coded(per_class=per_class)
    sample = episode_sampler(data, n_way=5, k_shot=2, query=3, rotations=rotations)
    episodes = draw(sample, 200)
    support, query = codes_of(episodes.support), codes_of(episodes.query)
    for s, q in zip(support, query, strict=True):
        assert len({*s, *q}) == 25  # no image twice, in one part or across
        classes = s.reshape(5, 2)[:, 0] // per_class
        assert len(set(classes)) == 5
        np.testing.assert_array_equal(s.reshape(5, 2) // per_class, classes[:, None].repeat(2, 1))
        np.testing.assert_array_equal(q.reshape(5, 3) // per_class, classes[:, None].repeat(3, 1))


def test_takes_every_class_and_every_image_when_asked_for_all():
    sample = episode_sampler(coded(4, 3), n_way=4, k_shot=1, query=2)
    episodes = draw(sample, 50)
    codes = np.concatenate([codes_of(episodes.support), codes_of(episodes.query)], axis=1)
    np.testing.assert_array_equal(np.sort(codes), np.tile(np.arange(12), (50, 1)))


def test_every_image_of_a_class_of_any_size_is_drawn_as_often():
    counts = np.array([2, 5, 3, 6], np.int32)
    data = coded(4, 6, counts=counts)
    episodes = draw(episode_sampler(data, n_way=2, k_shot=1, query=1), 2000)
    codes = np.concatenate([codes_of(episodes.support), codes_of(episodes.query)], axis=None)
    real = {c * 6 + i for c in range(4) for i in range(counts[c])}
    assert set(codes) == real
    for c in range(4):  # uniform within each class, whatever its size
        seen = [np.sum(codes == c * 6 + i) for i in range(counts[c])]
        assert chi_square(seen, np.mean(seen)) < chi_square_bound(counts[c] - 1)


def test_ordered_draws_of_classes_are_uniform():
    """Every ordered pair of distinct classes is as likely: no label prefers a class."""
    classes, episodes = 5, 20_000
    sample = episode_sampler(coded(classes, 2), n_way=2, k_shot=1, query=1)
    first, second = (codes_of(draw(sample, episodes).support) // 2).T
    seen = collections.Counter(zip(first.tolist(), second.tolist(), strict=True))
    pairs = list(itertools.permutations(range(classes), 2))
    assert set(seen) == set(pairs)
    statistic = chi_square([seen[p] for p in pairs], episodes / len(pairs))
    assert 1.0 < statistic < chi_square_bound(len(pairs) - 1)


def test_ordered_draws_of_images_are_uniform():
    """Every ordered triple of images of a class is as likely."""
    episodes = 24_000
    sample = episode_sampler(coded(1, 4), n_way=1, k_shot=1, query=2)
    drawn = draw(sample, episodes)
    codes = np.concatenate([codes_of(drawn.support), codes_of(drawn.query)], axis=1)
    seen = collections.Counter(map(tuple, codes.tolist()))
    triples = list(itertools.permutations(range(4), 3))
    assert set(seen) == set(triples)
    statistic = chi_square([seen[t] for t in triples], episodes / len(triples))
    assert 1.0 < statistic < chi_square_bound(len(triples) - 1)


def test_images_are_drawn_independently_of_the_class():
    episodes = 20_000
    drawn = codes_of(
        draw(episode_sampler(coded(3, 4), n_way=2, k_shot=1, query=1), episodes).support
    )
    (c0, c1), (i0, i1) = (drawn // 4).T, (drawn % 4).T
    cells = np.bincount(((c0 * 3 + c1) * 4 + i0) * 4 + i1, minlength=144).reshape(9, 16)
    cells = cells[[1, 2, 3, 5, 6, 7]].ravel()  # the pairs of distinct classes
    assert chi_square(cells, episodes / 96) < chi_square_bound(95)


def asymmetric(classes=6, per_class=3, side=5, channels=1):
    rng = np.random.Generator(np.random.PCG64(3))
    shape = (classes, per_class, side, side, channels)
    return grouped(rng.integers(0, 256, shape, dtype=np.uint8))


def identify(image, data):
    """Class, number and quarter turns of a drawn image, by comparison with numpy's rotations."""
    image = np.rint(np.asarray(image) * 255)
    found = [
        (c, i, k)
        for c, count in enumerate(data.counts)
        for i, k in itertools.product(range(count), range(4))
        if np.array_equal(image, np.rot90(data.examples[data.starts[c] + i], k))
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_per_class_rotation_is_the_same_for_support_and_query(channels):
    data = asymmetric(channels=channels)
    sample = episode_sampler(data, n_way=3, k_shot=1, query=2, rotations="per_class")
    episodes = draw(sample, 40)
    turns = []
    for support, query in zip(episodes.support.inputs, episodes.query.inputs, strict=True):
        classes = []
        for label in range(3):
            images = [support[label], *query[2 * label : 2 * label + 2]]
            where = [identify(image, data) for image in images]
            assert len({c for c, _, _ in where}) == len({k for _, _, k in where}) == 1
            assert len({i for _, i, _ in where}) == 3
            classes.append(where[0][0])
            turns.append(where[0][2])
        assert len(set(classes)) == 3
    assert chi_square(np.bincount(turns, minlength=4), len(turns) / 4) < chi_square_bound(3)


def test_rotations_as_classes_are_classes_of_their_own():
    data = asymmetric(classes=2, per_class=2)
    sample = episode_sampler(data, n_way=8, k_shot=1, query=1, rotations="as_classes")
    episodes = draw(sample, 10)
    every = set(itertools.product(range(2), range(4)))
    firsts = []
    for support, query in zip(episodes.support.inputs, episodes.query.inputs, strict=True):
        where = [identify(image, data) for image in support]
        asked = [identify(image, data) for image in query]
        assert [(c, k) for c, _, k in where] == [(c, k) for c, _, k in asked]
        assert all(s[1] != q[1] for s, q in zip(where, asked, strict=True))
        assert {(c, k) for c, _, k in where} == every
        firsts.append(where[0][0] * 4 + where[0][2])
    assert len(set(firsts)) > 4  # in random order


def test_data_that_are_not_images_pass_unchanged():
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    data = grouped(values)
    episode = draw(episode_sampler(data, n_way=4, k_shot=1, query=2), 1)
    drawn = np.concatenate([episode.support.inputs[0], episode.query.inputs[0]])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, values.reshape(12, 2)))
    tokens = grouped(values.astype(np.int32))
    episode = draw(episode_sampler(tokens, n_way=2, k_shot=1, query=1), 1)
    assert episode.support.inputs.dtype == jnp.int32
    assert episode.support.inputs.shape == (1, 2, 2)


def test_grey_images_get_a_channel_axis():
    data = ClassData(np.zeros([6, 5, 5], np.uint8), np.full(3, 2))
    episode = draw(episode_sampler(data, n_way=2, k_shot=1, query=1), 1)
    assert episode.support.inputs.shape == (1, 2, 5, 5, 1)


def test_large_episodes_stay_distinct():
    sample = episode_sampler(coded(60, 4), n_way=60, k_shot=2, query=2)
    codes = codes_of(draw(sample, 3).support)
    assert all(len(set(row)) == 120 for row in codes)


GOOD = {"n_way": 3, "k_shot": 1, "query": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_way": 0}, "n_way"),
        ({"k_shot": -1}, "k_shot"),
        ({"query": 0}, "query"),
        ({"n_way": 13}, "n_way is 13, but there are only 12 classes"),
        ({"k_shot": 3, "query": 4}, r"k_shot \+ query is 3 \+ 4 = 7, but class 0 has only 6"),
        ({"rotations": "all"}, "rotations must be one of"),
    ],
)
def test_bad_arguments_fail_when_the_sampler_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        episode_sampler(coded(), **{**GOOD, **change})


def test_four_times_the_classes_with_rotations_as_classes():
    episode_sampler(coded(2), n_way=8, k_shot=1, query=1, rotations="as_classes")
    with pytest.raises(ValueError, match="n_way is 9, but there are only 8"):
        episode_sampler(coded(2), n_way=9, k_shot=1, query=1, rotations="as_classes")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    data = coded(dtype=np.float32)
    data.examples[20, 1, 1, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        episode_sampler(data, **GOOD)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ClassData(np.zeros([6, 4, 6], np.uint8), np.full(3, 2)), "square"),
        (ClassData(np.zeros([6, 7], np.float32), np.full(3, 2)), "square"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.full(2, 2)), r"sum 4 and .* \(6, 4, 4\)"),
        (ClassData(np.zeros([3, 2, 4, 4], np.uint8), np.full(3, 2)), "one class after another"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.full(3, 2.0)), "counts must be integers"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.full((3, 1), 2)), "counts must be integers"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.array([3, 0, 3])), "at least 1, got 0"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.array([4, -1, 3])), "at least 1, got -1"),
        (ClassData(np.zeros([0, 4, 4], np.uint8), np.full(0, 2)), "empty"),
        ((np.zeros([6, 4, 4]), np.full(3, 2)), "data must be a ClassData, .*, got tuple"),
        (
            ClassData({"a": np.zeros([6, 4, 4])}, np.full(3, 2)),
            "examples must be an array.*got dict",
        ),
        (ClassData(np.array(3, np.uint8), np.full(3, 2)), r"examples must be \[examples"),
        (ClassData(np.zeros([6, 4, 4], np.uint8), np.full(3, 2), ("a",)), "names must be one for"),
    ],
)
def test_bad_data_fail_when_the_sampler_is_built(data, message):
    with pytest.raises(ValueError, match=message):
        episode_sampler(data, **GOOD, rotations="per_class")


def test_a_class_with_too_few_examples_is_named():
    data = ClassData(np.zeros([10, 3]), np.array([4, 2, 3, 1]), ("cat", "dog", "owl", "rat"))
    with pytest.raises(ValueError, match=r"class 3 \('rat'\) has only 1 examples, and 2 of the 4"):
        episode_sampler(data, n_way=2, k_shot=1, query=2)
    kept = select_classes(data, data.counts >= 3)
    assert kept.names == ("cat", "owl")
    episode_sampler(kept, n_way=2, k_shot=1, query=2)


def test_a_long_tail_takes_the_memory_of_its_examples():
    """One class of 3,000 images and 499 of 4."""
    counts = np.array([3000] + [4] * 499)
    images = np.arange(counts.sum() * 49, dtype=np.int64).astype(np.uint8).reshape(-1, 7, 7)
    data = from_arrays(images, np.repeat(np.arange(500), counts))
    assert data.examples.nbytes == images.nbytes
    groups = np.repeat([0, 1], [490, 10])
    sample = episode_sampler(data, n_way=5, k_shot=1, query=3, groups=groups)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(sample))
    assert held <= images.nbytes + 500 * 20
    assert jax.jit(sample)(jax.random.key(0)).query.inputs.shape == (15, 7, 7, 1)


def test_the_classes_drawn_can_be_told_by_name():
    """The numbers of the classes in place of the images, with the same key."""
    data = coded(6, 4)
    data = dataclasses.replace(data, names=tuple("abcdef"))
    numbers = dataclasses.replace(data, examples=np.repeat(np.arange(6), data.counts))
    options = {"n_way": 3, "k_shot": 1, "query": 2, "rotations": "none"}
    images = codes_of(draw(episode_sampler(data, **options), 20).support) // 4
    drawn = draw(episode_sampler(numbers, **options), 20).support.inputs
    np.testing.assert_array_equal(images, drawn)


def test_names_are_no_leaves():
    data = dataclasses.replace(coded(2, 3), names=("a", "b"))
    moved = jax.tree.map(jnp.asarray, data)
    assert moved.names == ("a", "b")
    assert len(jax.tree.leaves(moved)) == 2


@pytest.mark.parametrize("shape", [(6, 3, 8, 9), (6, 1, 5, 5), (6, 4, 84, 84)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_first_are_warned_of(shape, dtype):
    images, labels = np.zeros(shape, dtype), np.repeat([0, 1], 3)
    message = r"\(6, ., .*\) seems to be images with their channels first.*moveaxis"
    with pytest.warns(UserWarning, match=message) as caught:
        from_arrays(images, labels)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message) as caught:
        episode_sampler(ClassData(images, np.array([3, 3])), n_way=2, k_shot=1, query=1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "shape",
    [(6, 8, 8, 3), (6, 3, 3, 3), (6, 4, 4, 1), (6, 1, 8, 3), (6, 28, 28), (6, 3), (6, 2, 8, 8)],
)
def test_other_shapes_are_not(shape):
    episode_sampler(from_arrays(np.zeros(shape), [0, 0, 0, 1, 1, 1]), n_way=2, k_shot=1, query=1)


def test_sinusoid_points_lie_on_one_curve_of_the_published_range():
    sample = sinusoid_sampler(k_shot=5, query=7)
    episodes = draw(sample, 4000)
    x = np.concatenate([episodes.support.inputs, episodes.query.inputs], axis=1)[..., 0]
    y = np.concatenate([episodes.support.targets, episodes.query.targets], axis=1)[..., 0]
    assert x.shape == (4000, 12)
    # y = a sin(x - p) = (a cos p) sin x - (a sin p) cos x: linear in the two unknowns.
    basis = np.stack([np.sin(x), -np.cos(x)], axis=-1)
    weights = np.stack(
        [np.linalg.lstsq(b, t, rcond=None)[0] for b, t in zip(basis, y, strict=True)]
    )
    np.testing.assert_allclose(np.einsum("epk,ek->ep", basis, weights), y, atol=2e-4)
    amplitude = np.hypot(*weights.T)
    phase = np.arctan2(weights[:, 1], weights[:, 0])
    for values, low, high in [(amplitude, 0.1, 5.0), (phase, 0.0, np.pi), (x, -5.0, 5.0)]:
        assert values.min() > low - 1e-2
        assert values.max() < high + 1e-2
        bins, _ = np.histogram(values, bins=10, range=(low, high))
        assert chi_square(bins, bins.sum() / 10) < chi_square_bound(9)


@pytest.mark.parametrize("name", ["k_shot", "query"])
@pytest.mark.parametrize("value", [0, -3])
def test_sinusoid_refuses_bad_sizes(name, value):
    with pytest.raises(ValueError, match=name):
        sinusoid_sampler(**{name: value})
