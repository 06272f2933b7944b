"""Samplers: whose arrays are arguments of the program, and what episodes' keys depend on."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import no_compilation
from jax.tree_util import Partial

import metajax
from metajax._samplers import HoistedSampler, episode_keys

KEY = jax.random.key(3)
SIZE = 2**20

meshes = pytest.mark.parametrize("mesh", [None, metajax.task_mesh(4)], ids=["one", "shared"])


MAML = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=1)


def train(sample, *, key=KEY, learner=MAML, steps=3, call=None, **options):
    """Parameters and losses after some steps."""
    trainer = metajax.meta_trainer(learner, optax.adam(0.1), sample, **{"meta_batch": 4} | options)
    state, metrics = trainer.run(trainer.init(jnp.zeros(3), key), steps, sample=call)
    return np.asarray(state.params), np.asarray(metrics["loss"])


def draw(data, key):
    support, query = jnp.take(data, jax.random.randint(key, (2, 3), 0, len(data)))
    return metajax.Episode(support, query)


def closure(data):
    return lambda key: draw(data, key)


def jitted(data):
    return jax.jit(closure(data))


def calls_jitted(data):
    drawn = jax.jit(closure(data))
    return lambda key: drawn(jax.random.fold_in(key, 1))


def partial(data):
    return Partial(draw, data)


@pytest.mark.parametrize("constants", [False, True], ids=["consts", "literals"])
@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("build", [closure, jitted, calls_jitted, partial])
def test_the_data_set_is_an_argument_of_the_program_not_a_constant(build, library, constants):
    name = "jax_use_simplified_jaxpr_constants"
    if not hasattr(jax.config, name):
        pytest.skip("this JAX has one form of constants")
    before = getattr(jax.config, name)
    jax.config.update(name, constants)
    try:
        sample = build(library.arange(SIZE, dtype=np.float32))
        sampler = HoistedSampler(sample, None)
        arrays = sampler.arrays(KEY)
        assert sum(leaf.size == SIZE for leaf in jax.tree.leaves(arrays)) == 1
        assert len(jax.jit(sampler.draw).lower(arrays, KEY).as_text()) < 100_000
        expected = sample(KEY).support
        np.testing.assert_array_equal(sampler.draw(arrays, KEY).support, expected)
        batch = jax.vmap(lambda key: sampler.draw(arrays, key))(jax.random.split(KEY, 2))
        assert batch.support.shape == (2, 3)
    finally:
        jax.config.update(name, before)


def test_a_sampler_may_be_any_callable_pytree():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Windows:
        data: jax.Array

        def __call__(self, key):
            return draw(self.data, key)

    data = jnp.arange(50.0)
    for ours, expected in zip(train(Windows(data)), train(closure(data)), strict=True):
        np.testing.assert_array_equal(ours, expected)


@meshes
def test_another_sampler_takes_the_place_of_the_first_and_compiles_nothing(mesh):
    first, second = (Partial(draw, np.arange(20.0) + start) for start in (0, 100))
    trainer = metajax.meta_trainer(MAML, optax.adam(0.1), first, meta_batch=4, mesh=mesh)
    state, _ = trainer.run(trainer.init(jnp.zeros(3), KEY), 3)
    with no_compilation():
        again, _ = trainer.run(trainer.init(jnp.zeros(3), KEY), 3, sample=second)
    np.testing.assert_array_equal(again.params, train(second, mesh=mesh)[0])
    back, _ = trainer.run(trainer.init(jnp.zeros(3), KEY), 3)  # the first is still there
    np.testing.assert_array_equal(back.params, state.params)


@pytest.mark.parametrize(
    ("first", "call", "message"),
    [
        (partial, lambda: partial(np.zeros(7)), r"'0/0' must be float32\[20\].* got float32\[7\]"),
        (partial, lambda: partial(np.zeros(20, int)), r"must be float32\[20\].* got int32\[20\]"),
        (partial, lambda: closure(np.zeros(20)), r"must have the structure .* same function"),
        (closure, lambda: closure(np.ones(20)), r"must have the structure .* same function"),
    ],
)
def test_a_sampler_that_differs_is_refused_with_the_difference(first, call, message):
    with pytest.raises(metajax.ArgumentError, match=message):
        train(first(np.zeros(20)), call=call())


def test_what_a_dropped_trainer_held_is_freed():
    def hold():
        sample = closure(jnp.arange(12_347.0))
        train(sample)
        train(partial(jnp.arange(12_347.0)), call=partial(np.arange(12_347.0)))

    hold()
    gc.collect()
    assert not [a.shape for a in jax.live_arrays() if a.shape == (12_347,)]


def test_episodes_do_not_depend_on_the_size_of_the_meta_batch():
    data = lambda *arguments: jax.random.key_data(episode_keys(*arguments))
    small, large = (data(KEY, 7, n) for n in (3, 8))
    np.testing.assert_array_equal(small, large[:3])
    np.testing.assert_array_equal(data(KEY, 7, 3, 5), large[5:])
    keys = np.concatenate([large, data(KEY, 8, 8)])
    assert len(np.unique(keys, axis=0)) == 16


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_any_generator_draw_what_they_draw_alone(impl):
    """Whatever the chunks and the devices; vmap over rbg keys would draw from the first alone."""
    key = jax.random.key(3, impl=impl)
    sample = closure(jnp.arange(50.0))
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(6)]
    expected = [sample(key).support.sum() for key in keys]
    sums = MAML._replace(
        adapt=lambda params, support: (params, None),
        loss=lambda params, episode: (params.sum() + episode.support.sum(), {}),
    )
    for chunk, mesh in ((3, None), (1, metajax.task_mesh(6))):
        options = {"tasks_per_chunk": chunk, "mesh": mesh}
        score = metajax.evaluator(sums, sample, episodes=6, curve=False, **options)
        found = score(jnp.zeros(3), key).values["loss"][:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        losses = train(sample, key=key, learner=sums, steps=1, meta_batch=6, **options)[1]
        np.testing.assert_allclose(losses[0], np.mean(expected), rtol=1e-6)


def noisy_adapt(params, support, *, observe=None, key):
    """Adds the task's own noise to what MAML learns from."""
    noise = jax.random.normal(key, support.shape)
    return MAML.adapt(params, support + noise, observe=observe)


