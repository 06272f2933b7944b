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


def relate(params, pairs):
    """How near the two halves are, as Relation Networks' comparing module would say."""
    first, second = jnp.split(pairs, 2, axis=-1)
    scale = jnp.exp(params["head"]["kernel"][0, 0])
    return jnp.exp(-scale * jnp.mean((first / 4 - second) ** 2, axis=-1))


def with_context(params, context, batch):
    inputs, targets = batch
    return jnp.mean((toy.predict(params, inputs) + context - targets) ** 2), {"bias": context}


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
    "maml_plus_plus_own_bodies": lambda: metajax.maml_plus_plus(
        toy.loss_fn, learning_rate=0.1, steps=2, per_step=lambda path: path == "body"
    ),
    "boil": lambda: metajax.boil(toy.loss_fn, SGD, steps=2),
    "cavia": lambda: metajax.cavia(with_context, SGD, context=jnp.zeros(()), steps=2),
    "imaml": lambda: metajax.imaml(toy.loss_fn, SGD, steps=8, proximal=1.0),
    "imaml_neumann": lambda: metajax.imaml(
        toy.loss_fn,
        optax.sgd(0.05),
        steps=8,
        proximal=10.0,
        solver="neumann",
        solver_steps=20,
    ),
    "meta_curvature": lambda: metajax.meta_curvature(toy.loss_fn, learning_rate=0.1, steps=2),
    "reptile": lambda: metajax.reptile(toy.loss_fn, SGD, steps=3, batch_size=4),
}
# These learn classes.
CLASSIFIERS = {
    "prototypical": lambda: metajax.prototypical(toy.embed, n_way=toy.WAYS),
    "prototypical_cosine": lambda: metajax.prototypical(
        toy.embed, n_way=toy.WAYS, distance="cosine", scale=5.0
    ),
    "matching": lambda: metajax.matching(toy.embed, n_way=toy.WAYS, scale=5.0),
    "relation": lambda: metajax.relation(toy.embed, relate, n_way=toy.WAYS),
    "r2d2": lambda: metajax.r2d2(toy.embed, n_way=toy.WAYS),
    "metaoptnet": lambda: metajax.metaoptnet(toy.embed, n_way=toy.WAYS),
    "proto_maml": lambda: metajax.proto_maml(toy.embed, SGD, n_way=toy.WAYS, steps=2),
}
every_learner = pytest.mark.parametrize("name", [*LEARNERS, *CLASSIFIERS])


def build(name):
    return (LEARNERS | CLASSIFIERS)[name]()


def sampler(name, dtype=jnp.float32):
    return (toy.make_class_sampler if name in CLASSIFIERS else toy.make_sampler)(dtype)


def tasks(name, n_tasks, dtype=jnp.float32):
    return jax.vmap(sampler(name, dtype))(jax.random.split(jax.random.key(1), n_tasks))


def row(episodes, index):
    return jax.tree.map(lambda leaf: leaf[index], episodes)


def compiled_gradient(learner, **options):
    return jax.jit(metajax.meta_gradient(learner, **options))


def assert_close(a, b, **tolerances):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerances), a, b)


@every_learner
def test_jit_and_vmap_change_nothing(name):
    learner, episodes = build(name), tasks(name, 3)
    params = learner.init(toy.init_params())
    adapt = lambda episode: learner.adapt(params, episode.support)[0]
    one = adapt(row(episodes, 0))
    assert_close(jax.jit(adapt)(row(episodes, 0)), one, rtol=1e-5, atol=1e-6)
    assert_close(row(jax.jit(jax.vmap(adapt))(episodes), 0), one, rtol=1e-5, atol=1e-6)


@every_learner
@pytest.mark.parametrize("tasks_per_chunk", [1, 3, 100])
def test_chunking_changes_nothing(name, tasks_per_chunk):
    learner, episodes = build(name), tasks(name, 7)
    params = learner.init(toy.init_params())
    whole = compiled_gradient(learner, tasks_per_chunk=7)(params, episodes)
    chunked = compiled_gradient(learner, tasks_per_chunk=tasks_per_chunk)(params, episodes)
    assert_close(chunked, whole, rtol=1e-4, atol=1e-6)


