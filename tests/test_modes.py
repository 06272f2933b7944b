"""Gradient modes: each against closed forms, finite differences and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import metajax

EXACT = [metajax.unrolled(), metajax.rematerialised(), metajax.mixed()]
CHECKPOINTED = [
    metajax.mixed(checkpoint_levels=1),
    metajax.mixed(checkpoint_levels=1, keep_gradients=True),
    metajax.mixed(checkpoint_levels=2),
]
exact_parameter = pytest.mark.parametrize("mode", EXACT, ids=lambda mode: mode.name)


def quadratic(params, batch):
    matrix, optimum = batch
    difference = params - optimum
    return 0.5 * difference @ matrix @ difference


def quadratic_task(seed, size=5):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, size, size))
    matrices = np.einsum("kij,klj->kil", roots, roots) / size
    optima = rng.normal(size=(2, size))
    support, query = (
        (jnp.asarray(m), jnp.asarray(c)) for m, c in zip(matrices, optima, strict=True)
    )
    return metajax.Episode(support, query)


def meta_gradient_of(learner, params, episode):
    batched = jax.tree.map(lambda leaf: leaf[None], episode)
    return metajax.meta_gradient(learner)(params, batched)[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_quadratic_closed_forms(x64, steps):
    """With S = (I − αA)^K: MAML S A_q(θ_K − c_q), FOMAML A_q(θ_K − c_q), Reptile (I − S)(θ − c)."""
    rate, episode, start = 0.1, quadratic_task(0), jnp.ones(5)
    (matrix, optimum), (query_matrix, query_optimum) = jax.tree.map(np.asarray, episode[:2])
    shrink = np.linalg.matrix_power(np.eye(5) - rate * matrix, steps)
    final = optimum + shrink @ (np.ones(5) - optimum)
    first_order = query_matrix @ (final - query_optimum)

    for mode in EXACT:
        learner = metajax.maml(quadratic, optax.sgd(rate), steps=steps, mode=mode)
        gradient = meta_gradient_of(learner, start, episode)
        np.testing.assert_allclose(gradient, shrink @ first_order, rtol=1e-11, err_msg=mode.name)

    learner = metajax.maml(quadratic, optax.sgd(rate), steps=steps, mode=metajax.first_order())
    np.testing.assert_allclose(meta_gradient_of(learner, start, episode), first_order, rtol=1e-11)

    learner = metajax.reptile(quadratic, optax.sgd(rate), steps=steps)
    expected = (np.eye(5) - shrink) @ (np.ones(5) - optimum)
    np.testing.assert_allclose(meta_gradient_of(learner, start, episode), expected, rtol=1e-11)


def network_loss(params, batch):
    inputs, targets, weight = batch
    hidden = jnp.tanh(inputs @ params["w1"] + params["shift"])
    outputs = hidden @ params["w2"]
    loss = jnp.mean(weight * (outputs[:, 0] - jnp.sin(targets)) ** 2)
    return loss, {"spread": jnp.std(outputs), "rows": jnp.array(inputs.shape[0])}


def network_task():
    rng = np.random.default_rng(1)
    params = {
        "w1": jnp.asarray(rng.normal(size=(3, 6))),
        "shift": jnp.asarray(rng.normal(size=6)),
        "w2": jnp.asarray(rng.normal(size=(6, 1))),
    }
    batch = tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((4, 3), (4,), (4,)))
    return params, (batch[0], jnp.arange(4), batch[2] ** 2)


@exact_parameter
@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.adam(0.05, eps_root=1e-6)],
    ids=["momentum", "adam"],
)
def test_every_differentiable_input_against_finite_differences(x64, mode, optimizer):
    """Adapted and frozen parameters, support data, a closed-over weight, and the info's outputs."""
    params, batch = network_task()

    def outer(params, inputs, decay):
        def loss_fn(params, batch):  # closes over decay, which is differentiated
            loss, aux = network_loss(params, batch)
            return loss + decay * jnp.sum(params["w1"] ** 2), aux

        adapted, info = metajax.adapt(
            loss_fn,
            params,
            (inputs, *batch[1:]),
            optimizer=optimizer,
            steps=3,
            mode=mode,
            trainable=lambda path: path != "shift",
        )
        final, _ = network_loss(adapted, batch)
        return final + 0.3 * info.loss.sum() + 0.2 * (info.aux["spread"] ** 2).sum()

    check_grads(outer, (params, batch[0], 0.1), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_exact_modes_agree_under_jit_and_vmap(x64):
    params, batch = network_task()
    scales = jnp.array([0.5, 1.0, 2.0])

    def gradients(mode):
        def outer(params, scale):
            support = (batch[0] * scale, *batch[1:])
            adapted, _ = metajax.adapt(
                network_loss, params, support, optimizer=optax.sgd(0.1), steps=5, mode=mode
            )
            return network_loss(adapted, batch)[0]

        return jax.jit(jax.vmap(jax.grad(outer), in_axes=(None, 0)))(params, scales)

    reference, *others = map(gradients, EXACT)
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), reference, other)


