"""The trainer: what it draws, moves, compiles and keeps."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import toy
from compilations import no_compilation
from flax import serialization

import metajax
from metajax.learners import multi_step_loss, warm_start
from metajax.models import Conv4


def make_trainer(sample=None, **options):
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1)
    sample = toy.make_sampler() if sample is None else sample
    return metajax.meta_trainer(learner, optax.adam(1e-2), sample, **({"meta_batch": 4} | options))


def start(trainer):
    return trainer.init(toy.init_params(), jax.random.key(3))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_run_equals_its_steps():
    trainer = make_trainer()
    state, metrics = trainer.run(start(trainer), 5)
    stepped, losses = start(trainer), []
    for _ in range(5):
        stepped, one = trainer.step(stepped)
        losses.append(one["loss"])
    np.testing.assert_allclose(metrics["loss"], jnp.stack(losses), rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.params,
        stepped.params,
    )
    assert int(state.step) == 5


def test_two_halves_equal_the_whole_bit_for_bit():
    trainer = make_trainer()
    whole = trainer.run(trainer.run(start(trainer), 10)[0], 10)[0]
    half = trainer.run(start(trainer), 10)[0]
    # Out to the host and back, as through a checkpoint.
    kept = jax.device_get(half._replace(key=jax.random.key_data(half.key)))
    again = jax.tree.map(jnp.asarray, kept)
    again = again._replace(key=jax.random.wrap_key_data(again.key))
    resumed = trainer.run(again, 10)[0]
    assert_equal(whole.params, resumed.params)
    assert_equal(whole.optimizer_state, resumed.optimizer_state)


def test_one_step_is_the_meta_gradient_of_the_keyed_episodes():
    trainer, sample = make_trainer(), toy.make_sampler()
    state = start(trainer)
    params = toy.init_params()
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), i) for i in range(4)]
    episodes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(sample, keys))
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1)
    gradient, expected = metajax.meta_gradient(learner)(params, episodes)
    optimizer = optax.adam(1e-2)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    state, metrics = trainer.step(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        state.params,
        optax.apply_updates(params, updates),
    )
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-4)


def test_nothing_moves_between_host_and_device():
    trainer = make_trainer()
    state, _ = trainer.run(start(trainer), 3)
    with jax.transfer_guard("disallow"):
        state, metrics = trainer.run(state, 3)
    assert np.isfinite(jax.device_get(metrics["loss"])).all()


def test_parameters_of_a_weak_type_compile_once_too():
    loss_fn = lambda params, centre: (params - centre) ** 2
    trainer = metajax.meta_trainer(
        metajax.reptile(loss_fn, optax.sgd(0.1), steps=1),
        optax.adam(1e-2),
        lambda key: metajax.Episode(jax.random.normal(key), None),
        meta_batch=2,
    )
    assert jnp.array(0.1).weak_type
    state, _ = trainer.run(trainer.init(jnp.array(0.1), jax.random.key(0)), 2)
    with no_compilation():
        trainer.run(state, 2)


def test_training_leaves_the_callers_parameters_alone():
    params, trainer = toy.init_params(), make_trainer()
    key = jax.random.key(0)
    trainer.step(trainer.init(params, key))
    assert_equal(params, toy.init_params())
    assert not key.is_deleted()


def test_raw_keys_are_accepted():
    trainer = make_trainer()
    old = trainer.init(toy.init_params(), jax.random.PRNGKey(3))
    assert_equal(trainer.run(old, 2)[0].params, trainer.run(start(trainer), 2)[0].params)


def test_carry_takes_what_has_no_gradient_along():
    def carry(params, metrics):
        return {**params, "seen": metrics.pop("bias")}, metrics

    def loss_fn(params, batch):
        loss, metrics = toy.loss_fn(params, batch)
        return loss + 0.0 * params["seen"], metrics

    learner = metajax.maml(
        loss_fn, optax.sgd(0.1), steps=1, trainable=lambda path: not path.startswith("seen")
    )
    trainer = metajax.meta_trainer(
        learner, optax.sgd(0.1), toy.make_sampler(), meta_batch=4, carry=carry
    )
    plain = make_trainer()
    state, metrics = trainer.step(
        trainer.init({**toy.init_params(), "seen": jnp.zeros(())}, jax.random.key(3))
    )
    _, expected = plain.step(start(plain))
    assert "bias" not in metrics
    np.testing.assert_allclose(state.params["seen"], expected["bias"], rtol=1e-5)


def test_a_leaf_without_a_derivative_is_left_alone_and_refused_by_name():
    episodes = jax.vmap(toy.make_sampler())(jax.random.split(jax.random.key(0), 2))
    learner = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=1)
    params = {**toy.init_params(), "count": jnp.array(3)}
    gradient, _ = metajax.meta_gradient(learner)(params, episodes)
    assert gradient.pop("count") is None
    expected, _ = metajax.meta_gradient(learner)(toy.init_params(), episodes)
    jax.tree.map(np.testing.assert_array_equal, gradient, expected)
    by_name = metajax.meta_gradient(learner, trainable=lambda path: path == "count")
    with pytest.raises(metajax.ArgumentError, match="trainable selects 'count', which is int32"):
        by_name(params, episodes)


def norm(params, target):
    """A loss whose gradient and value Polyak's step sizes need."""
    return jnp.sum((params - target) ** 2)