@every_learner
def test_meta_gradient_is_the_mean_of_the_tasks_gradients(name):
    learner, episodes = build(name), tasks(name, 4)
    params = learner.init(toy.init_params())
    whole, _ = compiled_gradient(learner, tasks_per_chunk=4)(params, episodes)
    single = compiled_gradient(learner, tasks_per_chunk=1)
    each = [single(params, row(episodes, slice(i, i + 1))) for i in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *(gradient for gradient, _ in each))
    assert_close(whole, mean, rtol=1e-4, atol=1e-6)


@every_learner
@pytest.mark.parametrize(("dtype", "tasks_per_chunk"), [(jnp.float32, 3), (jnp.bfloat16, 1)])
def test_types_are_kept(name, dtype, tasks_per_chunk):
    learner, episodes = build(name), tasks(name, 3, dtype)
    params = learner.init(toy.init_params(dtype))
    adapted, _ = jax.jit(learner.adapt)(params, row(episodes, 0).support)
    gradient, _ = compiled_gradient(learner, tasks_per_chunk=tasks_per_chunk)(params, episodes)
    jax.tree.map(
        lambda leaf, like: np.testing.assert_equal(leaf.dtype, like.dtype), gradient, params
    )
    for leaf in jax.tree.leaves((adapted, gradient)):
        # A context is of the type that it was given in, here float32; targets are integers.
        assert leaf.dtype == dtype or name == "cavia" or jnp.issubdtype(leaf.dtype, jnp.integer)
        assert bool(jnp.isfinite(leaf).all())


@pytest.mark.slow
@every_learner
def test_training_improves_and_compiles_once(name):
    learner = build(name)
    trainer = metajax.meta_trainer(learner, optax.adam(3e-2), sampler(name), meta_batch=8)
    state = trainer.init(toy.init_params(), jax.random.key(0))
    scored = functools.partial(
        metajax.evaluate, learner, sample=sampler(name), key=jax.random.key(5), episodes=64
    )
    before = scored(state.params).mean["loss"]
    state, _ = trainer.run(state, 100)
    with no_compilation():
        state, metrics = trainer.run(state, 100)
    assert metrics["loss"].shape == (100,)
    assert scored(state.params).mean["loss"] < 0.6 * before


@every_learner
def test_observation_ends_with_the_adapted_parameters(name):
    learner, episode = build(name), row(tasks(name, 1), 0)
    params = learner.init(toy.init_params())
    loss = lambda adapted: learner.loss(adapted, episode)[0]
    adapted, info = learner.adapt(params, episode.support, observe=loss)
    assert info.observed.shape == (len(info.loss) + 1,)
    np.testing.assert_allclose(info.observed[-1], loss(adapted), rtol=1e-6)
    if jax.tree.structure(adapted) == jax.tree.structure(params):
        np.testing.assert_allclose(info.observed[0], loss(params), rtol=1e-6)


# One of each kind is put to all checks of a user's own; of the others, tests here say the rest.
IN_FULL = {"maml", "reptile", "prototypical"}
ELSEWHERE = {
    *("finite", "gradient", "jit", "vmap", "chunks", "float32", "bfloat16"),
    *("retrace", "determinism", "improvement", "finite differences"),
}


@pytest.mark.slow
@every_learner
def test_it_passes_the_checks_for_a_users_own(name):
    report = metajax.check_learner(
        build(name),
        toy.init_params(),
        sampler(name),
        n_way=toy.WAYS if name in CLASSIFIERS else None,
        skip=() if name in IN_FULL else ELSEWHERE,
        rtol=1e-4,
    )
    assert report.passed, str(report)
    unmade = {check.name for check in report.checks if check.passed is None}
    expected = set() if name in CLASSIFIERS else {"labels"}
    if name not in IN_FULL:
        expected |= ELSEWHERE
    elif name == "reptile":
        expected |= {"finite differences"}  # its gradient is no derivative
    elif name == "prototypical":
        expected |= {"improvement"}  # it takes no inner steps
    assert unmade == expected, str(report)


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
