"""What holds of every sampler: it is a pytree of its data, and a key's episode is a constant."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.data import (
    ClassData,
    episode_sampler,
    random_shifts,
    sinusoid_sampler,
    variable_episode_sampler,
)

GROUPS = np.arange(12) // 4
SIZES = {"n_way": 3, "k_shot": 1, "query": 2}
MOST = {"max_way": 3, "max_shot": 2, "query": 2}


def data(seed=0):
    """Images, whose pixels are random; some classes have fewer than others."""
    rng = np.random.Generator(np.random.PCG64(seed))
    counts = rng.integers(4, 7, 12).astype(np.int32)
    images = rng.integers(0, 256, (12, 6, 5, 5, 1), dtype=np.uint8)
    return ClassData(np.concatenate([i[:n] for i, n in zip(images, counts, strict=True)]), counts)


def other():
    """As many images, in classes of other sizes."""
    first = data()
    return ClassData(first.examples[::-1], first.counts[::-1])


SAMPLERS = {
    "episodes": lambda data: episode_sampler(data, **SIZES),
    "turned": lambda data: episode_sampler(data, **SIZES, rotations="per_class"),
    "turns": lambda data: episode_sampler(data, **SIZES, rotations="as_classes", groups=GROUPS),
    "variable": lambda data: variable_episode_sampler(data, **MOST, balanced=False),
    "groups": lambda data: variable_episode_sampler(data, **MOST, groups=GROUPS),
    "shifts": lambda data: random_shifts(episode_sampler(data, **SIZES), 2),
    "sinusoid": lambda data: sinusoid_sampler(3, 4),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


@every_sampler
def test_its_leaves_are_the_data(name):
    own = data()
    leaves = jax.tree.leaves(SAMPLERS[name](own))
    if name == "sinusoid":
        assert leaves == []
        return
    for leaf, array in zip(leaves, (own.examples, own.starts, own.counts), strict=False):
        np.testing.assert_array_equal(leaf, array)
    # Beside them, the members of the groups, and where each begins and ends.
    assert len(leaves) == (6 if name in ("turns", "groups") else 3)


@every_sampler
def test_a_program_takes_another_data_set(name):
    first, second = SAMPLERS[name](data()), SAMPLERS[name](other())
    traced, key = [], jax.random.key(3)
    draw = jax.jit(lambda sample, key: (traced.append(1), sample(key))[1])
    draw(first, key)
    swapped = jax.tree.structure(first).unflatten(map(jnp.asarray, jax.tree.leaves(second)))
    for sample in (second, swapped):
        jax.tree.map(np.testing.assert_array_equal, draw(sample, key), jax.jit(second)(key))
    assert len(traced) == 1


def test_other_options_are_another_program():
    structures = {
        jax.tree.structure(sampler)
        for sampler in (
            *(make(data()) for make in SAMPLERS.values()),
            episode_sampler(data(), **SIZES | {"query": 1}),
            random_shifts(episode_sampler(data(), **SIZES), 1),
            sinusoid_sampler(4, 3),
        )
    }
    assert len(structures) == len(SAMPLERS) + 3


@pytest.mark.slow
def test_shifts_of_a_plain_function_draw_the_same():
    sample = episode_sampler(data(), **SIZES)
    plain, key = random_shifts(lambda key: sample(key), 2), jax.random.key(0)
    assert jax.tree.leaves(plain) == [plain]
    shifted = random_shifts(sample, 2)
    jax.tree.map(np.testing.assert_array_equal, plain(key), shifted(key))


DRAWN = {
    "episodes": "a0a93fc13556c42b",
    "turned": "328a18f8f5f7cce3",
    "turns": "e7fb0173f7901c99",
    "variable": "5a68bcd56a6d0bb8",
    "groups": "8a8e269ac724aefb",
    "shifts": "8328b2c197d571b2",
    "sinusoid": [-2.940021, -2.415587, 4.088425, 4.283061, -2.00115],
}
"""Digests of the images, and the sinusoid's points: runs of the past can be repeated."""


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "sinusoid"])
def test_what_a_key_draws_is_a_constant(name):
    episode = SAMPLERS[name](data())(jax.random.key(7))
    pixels = np.rint(255 * np.concatenate([episode.support.inputs, episode.query.inputs]))
    digest = hashlib.sha256(pixels.astype(np.uint8).tobytes()).hexdigest()[:16]
    assert digest == DRAWN[name]


def test_the_sinusoid_of_a_key_is_a_constant():
    episode = sinusoid_sampler(2, 1)(jax.random.key(7))
    found = [*episode.support.inputs, *episode.support.targets, *episode.query.targets]
    np.testing.assert_allclose(np.ravel(found), DRAWN["sinusoid"], rtol=1e-4)