@pytest.mark.parametrize("mode", CHECKPOINTED, ids=lambda mode: mode.name)
@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_checkpoints_change_nothing(x64, mode, steps):
    """Steps that the segments divide and steps that leave a remainder; info in its order."""
    params, batch = network_task()

    def gradients(mode):
        def outer(params):
            adapted, info = metajax.adapt(
                network_loss,
                params,
                batch,
                optimizer=optax.adam(0.05, eps_root=1e-6),
                steps=steps,
                mode=mode,
                select=lambda batch, index: (batch[0] * (1 + index), *batch[1:]),
                observe=lambda params: params["shift"],
            )
            return network_loss(adapted, batch)[0] + info.loss @ jnp.arange(steps), info

        return jax.jit(jax.grad(outer, has_aux=True))(params)

    reference, found = gradients(metajax.unrolled()), gradients(mode)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), reference, found)


def temporary_memory(mode, optimizer, *, examples, steps):
    """Bytes of a meta-gradient of the network of ``network_task``, with 200 hidden units."""
    params, _ = network_task()
    wide = lambda leaf, axis: jnp.repeat(leaf.astype(jnp.float32), 200, axis=axis)
    params = {
        "w1": wide(params["w1"], 1),
        "shift": wide(params["shift"], 0),
        "w2": wide(params["w2"], 0),
    }
    batch = (jnp.ones((examples, 3)), jnp.arange(examples), jnp.ones(examples))

    def outer(params):
        adapted, _ = metajax.adapt(
            network_loss, params, batch, optimizer=optimizer, steps=steps, mode=mode
        )
        return network_loss(adapted, batch)[0]

    analysis = jax.jit(jax.grad(outer)).lower(params).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_mixed_mode_keeps_less_than_unrolling():
    memory = lambda mode: temporary_memory(mode, optax.sgd(0.1), examples=64, steps=32)
    unrolled, rematerialised, mixed = map(memory, EXACT)
    assert mixed < 0.3 * unrolled
    assert rematerialised < 0.3 * unrolled


def test_checkpoints_keep_less():
    """With one example, what is kept is the parameters and Adam's state."""
    memory = lambda mode: temporary_memory(
        mode, optax.adam(0.1, eps_root=1e-6), examples=1, steps=64
    )
    one_level, gradients_kept, two_levels = map(memory, CHECKPOINTED)
    assert two_levels < one_level < gradients_kept < 0.5 * memory(metajax.mixed())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint_levels": -1}, "checkpoint_levels must be at least 0, got -1"),
        ({"keep_gradients": True}, "keep_gradients=True needs checkpoints"),
    ],
)
def test_checkpoints_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        metajax.mixed(**arguments)