def quadratic_trainer(optimizer, *, noise=1.0, **options):
    learner = metajax.maml(norm, optax.sgd(0.1), steps=1)
    sample = lambda key: metajax.Episode(*(noise * jax.random.normal(key, (2, 3))))
    trainer = metajax.meta_trainer(learner, optimizer, sample, meta_batch=4, **options)
    return trainer, trainer.init(jnp.ones(3), jax.random.key(0)), sample


@pytest.mark.parametrize("mesh", [None, metajax.task_mesh(4)], ids=["one", "shared"])
def test_an_optimizer_that_needs_the_loss_gets_it(mesh):
    """Polyak's step by hand: the loss over the squared norm of its gradient."""
    optimizer = optax.chain(optax.polyak_sgd(max_learning_rate=10.0), optax.scale(0.5))
    trainer, state, sample = quadratic_trainer(optimizer, mesh=mesh)
    state, metrics = trainer.step(state)
    key = jax.random.fold_in(jax.random.key(0), 0)
    episodes = [sample(jax.random.fold_in(key, i)) for i in range(4)]

    def loss(params):
        adapted = [params - 0.2 * (params - episode.support) for episode in episodes]
        pairs = zip(adapted, episodes, strict=True)
        return sum(norm(params, episode.query) for params, episode in pairs) / 4

    value, gradient = jax.value_and_grad(loss)(jnp.ones(3))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    expected = 1 - 0.5 * value / jnp.sum(gradient**2) * gradient
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)


def test_a_plateau_of_the_loss_lowers_the_rate():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=3)
    trainer, state, _ = quadratic_trainer(optax.chain(optax.set_to_zero(), plateau), noise=0.0)
    state, metrics = trainer.run(state, 10)
    assert len(set(metrics["loss"].tolist())) == 1
    # Nine steps without a better loss than the first step's.
    assert float(state.optimizer_state[1].scale) == 0.5**3


def test_an_optimizer_that_needs_more_than_the_loss_is_refused_by_name():
    trainer, state, _ = quadratic_trainer(optax.lbfgs())
    with pytest.raises(metajax.ArgumentError, match=r"needs .*value_fn.*linesearch=None"):
        trainer.step(state)
    trainer, state, _ = quadratic_trainer(optax.lbfgs(0.1, linesearch=None), noise=0.0)
    _, metrics = trainer.run(state, 20)
    assert metrics["loss"][-1] < 0.1 * metrics["loss"][0]


def test_an_optimizer_may_keep_an_array_twice():
    """Which a program can't consume twice."""
    trainer, state, _ = quadratic_trainer(optax.contrib.schedule_free_sgd(0.1), noise=0.0)
    _, metrics = trainer.run(state, 20)
    assert metrics["loss"][-1] < 0.1 * metrics["loss"][0]


def test_the_outer_step_is_one_module_for_gpus_and_tpus():
    """Which needs neither."""
    images = jnp.zeros((4, 8, 8, 1))
    params, apply = metajax.from_linen(Conv4(2, features=2), jax.random.key(0), images)

    def sample(key):
        inputs = jax.random.normal(key, (2, *images.shape))
        return metajax.Episode(*(metajax.Batch(x, jnp.arange(4) % 2) for x in inputs))

    learner = metajax.maml(metajax.losses.cross_entropy(apply), optax.sgd(0.4), steps=1)
    trainer = metajax.meta_trainer(learner, optax.sgd(1e-3), sample, meta_batch=2)
    state = trainer.init(params, jax.random.key(1))
    exported = jax.export.export(jax.jit(trainer.step), platforms=("cuda", "tpu"))(state)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.mlir_module().count("func.func public @main") == 1


