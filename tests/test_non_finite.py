"""What an outer step does with a NaN or an infinity, on one device and shared between two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import no_compilation

import metajax

BAD = 3
"""The step, counted from 0, that is bad."""

meshes = pytest.mark.parametrize("mesh", [None, metajax.task_mesh(4)], ids=["one", "shared"])


KINDS = {
    "loss": lambda loss, gradient: (loss + jnp.inf, gradient),
    "gradient": lambda loss, gradient: (loss, gradient | {"b": jnp.nan * gradient["b"]}),
    "both": lambda loss, gradient: (loss * jnp.nan, jax.tree.map(lambda g: g * jnp.inf, gradient)),
    # The gradient is finite, and its square, in Adam's state, isn't.
    "overflow": lambda loss, gradient: (loss, gradient | {"b": 1e30 + gradient["b"]}),
}


def quadratic(params, target):
    return jnp.sum((params["w"] - target) ** 2) + params["b"] ** 2


def bad_at(bad_step, kind):
    """Reptile's update of a quadratic, but that of one meta-step is bad: quick to compile."""

    def learner(step):
        reptile = metajax.reptile(quadratic, optax.sgd(0.1), steps=1)

        def gradient(params, episode):
            update, metrics = reptile.gradient(params, episode)
            worse = KINDS[kind](metrics["loss"], update)
            right = (metrics["loss"], update)
            loss, update = jax.tree.map(
                lambda b, r: jnp.where(step == bad_step, b, r), worse, right
            )
            return update, {"loss": loss}

        return reptile._replace(gradient=gradient)

    return learner


def sample(key):
    return metajax.Episode(jax.random.normal(key, (3,)), None)


def make_trainer(non_finite, *, bad_step=BAD, kind="both", mesh=None, learner=None, **options):
    return metajax.meta_trainer(
        learner or bad_at(bad_step, kind),
        options.pop("optimizer", optax.adam(1e-2)),
        sample,
        meta_batch=4,
        mesh=mesh,
        non_finite=non_finite,
        **options,
    )


def start(trainer):
    return trainer.init({"w": jnp.ones(3), "b": jnp.ones(())}, jax.random.key(3))


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), *jax.device_get((a, b))
    )


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


@functools.cache
def without_the_bad_step(mesh=None):
    """Parameters and optimizer state of a training that never took it."""
    clean = make_trainer(None, bad_step=-1, mesh=mesh)
    state, _ = clean.run(start(clean), BAD)
    before = jax.device_get(state[:2])
    state = state._replace(step=state.step + 1)
    return before, jax.device_get(clean.run(state, 2)[0][:2])


def test_by_default_nothing_is_checked_and_a_nan_stays():
    """What the policies are for: Adam's moments never forget it."""
    trainer = make_trainer(None)
    state, metrics = trainer.run(start(trainer), BAD + 3)
    assert "non_finite" not in metrics
    assert not all_finite(state.params)
    assert not all_finite(state.optimizer_state)
    assert np.isnan(metrics["loss"][BAD:]).all()


def test_the_default_compiles_to_the_program_without_a_check():
    def program(**options):
        trainer = metajax.meta_trainer(
            bad_at(BAD, "loss"), optax.adam(1e-2), sample, meta_batch=4, **options
        )
        return str(jax.make_jaxpr(trainer.step)(start(trainer)))

    assert program() == program(non_finite=None)
    assert "is_finite" not in program()
    assert "is_finite" in program(non_finite="skip")


def check_skip(mesh, kind):
    trainer = make_trainer("skip", kind=kind, mesh=mesh)
    state, metrics = trainer.run(start(trainer), BAD + 3)
    assert int(state.step) == BAD + 3
    assert metrics["non_finite"].tolist() == [0, 0, 0, 0 if kind == "overflow" else 4, 0, 0]
    assert metrics["undone"].tolist() == [0, 0, 0, 1, 0, 0]
    assert_close(state[:2], without_the_bad_step(mesh)[1])
    assert all_finite(state[:2])
    assert np.isfinite(np.delete(metrics["loss"], BAD)).all()
    assert all_finite(metrics["loss"][BAD]) == (kind == "overflow")


@meshes
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_leaves_parameters_and_moments_as_they_were(mesh, kind):
    check_skip(mesh, kind)


