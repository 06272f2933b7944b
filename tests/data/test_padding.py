"""A user's own episodes of different sizes as one meta-batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.data import pad_episodes
from metajax.errors import ArgumentError

SIZES = [(2, [1, 1], 3), (5, [2, 3, 1, 1, 4], 7), (3, [4, 2, 2], 1)]
"""Of each task the classes, how many support examples each has, and the query examples."""


def own_episodes(dtype=np.float64):
    """Examples around a centre of each class, in random order."""
    rng = np.random.default_rng(0)
    episodes = []
    for way, shots, queries in SIZES:
        centres = rng.normal(size=(way, 3))
        support = rng.permutation(np.repeat(np.arange(way), shots))
        query = rng.integers(0, way, queries)
        episodes.append(
            tuple(
                (np.asarray(centres[labels] + rng.normal(size=(len(labels), 3)), dtype), labels)
                for labels in (support, query)
            )
        )
    return episodes


def network(params, inputs):
    return jnp.tanh(inputs @ params["w"]) @ params["out"] + params["b"]


def params_of(way):
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(3, 4)), "out": rng.normal(size=(4, 5)), "b": np.ones(5)}
    return {**params, "out": params["out"][:, :way], "b": params["b"][:way]}


def maml(way):
    return metajax.maml(metajax.losses.cross_entropy(network), optax.sgd(0.3), steps=2)


def prototypical(way):
    return metajax.prototypical(lambda params, inputs: jnp.tanh(inputs @ params["w"]), n_way=way)


@pytest.mark.slow
@pytest.mark.parametrize("learner_of", [maml, prototypical])
def test_each_task_scores_as_it_does_alone(x64, learner_of):
    """The network of a task alone has as many outputs as the task has classes."""
    own = own_episodes()
    padded = pad_episodes(own, n_way=5, support=12, query=9)
    scores = metajax.evaluate_episodes(learner_of(5), params_of(5), padded)
    assert scores.values["loss"].dtype == np.float64
    for i, (way, _, _) in enumerate(SIZES):
        alone = metajax.Episode(*(metajax.Batch(*map(jnp.asarray, each)) for each in own[i]))
        learner, params = learner_of(way), params_of(way)
        adapted, _ = learner.adapt(params, alone.support)
        loss, metrics = learner.loss(adapted, alone)
        np.testing.assert_allclose(scores.values["loss"][i, -1], loss, rtol=1e-10)
        np.testing.assert_allclose(scores.values["accuracy"][i, -1], metrics["accuracy"])


def test_what_is_added_repeats_the_task_s_own():
    own = own_episodes(np.float32)
    padded = pad_episodes(own)
    assert padded.key is None
    for part, size in (("support", 11), ("query", 7)):
        batch = getattr(padded, part)
        assert isinstance(batch, metajax.MaskedBatch)
        assert batch.inputs.shape == (3, size, 3)
        assert (batch.inputs.dtype, batch.targets.dtype) == (jnp.float32, jnp.int32)
        assert batch.classes.sum(axis=1).tolist() == [2, 5, 3]
        for i, episode in enumerate(own):
            inputs, targets = episode[part == "query"]
            number = len(targets)
            assert batch.mask[i].tolist() == [True] * number + [False] * (size - number)
            for j in range(size):
                np.testing.assert_array_equal(batch.inputs[i, j], inputs[j % number])
                assert batch.targets[i, j] == targets[j % number]


def test_any_form_of_an_episode_and_its_key():
    (support, query), other, _ = own_episodes(np.float32)
    batches = metajax.Batch(*map(jnp.asarray, support)), metajax.Batch(*query)
    lists = [[list(map(list, part[0])), part[1].tolist()] for part in (support, query)]
    plain = pad_episodes([(support, query), other])
    for same in (batches, [batches[0], query], lists, metajax.Episode(*batches)):
        jax.tree.map(np.testing.assert_array_equal, pad_episodes([same, other]), plain)
    keys = jax.random.split(jax.random.key(0), 2)
    with_keys = [metajax.Episode(*batches, keys[0]), metajax.Episode(*other, keys[1])]
    assert (pad_episodes(with_keys).key == keys).all()
    with pytest.raises(ArgumentError, match=r"have a key, or none, but 1 of 2 have one"):
        pad_episodes([with_keys[0], other])


@pytest.mark.slow
def test_a_gradient_through_vmap_is_the_mean_of_the_tasks_own(x64):
    own = own_episodes()
    learner, params = maml(5), params_of(5)

    def loss(params, episode):
        adapted, _ = learner.adapt(params, episode.support)
        return learner.loss(adapted, episode)[0]

    together = jax.grad(lambda p: jax.vmap(lambda e: loss(p, e))(pad_episodes(own)).mean())
    alone = [jax.grad(loss)(params_of(SIZES[i][0]), metajax.Episode(*own[i])) for i in range(3)]
    mean = sum(gradient["w"] for gradient in alone) / 3
    np.testing.assert_allclose(together(params)["w"], mean, rtol=1e-10)


X = np.ones((4, 2))
GOOD = ((X, [0, 1, 1, 0]), (X, [0, 1, 1, 1]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one"),
        ([(X, [0, 1, 2, 2])], r"episodes\[0\]\.support must be a Batch or a pair"),
        ([GOOD, X], r"episodes\[1\] must be an Episode or a pair"),
        (
            [GOOD, (GOOD[0], (X[:3], [0, 1, 1, 1]))],
            r"episodes\[1\]\.query must have inputs .*\(3, 2",
        ),
        ([(GOOD[0], (X[:0], []))], r"episodes\[0\]\.query must have .* at least one"),
        ([((X[:0], []), GOOD[1])], r"episodes\[0\]\.support must have .* at least one"),
        ([((X, [1, 2, 1, 2]), (X, [1, 2, 1, 2]))], r"support\.targets must be from 0 .*\[1, 2\]"),
        ([((X, [0, 2, 0, 2]), (X, [0, 2, 0, 2]))], r"support\.targets must be .*\[0, 2\]"),
        ([((X, [0, -1, 0, 1]), GOOD[1])], r"support\.targets must be .*\[-1, 0, 1\]"),
        ([(GOOD[0], (X, [0, 1, 2, 1]))], r"query\.targets must be .*\[0, 1, 2\] and 2 classes"),
        ([(GOOD[0], (X, [0, 1, -1, 1]))], r"query\.targets must be .*\[-1, 0, 1\]"),
        ([((X, [0.0, 1.0, 0.0, 1.0]), GOOD[1])], r"support\.targets must be integers .*\[0\.0, 1"),
        ([(GOOD[0], (X, ["0", "1", "0", "1"]))], r"query\.targets must be integers .*'0', '1'"),
        ([((X, np.eye(4)[:, :2]), GOOD[1])], r"as many targets .*\(4, 2\) and \(4, 2\)"),
        (
            [GOOD, (GOOD[0], (np.ones((4, 3)), [0] * 4))],
            r"float64\[2\].*float64\[3\].*\[1\]\.query",
        ),
        (
            [GOOD, ((X.astype(np.uint8), [0, 1, 0, 1]), GOOD[1])],
            r"uint8\[2\] in episodes\[1\]\.sup",
        ),
        ([(([X[0], X[0, :1]], [0, 1]), GOOD[1])], r"\.inputs must be examples of one shape"),
    ],
)
def test_what_is_wrong_is_named_with_its_task(bad, message):
    with pytest.raises(ArgumentError, match=message):
        pad_episodes(bad)


def test_the_room_must_be_enough():
    for name, needed in (("n_way", 2), ("support", 4), ("query", 4)):
        pad_episodes([GOOD], **{name: needed})
        with pytest.raises(
            ArgumentError, match=rf"{name} is {needed - 1}, but episodes\[0\] needs"
        ):
            pad_episodes([GOOD], **{name: needed - 1})
    with pytest.raises(ArgumentError, match=r"n_way must be a positive integer, got 2\.5"):
        pad_episodes([GOOD], n_way=2.5)  # pyright: ignore[reportArgumentType]


def test_small_integers_don_t_overflow():
    labels = np.arange(256).astype(np.uint8)
    batch = (np.zeros((256, 1)), labels)
    assert pad_episodes([(batch, batch)]).support.classes.shape == (1, 256)


def test_channels_first_are_warned_of():
    images = (np.zeros((2, 3, 8, 8)), [0, 1])
    with pytest.warns(UserWarning, match="channels first") as caught:
        pad_episodes([(images, images)])
    assert caught[0].filename == __file__