def test_what_is_no_parameter_is_neither_learned_nor_decayed():
    """Running statistics, a counter and a key in Flax collections, beside a parameter."""
    variables = {
        "params": {"w": jnp.array(2.0)},
        "batch_stats": {"mean": jnp.array(3.0)},
        "counters": {"calls": jnp.array(4)},
        "rngs": {"noise": jax.random.key(5)},
    }

    def loss_fn(variables, batch):
        return (variables["params"]["w"] * variables["batch_stats"]["mean"] - batch) ** 2

    maml = metajax.maml(loss_fn, optax.sgd(0.01), steps=2)
    every_step = multi_step_loss(maml, weights=jnp.ones(2))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.5))
    for learner, policy in (
        (maml, None),
        (maml, "raise"),
        (every_step, None),
        (warm_start(maml, every_step, steps=1), None),
    ):
        trainer = metajax.meta_trainer(
            learner,
            optimizer,
            lambda key: metajax.Episode(jnp.array(1.0), jnp.array(1.0)),
            meta_batch=2,
            non_finite=policy,
        )
        state, _ = trainer.run(trainer.init(variables, jax.random.key(0)), 3)
        found = state.params
        assert abs(float(found["params"]["w"]) - 2.0) > 0.1
        assert float(found["batch_stats"]["mean"]) == 3.0
        assert int(found["counters"]["calls"]) == 4
        assert jax.random.key_data(found["rngs"]["noise"]).tolist() == [0, 5]
        assert not any(leaf.dtype.kind not in "iuf" for leaf in jax.tree.leaves(state[1]))

    def by_name(path):
        return path == "batch_stats/mean"

    trainer = metajax.meta_trainer(
        metajax.maml(loss_fn, optax.sgd(0.01), steps=1, trainable=by_name),
        optax.sgd(0.1),
        lambda key: metajax.Episode(jnp.array(1.0), jnp.array(1.0)),
        meta_batch=1,
        trainable=by_name,
    )
    state, _ = trainer.step(trainer.init(variables, jax.random.key(0)))
    # With w = 2, x = 3, α = 0.01: x' = x − 4α(6 − 1); the derivative is 4(2x' − 1)(1 − 8α).
    adapted = 3 - 0.04 * 5
    slope = 4 * (2 * adapted - 1) * (1 - 0.08)
    np.testing.assert_allclose(state.params["batch_stats"]["mean"], 3 - 0.1 * slope, rtol=1e-6)
    assert float(state.params["params"]["w"]) == 2.0


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_flax_writes_and_reads_the_state_and_training_goes_on(implementation):
    trainer = make_trainer()
    begin = lambda: trainer.init(toy.init_params(), jax.random.key(3, impl=implementation))
    whole = trainer.run(begin(), 6)[0]
    half = trainer.run(begin(), 3)[0]
    stored = serialization.to_bytes(half)
    like = trainer.init(toy.init_params(), jax.random.key(0, impl=implementation))
    again = serialization.from_bytes(like, stored)
    assert again.key == half.key
    assert jax.random.key_impl(again.key) == jax.random.key_impl(half.key)
    assert_equal(*((s.params, s.optimizer_state, s.step) for s in (again, half)))
    resumed = trainer.run(again, 3)[0]
    assert_equal(*((s.params, s.optimizer_state, s.step) for s in (whole, resumed)))


def test_flax_reads_a_state_whose_key_was_stored_as_words():
    trainer = make_trainer()
    state = start(trainer)
    stored = serialization.to_bytes(state._replace(key=jax.random.key_data(state.key)))
    assert serialization.from_bytes(state, stored).key == state.key
    dictionary = serialization.to_state_dict(state)
    assert_equal(dictionary["key"], jax.random.key_data(state.key))
    assert serialization.from_state_dict(state, dictionary).key == state.key


def test_keys_among_the_meta_parameters_are_stored_too():
    params = {"params": {"w": jnp.ones(2)}, "rng": {"key": jax.random.split(jax.random.key(1), 3)}}
    learner = metajax.maml(
        lambda p, c: jnp.sum((p["params"]["w"] - c) ** 2), optax.sgd(0.1), steps=1
    )
    sample = lambda key: metajax.Episode(1.0, jax.random.normal(key))
    trainer = metajax.meta_trainer(learner, optax.adam(0.1), sample, meta_batch=2)
    state = trainer.init(params, jax.random.key(0))
    again = serialization.from_bytes(state, serialization.to_bytes(state))
    assert (again.params["rng"]["key"] == params["rng"]["key"]).all()