def test_compiled_program_does_not_grow_with_the_steps():
    params, batch = network_task()

    def program(steps, mode):
        def outer(params):
            adapted, _ = metajax.adapt(
                network_loss, params, batch, optimizer=optax.sgd(0.1), steps=steps, mode=mode
            )
            return network_loss(adapted, batch)[0]

        return len(jax.jit(jax.grad(outer)).lower(params).as_text())

    for mode in EXACT:
        assert program(32, mode) < 1.1 * program(2, mode)


@exact_parameter
def test_random_keys_may_ride_in_the_support_set(mode):
    def noisy(params, batch):
        key, target = batch
        return jnp.sum((params - target + 0.1 * jax.random.normal(key)) ** 2)

    def outer(params, support):
        adapted, _ = metajax.adapt(
            noisy, params, support, optimizer=optax.sgd(0.1), steps=2, mode=mode
        )
        return jnp.sum(adapted**2)

    keys = jax.random.split(jax.random.key(0), 3)
    gradient = jax.vmap(jax.grad(outer), in_axes=(None, 0))(jnp.ones(2), (keys, jnp.ones(3)))
    assert gradient.shape == (3, 2)
    np.testing.assert_allclose(gradient[0], gradient[0][0])


@exact_parameter
def test_a_loss_may_have_a_custom_vjp(mode):
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * x * bar,))

    def outer(params):
        arguments = {"optimizer": optax.sgd(0.25), "steps": 1, "mode": mode}
        return metajax.adapt(lambda p, _: square(p), params, None, **arguments)[0]

    np.testing.assert_allclose(jax.grad(outer)(1.0), 0.5)


def test_adaptation_inside_the_loss_of_an_adaptation(x64):
    """One inner loop differentiates another; mixed mode is for the outer one only."""

    def outer(params, outer_mode, inner_mode):
        arguments = {"optimizer": optax.sgd(0.1), "steps": 2}

        def loss_fn(params, batch):
            inner_loss = lambda p, b: jnp.sum(jnp.cos(p * b))
            inner, _ = metajax.adapt(inner_loss, params, batch, mode=inner_mode, **arguments)
            return jnp.sum(inner**2)

        adapted, _ = metajax.adapt(loss_fn, params, 0.7, mode=outer_mode, **arguments)
        return jnp.sum(adapted**3)

    start = jnp.array([0.5, -1.0])
    unrolled, rematerialised, mixed = EXACT
    reference = jax.grad(outer)(start, unrolled, unrolled)
    for modes in ((unrolled, rematerialised), (mixed, unrolled)):
        np.testing.assert_allclose(jax.grad(outer)(start, *modes), reference, rtol=1e-10)


def test_truncation_differentiates_the_last_steps_alone(x64):
    """With S = (I − αA): the gradient through the last two of five steps is S² A_q(θ_5 − c_q)."""
    rate, episode, start = 0.1, quadratic_task(0), jnp.ones(5)
    (matrix, optimum), (query_matrix, query_optimum) = jax.tree.map(np.asarray, episode[:2])
    shrink = np.eye(5) - rate * matrix
    final = optimum + np.linalg.matrix_power(shrink, 5) @ (np.ones(5) - optimum)
    outer = query_matrix @ (final - query_optimum)
    for inner in EXACT:
        for last in (2, 5, 9):
            mode = metajax.truncated(last, mode=inner)
            learner = metajax.maml(quadratic, optax.sgd(rate), steps=5, mode=mode)
            expected = np.linalg.matrix_power(shrink, min(last, 5)) @ outer
            np.testing.assert_allclose(
                meta_gradient_of(learner, start, episode), expected, rtol=1e-11, err_msg=mode.name
            )
    adapted, info = learner.adapt(start, episode.support, observe=lambda params: params)
    np.testing.assert_allclose(adapted, final, rtol=1e-12)
    assert info.observed.shape == (6, 5)


def test_truncation_needs_a_step():
    with pytest.raises(ValueError, match="last must be at least 1, got 0"):
        metajax.truncated(0)
