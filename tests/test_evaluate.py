"""Scores against numpy."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from compilations import no_compilation

import metajax
from metajax.evaluate import _summarise


def learner():
    return metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=3)


@functools.cache
def losses_of_each_episode():
    """Twenty episodes' query losses before and after 1, 2 and 3 inner steps, one by one."""

    @functools.partial(jax.jit, static_argnums=1)
    def loss_after(episode, steps):
        params = toy.init_params()
        if steps:
            optimizer = optax.sgd(0.1)
            params, _ = metajax.adapt(
                toy.loss_fn, params, episode.support, optimizer=optimizer, steps=steps
            )
        return toy.loss_fn(params, episode.query)[0]

    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(2), 0), i) for i in range(20)]
    episodes = map(jax.jit(toy.make_sampler()), keys)
    return np.asarray([[loss_after(episode, k) for k in range(4)] for episode in episodes])


@pytest.mark.parametrize("tasks_per_chunk", [1, 8, 20])
def test_scores_are_those_of_adapting_to_each_episode(tasks_per_chunk):
    key, sample, params = jax.random.key(2), toy.make_sampler(), toy.init_params()
    scores = metajax.evaluate(
        learner(), params, sample, key, episodes=20, tasks_per_chunk=tasks_per_chunk
    )
    losses = losses_of_each_episode()
    np.testing.assert_allclose(scores.values["loss"], losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.curve["loss"], losses.mean(0), rtol=1e-4)
    np.testing.assert_allclose(scores.mean["loss"], losses[:, -1].mean(), rtol=1e-4)
    np.testing.assert_allclose(scores.std["loss"], losses[:, -1].std(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(
        scores.ci95["loss"], 1.96 * losses[:, -1].std(ddof=1) / np.sqrt(20), rtol=1e-4
    )


def test_without_a_curve_the_scores_are_those_after_the_last_step():
    key, sample, params = jax.random.key(2), toy.make_sampler(), toy.init_params()
    scores = metajax.evaluate(learner(), params, sample, key, episodes=20, curve=False)
    assert scores.values["loss"].shape == (20, 1)
    np.testing.assert_allclose(
        scores.values["loss"][:, 0], losses_of_each_episode()[:, -1], rtol=1e-4, atol=1e-6
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, size=(2000, 400))
    covered = [
        abs(scores.mean["x"] - 3.0) < scores.ci95["x"]
        for scores in (_summarise({"x": row[:, None]}) for row in draws)
    ]
    assert 0.935 < np.mean(covered) < 0.965


def test_an_evaluator_compiles_at_its_first_call_alone():
    score = metajax.evaluator(learner(), toy.make_sampler(), episodes=4)
    params, key = toy.init_params(), jax.random.key(0)
    first = score(params, key)
    other, raw = jax.tree.map(lambda leaf: leaf + 0.1, params), jax.random.key_data(key)
    with no_compilation():
        second, again = score(other, key), score(params, key)
    assert first.mean["loss"] != second.mean["loss"]
    assert again.mean == first.mean == score(params, raw).mean


@pytest.mark.parametrize("mesh", [None, metajax.task_mesh(2)], ids=["one", "shared"])
def test_a_dropped_evaluator_frees_its_program_and_its_data(mesh):
    params, built = toy.init_params(), learner()

    def sampler(tasks, data):
        return lambda key: tasks(jax.random.fold_in(key, data[:2].sum().astype(int)))

    sample = sampler(toy.make_sampler(), jnp.arange(12_343.0))
    dropped = [weakref.ref(sample), weakref.ref(built.adapt)]
    score = metajax.evaluator(built, sample, episodes=4, mesh=mesh)
    score(params, jax.random.key(0))
    metajax.evaluate(built, params, sample, jax.random.key(0), episodes=4, mesh=mesh)
    dropped.append(weakref.ref(score))
    del sample, built, score
    gc.collect()
    assert [reference() for reference in dropped] == [None] * 3
    assert not [a.shape for a in jax.live_arrays() if a.shape == (12_343,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 1}, "episodes must be at least 2 for a confidence interval, got 1"),
        ({"tasks_per_chunk": 0}, "tasks_per_chunk must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        metajax.evaluator(learner(), toy.make_sampler(), **options)


def test_classification_losses_against_numpy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(6, 4)), np.array([0, 1, 2, 3, 0, 1])
    loss, metrics = metajax.losses.cross_entropy(lambda p, x: x)(
        None, (jnp.asarray(logits), jnp.asarray(targets))
    )
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -log_softmax[np.arange(6), targets].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == targets).mean())


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (jnp.zeros((3, 2)), jnp.zeros(4, int), r"targets of shape \(4,\)"),
        (jnp.zeros(3), jnp.zeros(3, int), r"logits of shape \(3,\)"),
        (jnp.zeros((3, 2)), jnp.zeros(3), "targets must be integer class indices, got float32"),
    ],
)
def test_shapes_fail_at_trace(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        metajax.losses.cross_entropy(lambda p, x: x)(None, (logits, targets))


def test_squared_error_refuses_to_broadcast():
    with pytest.raises(ValueError, match="outputs of the targets' shape"):
        metajax.losses.mean_squared_error(lambda p, x: x)(None, (jnp.ones((4, 1)), jnp.ones(4)))