@meshes
def test_a_policy_changes_no_step_that_is_finite(mesh):
    plain, *guarded = (make_trainer(p, bad_step=-1, mesh=mesh) for p in (None, "skip", "clip"))
    expected, metrics = plain.run(start(plain), 5)
    for trainer in guarded:
        state, reported = trainer.run(start(trainer), 5)
        assert not np.asarray(reported.pop("non_finite")).any()
        assert not np.asarray(reported.pop("undone")).any()
        assert_close(state[:2], expected[:2])
        assert_close(reported, metrics)


def given_gradient(gradient, loss=1.0):
    learner = metajax.reptile(quadratic, optax.sgd(0.1), steps=1)
    report = {"loss": jnp.asarray(loss)}
    return learner._replace(gradient=lambda params, episode: (gradient, report))


@meshes
def test_clip_replaces_what_is_not_finite_and_nothing_else(mesh):
    gradient = {"w": jnp.array([1.0, jnp.nan, -2.0, jnp.inf, -jnp.inf]), "v": jnp.array([jnp.inf])}
    trainer = make_trainer(
        "clip", learner=given_gradient(gradient), optimizer=optax.sgd(1.0), mesh=mesh
    )
    state = trainer.init({"w": jnp.zeros(5), "v": jnp.zeros(1)}, jax.random.key(0))
    state, metrics = trainer.step(state)
    assert state.params["w"].tolist() == [-1.0, 0.0, 2.0, -2.0, 2.0]
    assert state.params["v"].tolist() == [0.0]
    assert int(metrics["non_finite"]) == 4
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(1 + 3 * 4))


def test_clip_applies_a_finite_gradient_whatever_the_loss():
    learner = given_gradient({"w": jnp.array([1.0])}, loss=np.nan)
    trainer = make_trainer("clip", learner=learner, optimizer=optax.sgd(1.0))
    state, metrics = trainer.step(trainer.init({"w": jnp.zeros(1)}, jax.random.key(0)))
    assert state.params["w"].tolist() == [-1.0]
    assert int(metrics["non_finite"]) == 1


@meshes
def test_clip_applies_no_update_that_overflows(mesh):
    trainer = make_trainer("clip", kind="overflow", mesh=mesh)
    state, metrics = trainer.run(start(trainer), BAD + 3)
    assert_close(state[:2], without_the_bad_step(mesh)[1])
    assert (np.asarray(metrics["non_finite"]) > 0).tolist() == [False] * 3 + [True] + [False] * 2


@meshes
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("loss", r"not finite: the loss \(elements: 1\)\. "),
        ("gradient", r"not finite: the gradient of 'b' \(elements: 1\)\. "),
        ("both", r"the loss \(.*of 'b' \(elements: 1\), the gradient of 'w' \(elements: 3\)\. "),
        ("overflow", r"not finite: the optimizer's state '0/nu/b' after the update .*: 1\)\. "),
    ],
)
def test_raise_names_the_step_and_keeps_the_state_before_it(mesh, kind, words):
    check_raise(mesh, kind, words)


def check_raise(mesh, kind, words):
    trainer = make_trainer("raise", kind=kind, mesh=mesh)
    with pytest.raises(metajax.NonFiniteError, match=rf"^step {BAD + 1}: .*{words}") as error:
        trainer.run(start(trainer), BAD + 3)
    state = error.value.state
    assert error.value.step == BAD + 1
    assert int(state.step) == BAD
    assert_close(state[:2], without_the_bad_step(mesh)[0])
    with pytest.raises(metajax.NonFiniteError, match=f"step {BAD + 1}:"):
        trainer.step(state)


@meshes
def test_after_a_raise_another_policy_goes_on_from_the_state(mesh):
    trainer, skipping = (make_trainer(policy, mesh=mesh) for policy in ("raise", "skip"))
    with pytest.raises(metajax.NonFiniteError) as error:
        trainer.run(start(trainer), BAD + 3)
    state, metrics = skipping.run(error.value.state, 3)
    assert metrics["undone"].tolist() == [1, 0, 0]
    assert_close(state[:2], without_the_bad_step(mesh)[1])


@meshes
def test_raise_compiles_once_where_all_is_well(mesh):
    trainer = make_trainer("raise", bad_step=-1, mesh=mesh)
    state, metrics = trainer.run(start(trainer), 3)
    assert metrics["non_finite"].tolist() == [0, 0, 0]
    with no_compilation():
        state, _ = trainer.run(state, 3)
    assert int(state.step) == 6


