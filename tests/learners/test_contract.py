"""The contract that every learner passes; a new one is a line in LEARNERS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from compilations import no_compilation

import metajax

SGD = optax.sgd(0.1)
LEARNERS = {
    "maml": lambda: metajax.maml(toy.loss_fn, SGD, steps=2),
    "maml_rematerialised": lambda: metajax.maml(
        toy.loss_fn, SGD, steps=2, mode=metajax.rematerialised()
    ),
    "maml_mixed": lambda: metajax.maml(toy.loss_fn, SGD, steps=2, mode=metajax.mixed()),
    "maml_adam": lambda: metajax.maml(toy.loss_fn, optax.adam(0.1, eps_root=1e-8), steps=2),
    "fomaml": lambda: metajax.maml(toy.loss_fn, SGD, steps=2, mode=metajax.first_order()),
    "anil": lambda: metajax.anil(toy.loss_fn, SGD, steps=2),
    "meta_sgd": lambda: metajax.meta_sgd(toy.loss_fn, learning_rate=0.1, steps=2),
    "maml_plus_plus": lambda: metajax.maml_plus_plus(toy.loss_fn, learning_rate=0.1, steps=2),
    "maml_plus_plus_any_steps": lambda: metajax.maml_plus_plus(
        toy.loss_fn, learning_rate=0.1, steps=2, rates_per_step=False
    ),
    "reptile": lambda: metajax.reptile(toy.loss_fn, SGD, steps=3, batch_size=4),
}
every_learner = pytest.mark.parametrize("build", LEARNERS.values(), ids=LEARNERS.keys())


def tasks(n_tasks, dtype=jnp.float32):
    return jax.vmap(toy.make_sampler(dtype))(jax.random.split(jax.random.key(1), n_tasks))


def row(episodes, index):
    return jax.tree.map(lambda leaf: leaf[index], episodes)


def compiled_gradient(learner, **options):
    return jax.jit(metajax.meta_gradient(learner, **options))


def assert_close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


@every_learner
def test_jit_and_vmap_change_nothing(build):
    learner, episodes = build(), tasks(3)
    params = learner.init(toy.init_params())
    adapt = lambda episode: learner.adapt(params, episode.support)[0]
    one = adapt(row(episodes, 0))
    assert_close(jax.jit(adapt)(row(episodes, 0)), one, rtol=1e-5, atol=1e-6)
    assert_close(row(jax.jit(jax.vmap(adapt))(episodes), 0), one, rtol=1e-5, atol=1e-6)


@every_learner
@pytest.mark.parametrize("tasks_per_chunk", [1, 3, 100])
def test_chunking_changes_nothing(build, tasks_per_chunk):
    learner, episodes = build(), tasks(7)
    params = learner.init(toy.init_params())
    whole = compiled_gradient(learner, tasks_per_chunk=7)(params, episodes)
    chunked = compiled_gradient(learner, tasks_per_chunk=tasks_per_chunk)(params, episodes)
    assert_close(chunked, whole, rtol=1e-4, atol=1e-6)


@every_learner
def test_meta_gradient_is_the_mean_of_the_tasks_gradients(build):
    learner, episodes = build(), tasks(4)
    params = learner.init(toy.init_params())
    whole, _ = compiled_gradient(learner, tasks_per_chunk=4)(params, episodes)
    single = compiled_gradient(learner, tasks_per_chunk=1)
    each = [single(params, row(episodes, slice(i, i + 1))) for i in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *(gradient for gradient, _ in each))
    assert_close(whole, mean, rtol=1e-4, atol=1e-6)


@every_learner
@pytest.mark.parametrize(("dtype", "tasks_per_chunk"), [(jnp.float32, 3), (jnp.bfloat16, 1)])
def test_types_are_kept(build, dtype, tasks_per_chunk):
    learner, episodes = build(), tasks(3, dtype)
    params = learner.init(toy.init_params(dtype))
    adapted, _ = jax.jit(learner.adapt)(params, row(episodes, 0).support)
    gradient, _ = compiled_gradient(learner, tasks_per_chunk=tasks_per_chunk)(params, episodes)
    for tree in (adapted, gradient):
        jax.tree.map(
            lambda leaf, like: np.testing.assert_equal(leaf.dtype, like.dtype), tree, params
        )
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@every_learner
def test_training_improves_and_compiles_once(build):
    learner = build()
    trainer = metajax.meta_trainer(learner, optax.adam(3e-2), toy.make_sampler(), meta_batch=8)
    state = trainer.init(toy.init_params(), jax.random.key(0))
    scored = functools.partial(
        metajax.evaluate, learner, sample=toy.make_sampler(), key=jax.random.key(5), episodes=64
    )
    before = scored(state.params).mean["loss"]
    state, _ = trainer.run(state, 100)
    with no_compilation():
        state, metrics = trainer.run(state, 100)
    assert metrics["loss"].shape == (100,)
    assert scored(state.params).mean["loss"] < 0.6 * before


@every_learner
def test_observation_ends_with_the_adapted_parameters(build):
    learner, episode = build(), row(tasks(1), 0)
    params = learner.init(toy.init_params())
    loss = lambda adapted: learner.loss(adapted, episode)[0]
    adapted, info = learner.adapt(params, episode.support, observe=loss)
    assert info.observed.shape == (len(info.loss) + 1,)
    np.testing.assert_allclose(info.observed[-1], loss(adapted), rtol=1e-6)
    np.testing.assert_allclose(info.observed[0], loss(params), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: metajax.maml(toy.loss_fn, SGD, steps=0), "steps must be at least 1, got 0"),
        (lambda: metajax.anil(toy.loss_fn, SGD, steps=-1), "steps must be at least 1, got -1"),
        (
            lambda: metajax.meta_sgd(toy.loss_fn, learning_rate=-0.1, steps=1),
            "learning_rate must be a positive finite number, got -0.1",
        ),
        (
            lambda: metajax.maml_plus_plus(toy.loss_fn, learning_rate=0.0, steps=1),
            "learning_rate must be a positive finite number, got 0.0",
        ),
        (
            lambda: metajax.meta_sgd(toy.loss_fn, learning_rate=0.1, steps="2"),
            "steps must be a positive integer, got '2'",
        ),
        (
            lambda: metajax.reptile(toy.loss_fn, SGD, steps=1, batch_size=0),
            "batch_size must be at least 1, got 0",
        ),
        (lambda: metajax.maml(toy.loss_fn, optax.adam(0.1), steps=1), "eps_root"),
    ],
)
def test_statics_fail_at_build(build, message):
    with pytest.raises(ValueError, match=message):
        build()
