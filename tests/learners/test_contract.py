"""The contract that every learner passes; a new one is a line in LEARNERS.

Its numbers are checked by ``metajax.check_learner``, as a user's own are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from compilations import no_compilation

import metajax
from metajax.check import _contract
from metajax.learners import adapt_to, query_key
from metajax.losses import mean_squared_error

SGD = optax.sgd(0.1)


def relate(params, pairs):
    """How near the two halves are, as Relation Networks' comparing module would say."""
    first, second = jnp.split(pairs, 2, axis=-1)
    scale = jnp.exp(params["head"]["kernel"][0, 0])
    return jnp.exp(-scale * jnp.mean((first / 4 - second) ** 2, axis=-1))


def cavia(network, **options):
    """The context is added to the network's output."""

    def predict(params, context, inputs, *key):
        return network(params, inputs, *key) + context

    def loss_fn(params, context, batch, *key):
        return jnp.mean((predict(params, context, batch.inputs, *key) - batch.targets) ** 2)

    if metajax.is_keyed(network):
        predict, loss_fn = metajax.keyed(predict), metajax.keyed(loss_fn)
    return metajax.cavia(loss_fn, SGD, context=np.zeros(()), steps=2, predict=predict, **options)


def of_loss(factory, *args, **fixed):
    """A learner of the squared error of a network."""
    return lambda network, **options: factory(
        mean_squared_error(network), *args, **{"steps": 2, **fixed, **options}
    )


LEARNERS = {
    "maml": of_loss(metajax.maml, SGD),
    "maml_rematerialised": of_loss(metajax.maml, SGD, mode=metajax.rematerialised()),
    "maml_unrolled": of_loss(metajax.maml, SGD, mode=metajax.unrolled()),
    "maml_adam": of_loss(metajax.maml, optax.adam(0.1, eps_root=1e-8)),
    "fomaml": of_loss(metajax.maml, SGD, mode=metajax.first_order()),
    "anil": of_loss(metajax.anil, SGD),
    "boil": of_loss(metajax.boil, SGD),
    "meta_sgd": of_loss(metajax.meta_sgd, learning_rate=0.1),
    "maml_plus_plus": of_loss(metajax.maml_plus_plus, learning_rate=0.1),
    "maml_plus_plus_any_steps": of_loss(
        metajax.maml_plus_plus, learning_rate=0.1, rates_per_step=False
    ),
    "maml_plus_plus_bodies": of_loss(
        metajax.maml_plus_plus, learning_rate=0.1, per_step=lambda path: path == "body"
    ),
    "meta_curvature": of_loss(metajax.meta_curvature, learning_rate=0.1),
    "cavia": cavia,
    "imaml": of_loss(metajax.imaml, SGD, steps=8, proximal=1.0),
    "imaml_neumann": of_loss(
        metajax.imaml, optax.sgd(0.05), steps=8, proximal=10.0, solver="neumann", solver_steps=20
    ),
    "reptile": of_loss(metajax.reptile, SGD, steps=3),
}
"""Of a network ``predict(params, inputs)``, and the options that all of these take."""

CLASSIFIERS = {
    "prototypical": lambda embed: metajax.prototypical(embed, n_way=toy.WAYS),
    "prototypical_cosine": lambda embed: metajax.prototypical(
        embed, n_way=toy.WAYS, distance="cosine", scale=5.0
    ),
    "matching": lambda embed: metajax.matching(embed, n_way=toy.WAYS, scale=5.0),
    "relation": lambda embed: metajax.relation(embed, relate, n_way=toy.WAYS),
    "r2d2": lambda embed: metajax.r2d2(embed, n_way=toy.WAYS),
    "linear_probe": lambda embed: metajax.linear_probe(embed, n_way=toy.WAYS, penalty=0.1, steps=5),
    "metaoptnet": lambda embed: metajax.metaoptnet(embed, n_way=toy.WAYS),
    "proto_maml": lambda embed: metajax.proto_maml(embed, SGD, n_way=toy.WAYS, steps=2),
}
"""Of a network ``embed(params, inputs)``."""

ALL = [*LEARNERS, *CLASSIFIERS]
INEXACT = {"fomaml", "reptile", "imaml", "imaml_neumann", "metaoptnet"}
"""Their gradient isn't the derivative of the loss, or only where a solver has converged. Other
tests have closed forms for it."""