def test_what_was_infinite_before_is_no_reason_to_skip():
    """An optimizer's best loss so far starts there; noise has a key among its state."""
    optimizer = optax.chain(
        optax.add_noise(0.01, 0.55, jax.random.key(0)),
        optax.sgd(1e-2),
    )
    init = lambda params: (optimizer.init(params), jnp.array([jnp.inf, jnp.nan]))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state[0], params)
        return updates, (inner, state[1])

    trainer = make_trainer("skip", optimizer=optax.GradientTransformation(init, update))
    _, metrics = trainer.run(start(trainer), BAD + 2)
    assert metrics["undone"].tolist() == [0, 0, 0, 1, 0]


def test_what_carry_brings_is_checked_too():
    def carry(params, metrics):
        return {**params, "b": metrics.pop("seen") * jnp.nan}, metrics

    gradient = {"w": jnp.ones(3), "b": jnp.zeros(())}
    learner = given_gradient(gradient)
    report = {"loss": jnp.ones(()), "seen": jnp.ones(())}
    learner = learner._replace(gradient=lambda params, episode: (gradient, report))
    trainer = make_trainer("skip", learner=learner, carry=carry)
    state, metrics = trainer.step(start(trainer))
    assert int(metrics["undone"]) == 1
    assert all_finite(state.params)


def far(params, target):
    """A loss that has no value for a task further out than the others."""
    return jnp.where(jnp.abs(target).max() > 2, jnp.nan, 1.0) * quadratic(params, target)


def one_bad_task(policy, mesh, **options):
    """A trainer, its state, and for each of six steps which of its four tasks are bad."""
    learner = metajax.maml(far, optax.sgd(0.1), steps=1)
    of_both = lambda key: metajax.Episode(*2 * (jax.random.normal(key, (3,)),))
    trainer = metajax.meta_trainer(
        learner, optax.sgd(0.05), of_both, meta_batch=4, mesh=mesh, non_finite=policy, **options
    )
    state = start(trainer)
    targets = np.array(
        [
            [trainer.episode_at(state.key, step, index).query for index in range(4)]
            for step in range(1, 7)
        ]
    )
    bad = np.abs(targets).max(axis=-1) > 2
    assert bad.any()
    assert not bad.all(axis=1).any()
    return trainer, state, targets, bad


@meshes
@pytest.mark.parametrize("tasks_per_chunk", [1, 2, 3, 4])
def test_a_bad_task_is_left_out_and_the_others_are_learned_from(mesh, tasks_per_chunk):
    if mesh is not None and tasks_per_chunk > 2:
        return
    trainer, state, targets, bad = one_bad_task("skip", mesh, tasks_per_chunk=tasks_per_chunk)
    params = jax.device_get(state.params)
    state, metrics = trainer.run(state, 6)
    assert metrics["non_finite"].tolist() == bad.sum(axis=1).tolist()
    assert not np.asarray(metrics["undone"]).any()
    for step in range(6):  # MAML's meta-gradient on this quadratic, by hand
        w, b = (0.8 * params["w"] + 0.2 * targets[step], 0.8 * params["b"])
        gradient = {"w": (1.6 * (w - targets[step]))[~bad[step]].mean(axis=0), "b": 1.6 * b}
        losses = ((w - targets[step]) ** 2).sum(axis=1) + b**2
        np.testing.assert_allclose(metrics["loss"][step], losses[~bad[step]].mean(), rtol=1e-5)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    assert_close(state.params, params)


@meshes
def test_the_error_names_the_tasks_and_they_can_be_drawn_again(mesh):
    trainer, state, targets, bad = one_bad_task("raise", mesh)
    first = int(np.argmax(bad.any(axis=1)))
    with pytest.raises(metajax.NonFiniteError, match="Of its tasks, numbered from 0") as caught:
        trainer.run(state, 6)
    error = caught.value
    assert (error.step, error.tasks) == (first + 1, tuple(np.flatnonzero(bad[first]).tolist()))
    again = trainer.episode_at(error.state.key, error.step, error.tasks[0])
    np.testing.assert_array_equal(again.query, targets[first, error.tasks[0]])
    assert np.abs(again.query).max() > 2
    for step, index in ((0, 0), (1, 4), (1, -1)):
        with pytest.raises(metajax.ArgumentError, match=r"step must be|index must be from 0 to 3"):
            trainer.episode_at(error.state.key, step, index)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="non_finite must be one of 'raise', 'skip', 'clip'"):
        make_trainer("ignore")
