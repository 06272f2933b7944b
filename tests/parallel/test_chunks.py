"""Choosing how many tasks are computed together."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.parallel import _chunks as chunks

WIDTH = 64
TASKS = jnp.zeros((12, WIDTH))


def work(params, tasks):
    """A sorted matrix for each task: temporary memory that grows with their number."""
    outer = jnp.sin(tasks[:, :, None] * tasks[:, None, :] + params)
    return jnp.sum(jnp.sort(outer, axis=1), axis=(0, 1))


def memory(size):
    compiled = jax.jit(work).lower(jnp.ones(WIDTH), TASKS[:size]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def choose(budget, monkeypatch, backend="gpu"):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    return chunks.choose(work, jnp.ones(WIDTH), TASKS, memory_budget=budget)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("fits", "expected"), [(12, 12), (8, 8), (7, 4), (2, 2), (1, 1)])
def test_the_largest_chunk_that_fits(fits, expected, backend, monkeypatch):
    budget = memory(fits) + 100
    choice = choose(budget, monkeypatch, backend)
    assert choice.tasks_per_chunk == expected
    assert choice.temporary_bytes <= choice.budget_bytes == budget


def test_on_a_cpu_the_cache_decides_without_a_budget(monkeypatch):
    monkeypatch.setattr(chunks, "CACHE_BYTES", memory(4) + 100)
    assert choose(None, monkeypatch, "cpu").tasks_per_chunk == 4
    monkeypatch.setattr(chunks, "CACHE_BYTES", 10)
    choice = choose(None, monkeypatch, "cpu")
    assert (choice.tasks_per_chunk, choice.reason.split()[-1]) == (1, "cache")


def test_a_budget_that_one_task_exceeds_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"memory_budget: one task takes .* MiB"):
        choose(10, monkeypatch)


def test_a_device_that_does_not_tell_its_memory_takes_all(monkeypatch):
    assert choose(None, monkeypatch).tasks_per_chunk == 12


def test_the_meta_gradient_is_the_same_and_says_what_it_picked(caplog):
    learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=1)
    episodes = metajax.Episode(jnp.arange(6.0), jnp.arange(6.0) ** 2)
    with caplog.at_level(logging.INFO, logger="metajax.parallel"):
        automatic = jax.jit(metajax.meta_gradient(learner, tasks_per_chunk="auto"))
        gradient, _ = automatic(jnp.array(0.5), episodes)
    assert "tasks_per_chunk: 6 of 6 tasks" in caplog.text
    expected, _ = metajax.meta_gradient(learner, tasks_per_chunk=1)(jnp.array(0.5), episodes)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("mesh", [None, metajax.task_mesh(2)], ids=["one device", "mesh"])
def test_a_trainer_chooses_for_itself(mesh):
    learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=1)
    sample = lambda key: metajax.Episode(*jax.random.normal(key, (2, 3)))
    arguments = {"meta_batch": 4, "mesh": mesh}
    states = []
    for choice in ({"tasks_per_chunk": "auto", "memory_budget": 10**6}, {"tasks_per_chunk": 1}):
        trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sample, **arguments, **choice)
        states.append(trainer.step(trainer.init(jnp.zeros(3), jax.random.key(0)))[0].params)
    np.testing.assert_allclose(*states, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks_per_chunk": "all"}, "tasks_per_chunk must be a positive integer, 'auto' or None"),
        ({"tasks_per_chunk": 0}, "tasks_per_chunk must be at least 1, got 0"),
        ({"tasks_per_chunk": 4, "memory_budget": 10}, "memory_budget=10 needs tasks_per_chunk="),
        ({"tasks_per_chunk": "auto", "memory_budget": 0}, "memory_budget must be at least 1"),
    ],
)
def test_what_cannot_be_chosen_is_refused(arguments, message):
    learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=1)
    with pytest.raises(ValueError, match=message):
        metajax.meta_gradient(learner, **arguments)
