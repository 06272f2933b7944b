"""Episodes of varying size, and episodes within a group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.data import (
    ClassData,
    episode_sampler,
    omniglot_alphabets,
    variable_episode_sampler,
)
from metajax.data._omniglot import CHARACTERS, split_classes_of

CLASSES, PER_CLASS = 12, 8


@pytest.fixture
def data():
    """Every example is its class times 100 plus its place."""
    values = 100 * np.arange(CLASSES)[:, None] + np.arange(PER_CLASS)
    return ClassData(values.reshape(-1, 1).astype(np.float32), np.full(CLASSES, PER_CLASS))


def draws(sample, n=200):
    keys = jax.random.split(jax.random.key(0), n)
    return jax.device_get(jax.jit(jax.vmap(sample))(keys))


@pytest.mark.parametrize("balanced", [True, False])
def test_masks_tell_what_is_real(data, balanced):
    sample = variable_episode_sampler(
        data, max_way=5, max_shot=3, query=2, min_shot=1, balanced=balanced
    )
    episodes = draws(sample)
    ways, uneven = set(), 0
    for i in range(200):
        support, query, _ = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        way = int(support.classes.sum())
        ways.add(way)
        shots = support.mask.reshape(5, 3).sum(axis=1)
        assert (shots[:way] >= 1).all()
        assert (shots[way:] == 0).all()
        uneven += len(set(shots[:way])) > 1
        assert (query.mask.reshape(5, 2).sum(axis=1)[:way] == 2).all()
        np.testing.assert_array_equal(support.classes, query.classes)
        # What is real is distinct, support and query share nothing, and a label is a class.
        real = support.inputs[support.mask][:, 0], query.inputs[query.mask][:, 0]
        together = np.concatenate(real)
        assert len(set(together)) == len(together)
        labels = np.concatenate([support.targets[support.mask], query.targets[query.mask]])
        assert len(set(zip(labels, together // 100, strict=True))) == way
        # Padding repeats the task's own.
        assert set(support.inputs[:, 0]) == set(real[0])
        assert set(query.inputs[:, 0]) == set(real[1])
    assert ways == {2, 3, 4, 5}
    assert (uneven == 0) == balanced


@pytest.mark.slow
def test_a_masked_task_is_learnt_as_the_task_without_padding(data, x64):
    """MAML on a padded episode against MAML on its real examples alone."""
    sample = variable_episode_sampler(data, max_way=4, max_shot=3, query=2, balanced=False)
    apply = lambda params, inputs: jnp.sin(inputs / 100) @ params["w"] + params["b"]
    params = {"w": jnp.linspace(-1, 1, 4)[None], "b": jnp.linspace(0.5, -0.5, 4)}
    learner = metajax.maml(metajax.losses.cross_entropy(apply), optax.sgd(0.5), steps=2)
    for seed in range(3):
        episode = sample(jax.random.key(seed))
        way = int(episode.support.classes.sum())

        def real(batch):
            return metajax.Batch(batch.inputs[batch.mask], batch.targets[batch.mask])

        def only(way):
            return jax.tree.map(lambda leaf: leaf[..., :way], params)

        plain = metajax.Episode(real(episode.support), real(episode.query))

        def outer(params, episode):
            return learner.loss(learner.adapt(params, episode.support)[0], episode)[0]

        padded = jax.jit(jax.value_and_grad(outer))(params, episode)
        expected = jax.jit(jax.value_and_grad(outer))(only(way), plain)
        np.testing.assert_allclose(padded[0], expected[0], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[..., : b.shape[-1]], b, rtol=1e-5, atol=1e-9),
            padded[1],
            expected[1],
        )


def test_a_group_s_classes_stay_together(data):
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2])
    sample = episode_sampler(data, n_way=3, k_shot=1, query=1, groups=groups)
    inputs = draws(sample, 600).support.inputs[..., 0]
    classes = (inputs // 100).astype(int)
    of_group = groups[classes]
    assert (of_group == of_group[:, :1]).all()
    assert all(len(set(row)) == 3 for row in classes)
    assert set(classes.ravel()) == set(range(CLASSES))
    shares = np.bincount(of_group[:, 0]) / 600
    np.testing.assert_allclose(shares, 1 / 3, atol=0.07)  # groups, not classes, are uniform


def test_omniglot_s_alphabets_fit_its_classes():
    alphabets = omniglot_alphabets("validation", protocol="vinyals")
    names = {CHARACTERS[c][0] for c in split_classes_of("validation", protocol="vinyals")}
    assert len(alphabets) == 172
    assert len(set(alphabets.tolist())) == len(names) == 5
    assert len(set(omniglot_alphabets("all").tolist())) == 50


@pytest.mark.parametrize("rotations", ["none", "as_classes"])
def test_an_alphabet_too_small_for_the_ways(rotations):
    """The smallest of the split is just large enough, and its number is told where it isn't."""
    alphabets = omniglot_alphabets("validation", protocol="vinyals")
    numbers, sizes = np.unique(alphabets, return_counts=True)
    smallest, largest_way = numbers[sizes.argmin()], sizes.min()
    turns = 4 if rotations == "as_classes" else 1
    drawings = ClassData(np.zeros((2 * len(alphabets), 2, 2), np.uint8), np.full(len(alphabets), 2))

    def sampler(n_way):
        return episode_sampler(
            drawings, n_way=n_way, k_shot=1, query=1, rotations=rotations, groups=alphabets
        )

    sampler(turns * largest_way)
    too_many = turns * largest_way + 1
    message = f"n_way is {too_many}, but group {smallest} has only {too_many - 1} classes"
    with pytest.raises(ValueError, match=message):
        sampler(too_many)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_way": 6}, "min_way is 6, more than max_way, 5"),
        ({"min_shot": 4}, "min_shot is 4, more than max_shot, 3"),
        ({"min_way": 1}, "min_way must be at least 2, got 1"),
        ({"min_shot": 0}, "min_shot must be at least 1, got 0"),
        ({"groups": np.zeros(3, int)}, r"groups must be integers of shape \[12\]"),
        ({"groups": np.arange(12) // 4}, "n_way is 5, but group 0 has only 4 classes"),
    ],
)
def test_bad_arguments_are_named(data, options, message):
    with pytest.raises(ValueError, match=message):
        variable_episode_sampler(data, max_way=5, max_shot=3, query=2, **options)


@pytest.mark.slow
def test_given_episodes_are_scored_in_their_order(data):
    sample = variable_episode_sampler(data, max_way=4, max_shot=2, query=2)
    episodes = jax.vmap(sample)(jax.random.split(jax.random.key(1), 5))
    learner = metajax.prototypical(lambda scale, inputs: scale * inputs, n_way=4)
    scores = metajax.evaluate_episodes(learner, jnp.array(0.01), episodes)
    assert scores.episodes == 5
    for i in range(5):
        episode = jax.tree.map(lambda leaf, i=i: leaf[i], episodes)
        adapted, _ = learner.adapt(jnp.array(0.01), episode.support)
        loss, _ = learner.loss(adapted, episode)
        np.testing.assert_allclose(scores.values["loss"][i], [loss], rtol=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        metajax.evaluate_episodes(learner, jnp.array(0.01), jax.tree.map(lambda x: x[:1], episodes))