VARIANTS = {name for name in ALL if "_" in name} - {
    *("meta_sgd", "maml_plus_plus", "meta_curvature", "proto_maml", "linear_probe")
}
"""Of learners that are in the matrix already: with ``make test-all`` alone."""
each = [pytest.param(n, marks=pytest.mark.slow if n in VARIANTS else []) for n in ALL]

GROUPS = {
    "differences": {"predict", "finite differences"},
    "chunks": {"finite", "gradient", "float32", "chunks", "retrace"},
    "batching": {"jit", "vmap", "bfloat16", "determinism", "tasks", "examples", "classes"},
    "data": {
        *("labels", "data", "support", "support targets", "query", "query targets"),
        *("adapted", "improvement"),
    },
}
"""The checks of ``check_learner`` beside the essential ones, in parts of a few seconds."""


def build(name, *, keyed=False, **options):
    if name in LEARNERS:
        network = toy.predict_with_dropout if keyed else toy.predict
        return LEARNERS[name](network, **options)
    return CLASSIFIERS[name](toy.embed_with_dropout if keyed else toy.embed)


def sampler(name):
    return toy.make_class_sampler() if name in CLASSIFIERS else toy.make_sampler()


def checked(name, learner, checks):
    """The report on some checks; the others are left out, and none of these doesn't apply."""
    params = toy.init_params()
    if name == "boil":  # through a head of zeros the body has no gradient
        params["head"]["kernel"] += 0.5
    report = metajax.check_learner(
        learner,
        params,
        sampler(name),
        n_way=toy.WAYS if name in CLASSIFIERS else None,
        skip=set(_contract.CHECKS) - checks - _contract.ESSENTIAL,
        rtol=1e-4,
    )
    assert report.passed, str(report)
    return {check.name for check in report.checks if check.passed}


@pytest.mark.parametrize("name", each)
@pytest.mark.parametrize(
    "group",
    [
        *("differences", "chunks"),
        pytest.param("batching", marks=pytest.mark.slow),
        pytest.param("data", marks=pytest.mark.slow),
    ],
)
def test_it_passes_the_checks_for_a_users_own(name, group):
    expected = GROUPS[group] | _contract.ESSENTIAL
    if name in INEXACT:
        expected -= {"finite differences"}
    if name in LEARNERS:
        expected -= {"labels", "classes"}
    elif name != "proto_maml":
        expected -= {"improvement"}  # no inner steps
    assert checked(name, build(name), expected) == expected


def test_the_groups_are_all_checks():
    padded = {"padding"}  # these episodes have none; tests/test_masks.py
    assert set().union(*GROUPS.values(), padded) | _contract.ESSENTIAL == set(_contract.CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("imaml")])
def test_a_keyed_network_makes_a_keyed_learner(name):
    learner = build(name, keyed=True)
    assert learner.keyed
    checks = {"predict"} if name in INEXACT else {"predict", "finite differences"}
    assert checks <= checked(name, learner, checks)
    episode = sampler(name)(jax.random.key(0))
    with pytest.raises(metajax.ArgumentError, match=r"episode\.key is None"):
        adapt_to(learner, learner.init(toy.init_params()), episode)