KEYED = MAML._replace(adapt=noisy_adapt, keyed=True)


def sample(key):
    return metajax.Episode(*jax.random.normal(key, (2, 3)))


def test_a_keyed_learner_gets_a_key_for_each_task_whatever_the_chunks_and_devices():
    keys = episode_keys(KEY, 0, 4)
    task_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**32 - 1))(keys)
    episodes = jax.vmap(sample)(keys)._replace(key=task_keys)
    _, metrics = metajax.meta_gradient(KEYED)(jnp.zeros(3), episodes)
    _, without = metajax.meta_gradient(MAML)(jnp.zeros(3), episodes)
    assert abs(metrics["loss"] - without["loss"]) > 0.01
    outcomes = []
    for chunk, mesh in ((4, None), (1, metajax.task_mesh(4))):
        options = {"tasks_per_chunk": chunk, "mesh": mesh}
        params, losses = train(sample, learner=KEYED, **options)
        score = metajax.evaluator(KEYED, sample, episodes=4, **options)
        outcomes.append((params, losses, score(jnp.zeros(3), KEY).values["loss"]))
    for params, losses, scores in outcomes:
        np.testing.assert_allclose(losses[0], metrics["loss"], rtol=1e-5)
        np.testing.assert_allclose(scores[:, -1].mean(), metrics["loss"], rtol=1e-5)
        np.testing.assert_allclose(params, outcomes[0][0], rtol=1e-5)
    given = metajax.evaluate_episodes(KEYED, jnp.zeros(3), episodes)
    np.testing.assert_allclose(given.mean["loss"], metrics["loss"], rtol=1e-5)


def test_a_samplers_own_key_is_kept():
    fixed = lambda key: sample(key)._replace(key=jax.random.fold_in(key, 9))
    scores = metajax.evaluate(KEYED, jnp.zeros(3), fixed, KEY, episodes=3)
    episodes = jax.vmap(fixed)(episode_keys(KEY, 0, 3))
    expected = metajax.evaluate_episodes(KEYED, jnp.zeros(3), episodes)
    np.testing.assert_allclose(scores.values["loss"], expected.values["loss"], rtol=1e-5)


def test_a_tasks_key_is_none_that_its_sampler_can_get_by_splitting():
    key = episode_keys(KEY, 0, 1)[0]
    found = HoistedSampler(sample, None)
    task = jax.random.key_data(found.draw(found.arrays(key), key, keyed=True).key)
    split = jax.random.key_data(jax.random.split(key, 100))
    assert not (split == task).all(axis=1).any()


def test_without_a_keyed_learner_the_program_derives_no_key():
    def folds(learner):
        trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sample, meta_batch=4)
        state = trainer.init(jnp.zeros(3), KEY)
        return str(jax.make_jaxpr(trainer.step)(state)).count("random_fold_in")

    # The step and the task; of a keyed learner also the task's key and the query loss's.
    assert (folds(MAML), folds(KEYED)) == (2, 4)