@pytest.mark.parametrize("name", [name for name in LEARNERS if not name.startswith("imaml")])
def test_the_loss_scores_what_is_predicted(name):
    learner = build(name, keyed=True)
    episode = toy.make_sampler()(jax.random.key(0))._replace(key=jax.random.key(1))

    @jax.jit
    def outcome(params, episode):
        adapted, _ = adapt_to(learner, params, episode)
        outputs = learner.predict(adapted, None, episode.query.inputs, key=query_key(episode))
        return jnp.mean((outputs - episode.query.targets) ** 2), learner.loss(adapted, episode)[0]

    expected, loss = outcome(learner.init(toy.init_params()), episode)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_select_makes_the_batch_of_each_step(name):
    """The first half of the support set, selected or given."""
    half = lambda support: jax.tree.map(lambda leaf: leaf[: len(leaf) // 2], support)
    support = toy.make_sampler()(jax.random.key(0)).support
    whole, selecting = build(name), build(name, select=lambda support, index: half(support))
    params = whole.init(toy.init_params())
    expected, _ = jax.jit(whole.adapt)(params, half(support))
    found, _ = jax.jit(selecting.adapt)(params, support)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("name", ALL)
def test_observation_ends_with_the_adapted_parameters(name):
    learner, episode = build(name), sampler(name)(jax.random.key(0))
    params = learner.init(toy.init_params())

    @jax.jit
    def outcome(params, episode):
        loss = lambda adapted: learner.loss(adapted, episode)[0]
        adapted, info = learner.adapt(params, episode.support, observe=loss)
        return info, adapted, loss(adapted)

    info, adapted, last = outcome(params, episode)
    assert info.observed.shape == (len(info.loss) + 1,)
    np.testing.assert_allclose(info.observed[-1], last, rtol=1e-6)
    if jax.tree.structure(adapted) == jax.tree.structure(params) and "bodies" not in name:
        first = jax.jit(learner.loss)(params, episode)[0]
        np.testing.assert_allclose(info.observed[0], first, rtol=1e-6)


@pytest.mark.parametrize("name", ["maml", "reptile", "prototypical"])
def test_the_meta_gradient_is_the_mean_of_the_tasks_gradients(name):
    learner = build(name)
    episodes = jax.vmap(sampler(name))(jax.random.split(jax.random.key(1), 4))
    params = learner.init(toy.init_params())
    whole, _ = jax.jit(metajax.meta_gradient(learner, tasks_per_chunk=4))(params, episodes)
    single = jax.jit(metajax.learners.task_gradient(learner))
    each = [single(params, jax.tree.map(lambda leaf, i=i: leaf[i], episodes)) for i in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *(gradient for gradient, _ in each))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, mean)


EXPORTED = {"maml", "imaml", "prototypical", "matching", "relation", "r2d2"}


@pytest.mark.parametrize(
    "name", [n if n in EXPORTED else pytest.param(n, marks=pytest.mark.slow) for n in ALL]
)
def test_an_exported_program_predicts_the_same_for_any_number_of_inputs(name):
    learner, params = build(name), toy.init_params()
    params = learner.init(params)
    support, query, _ = sampler(name)(jax.random.key(0))
    program = metajax.export(learner, params, support, query.inputs, platforms=["cpu"])
    adapted, _ = jax.jit(learner.adapt)(params, support)
    expected = jax.jit(learner.predict)(adapted, support, query.inputs)
    for number in (len(query.inputs), 2):
        found = program.call(tuple(support), query.inputs[:number])
        np.testing.assert_allclose(found, expected[:number], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: metajax.maml(toy.loss_fn, SGD, steps=0), "steps must be at least 1, got 0"),
        (lambda: metajax.maml(toy.loss_fn, optax.adam(0.1), steps=1), "eps_root"),
        (lambda: metajax.maml(toy.loss_fn, optax.lbfgs(), steps=1), "can't be differentiated"),
        (
            lambda: metajax.meta_sgd(toy.loss_fn, learning_rate=-0.1, steps=1),
            "learning_rate must be a positive finite number, got -0.1",
        ),
        (
            lambda: metajax.imaml(metajax.keyed(toy.loss_fn), SGD, steps=1, proximal=1.0),
            "loss_fn must not be keyed",
        ),
        (
            lambda: metajax.reptile(toy.loss_fn, SGD, steps=1, batch_size=2, select=max),
            "batch_size and select",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_build(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()


def test_a_loss_of_ones_own_predicts_by_the_network_that_is_passed():
    params, inputs = toy.init_params(), jnp.ones((2, toy.FEATURES))
    silent = metajax.maml(toy.loss_fn, SGD, steps=1)
    with pytest.raises(metajax.ArgumentError, match="pass predict="):
        silent.predict(params, None, inputs)
    learner = metajax.maml(toy.loss_fn, SGD, steps=1, predict=toy.predict)
    np.testing.assert_array_equal(
        learner.predict(params, None, inputs), toy.predict(params, inputs)
    )
    keyed = metajax.maml(mean_squared_error(toy.predict_with_dropout), SGD, steps=1)
    with pytest.raises(metajax.ArgumentError, match="pass key= to predict"):
        keyed.predict(params, None, inputs)
