"""Inner optimizers that need the loss, and those whose update has no derivative."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import metajax
from metajax import _inner_update

MODES = [
    metajax.unrolled(),
    metajax.rematerialised(),
    metajax.mixed(),
    metajax.mixed(checkpoint_levels=1),
]
OPTIMIZERS = {
    "polyak": lambda: optax.polyak_sgd(max_learning_rate=0.3, f_min=0.1),
    "plateau": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=0, rtol=1.0)
    ),
    "lbfgs": lambda: optax.lbfgs(0.1, linesearch=None),
}


def loss_fn(params, batch):
    return jnp.sum(jnp.cosh(params * batch)) - 1.5


def by_hand(optimizer, params, batch, steps):
    value_fn = lambda params: loss_fn(params, batch)
    state = optimizer.init(params)
    for _ in range(steps):
        value, gradient = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=value_fn
        )
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_needs_the_loss(x64, name, mode):
    optimizer, params, batch = OPTIMIZERS[name](), jnp.array([0.4, -0.9]), jnp.array([1.0, 0.7])

    @jax.jit
    def outer(params, batch):
        adapted, info = metajax.adapt(
            loss_fn, params, batch, optimizer=optimizer, steps=3, mode=mode
        )
        return jnp.sum(adapted**3) + info.loss.sum(), adapted

    expected = by_hand(optimizer, params, batch, 3)
    np.testing.assert_allclose(outer(params, batch)[1], expected, rtol=1e-12)
    scalar = lambda *arguments: outer(*arguments)[0]
    check_grads(scalar, (params, batch), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_first_order_takes_the_loss_as_a_constant(x64):
    optimizer, params, batch = OPTIMIZERS["polyak"](), jnp.array([0.4, -0.9]), jnp.array([1.0, 0.7])

    def outer(params):
        adapted, _ = metajax.adapt(
            loss_fn, params, batch, optimizer=optimizer, steps=3, mode=metajax.first_order()
        )
        return jnp.sum(adapted**3), adapted

    gradient, adapted = jax.grad(outer, has_aux=True)(params)
    np.testing.assert_allclose(gradient, 3 * adapted**2, rtol=1e-12)


def test_a_line_search_serves_where_nothing_is_differentiated(x64):
    optimizer, params, batch = optax.lbfgs(), jnp.array([0.4, -0.9]), jnp.array([1.0, 0.7])
    learner = metajax.reptile(loss_fn, optimizer, steps=2)
    expected = by_hand(optimizer, params, batch, 2)
    gradient, _ = jax.jit(learner.gradient)(params, metajax.Episode(batch, None))
    np.testing.assert_allclose(params - gradient, expected, rtol=1e-9)


@pytest.mark.parametrize("mode", [metajax.mixed(), metajax.first_order()], ids=lambda m: m.name)
@pytest.mark.parametrize(
    "search", [optax.lbfgs(), optax.scale_by_backtracking_linesearch(5)], ids=["zoom", "backtrack"]
)
def test_a_line_search_is_refused_where_it_would_be_differentiated(search, mode):
    with pytest.raises(metajax.ArgumentError, match=r"optimizer: .*line search.*metajax\.reptile"):
        metajax.maml(loss_fn, search, steps=2, mode=mode)


def test_an_optimizer_made_for_one_structure_is_accepted():
    masked = optax.masked(optax.sgd(0.1), {"a": True, "b": False})
    loss = lambda params, batch: params["a"] * params["b"]
    learner = metajax.maml(loss, masked, steps=2)
    adapted, _ = learner.adapt({"a": jnp.array(1.0), "b": jnp.array(2.0)}, None)
    # optax.masked passes the gradient of "b" on as it is, 1 and then 0.8.
    np.testing.assert_allclose(adapted["b"], 2 + 1 + 0.8, rtol=1e-6)
    rates = jnp.array([0.1, 0.2, 0.3])
    shaped = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -rates * u, updates))
    metajax.maml(lambda p, b: jnp.sum(p**2), shaped, steps=1).adapt(jnp.ones(3), None)


def test_an_error_of_an_optimizer_is_not_swallowed():
    def broken(updates, params):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        metajax.maml(loss_fn, optax.stateless(broken), steps=1)


def test_a_dropped_optimizer_is_freed():
    """What is known of an optimizer doesn't keep it, nor the arrays that it closes over."""
    rates = jnp.ones(2)
    optimizer = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -rates * u, updates))
    seen = weakref.ref(optimizer.update)
    metajax.maml(lambda p, c: jnp.sum((p - c) ** 2), optimizer, steps=1)
    assert seen() is not None
    del optimizer
    gc.collect()
    assert seen() is None


CLIPPED = {
    "global norm": optax.clip_by_global_norm(1.0),
    "block RMS": optax.clip_by_block_rms(1.0),
    "adaptive": optax.adaptive_grad_clip(0.5),
    "adaptive, then global": optax.chain(
        optax.adaptive_grad_clip(0.5), optax.clip_by_global_norm(1.0)
    ),
}


FEW = [
    *(metajax.unrolled(), metajax.first_order()),
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:]),
]


@pytest.mark.parametrize("mode", FEW, ids=lambda mode: mode.name)
@pytest.mark.parametrize("clip", CLIPPED.values(), ids=CLIPPED)
def test_clipping_where_the_inner_gradient_and_the_parameters_are_zero(clip, mode):
    """θ = 0, loss Σ b (θ − 1)² with b = 0, rate 0.1: φ = 0.2 b, and d/db of Σ (φ − 1)² is −0.4."""
    optimizer = optax.chain(clip, optax.sgd(0.1))
    loss = lambda params, b: (
        jnp.sum(b * (params["w"] - 1) ** 2) + jnp.sum(b * (params["b"] - 1) ** 2)
    )

    def outer(params, b):
        adapted, _ = metajax.adapt(loss, params, b, optimizer=optimizer, steps=1, mode=mode)
        return jnp.sum((adapted["w"] - 1) ** 2) + jnp.sum((adapted["b"] - 1) ** 2), adapted

    zeros = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    gradients, adapted = jax.grad(outer, argnums=(0, 1), has_aux=True)(zeros, jnp.zeros(3))
    expected = 0.0 if mode.name == "first_order" else 3 * -0.4
    np.testing.assert_allclose(gradients[1], expected, atol=1e-6)
    for name in zeros:
        np.testing.assert_array_equal(adapted[name], 0)
        np.testing.assert_allclose(gradients[0][name], -2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_clipping_beside_zeros_against_finite_differences(x64, steps):
    """A bias of zero, a unit whose gradient is zero, and another that is clipped."""
    optimizer = optax.chain(
        optax.adaptive_grad_clip(0.1), optax.clip_by_global_norm(0.5), optax.sgd(0.3)
    )
    params = {"w": jnp.array([[0.5, 0.0], [-1.0, 0.0]]), "b": jnp.zeros(2)}
    inputs = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    loss = lambda params, scale: jnp.sum((scale * (inputs @ params["w"] + params["b"] - 3)) ** 2)

    def outer(scale):
        adapted, _ = metajax.adapt(loss, params, scale, optimizer=optimizer, steps=steps)
        return jnp.sum(jnp.sin(adapted["w"])) + jnp.sum(jnp.cos(adapted["b"]))

    check_grads(outer, (jnp.array([1.0, 0.0]),), 1, modes=["rev"], eps=1e-7, atol=1e-5, rtol=1e-5)


def test_an_update_divided_by_its_norm(x64):
    """u = g / (|g| + ε): its derivative at zero is 1 / ε."""
    optimizer = optax.chain(optax.normalize_by_update_norm(eps=1e-3), optax.sgd(0.1))
    loss = lambda params, b: jnp.sum(b * (params - 1) ** 2)

    def outer(b):
        adapted, _ = metajax.adapt(loss, jnp.zeros(2), b, optimizer=optimizer, steps=1)
        return jnp.sum((adapted - 1) ** 2)

    np.testing.assert_allclose(jax.grad(outer)(jnp.zeros(2)), -0.4 / 1e-3, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_clipping_before_a_learned_rate(rate):
    """The rate is traced, which the probe takes for 1."""
    loss = lambda params, b: jnp.sum(b * (params - 1) ** 2)

    @jax.jit
    def outer(b, rate):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))
        adapted, _ = metajax.adapt(loss, jnp.zeros(2), b, optimizer=optimizer, steps=1)
        return jnp.sum((adapted - 1) ** 2)

    by_b, by_rate = jax.grad(outer, argnums=(0, 1))(jnp.zeros(2), jnp.array(rate))
    np.testing.assert_allclose(by_b, -4 * rate, rtol=1e-6)
    np.testing.assert_allclose(by_rate, 0, atol=1e-6)


def test_the_value_of_a_clipped_update_is_exact():
    """Where the gradient is zero, nothing moves: not even by the sign of a tiny number."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sign_sgd(0.1))
    loss = lambda params, b: jnp.sum(b * params)
    adapted, _ = metajax.adapt(
        loss, jnp.ones(2), jnp.array([0.0, 2.0]), optimizer=optimizer, steps=1
    )
    np.testing.assert_array_equal(adapted, jnp.array([1.0, 0.9]))


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.adam(0.1, eps_root=1e-8), optax.add_decayed_weights(0.1)],
)
def test_an_update_with_a_derivative_at_zero_is_left_as_it_is(optimizer):
    for mode in (*MODES, metajax.first_order()):
        nudge = _inner_update.nudge_for(optimizer, {"w": jnp.zeros((2, 2))}, mode)
        assert nudge == _inner_update.Nudge()


@pytest.mark.parametrize("optimizer", [optax.lars(0.1), optax.lamb(0.1, eps_root=1e-8)])
def test_a_trust_ratio_is_refused(optimizer):
    """|θ| u / |u| has no derivative at u = 0: beside zero it is as large as one comes near."""
    with pytest.raises(metajax.ArgumentError, match=r"optimizer: .*first_order"):
        metajax.maml(loss_fn, optimizer, steps=2)


def half(optimizer):
    loss = lambda params, b: jnp.sum(b * (params - 1) ** 2)
    b = jnp.zeros(2, jnp.float16)

    def outer(b):
        adapted, _ = metajax.adapt(loss, jnp.zeros(2, b.dtype), b, optimizer=optimizer, steps=1)
        return jnp.sum((adapted - 1) ** 2)

    return jax.grad(outer)(b)


@pytest.mark.parametrize(
    "optimizer", [optax.adam(0.1, eps_root=1e-8), optax.clip_by_global_norm(1.0)], ids=["a", "c"]
)
def test_what_has_no_derivative_in_float16_is_refused(optimizer):
    with pytest.raises(metajax.ArgumentError, match=r"optimizer: .*float16.*eps_root=1e-4"):
        half(optimizer)


def test_adam_in_float16_with_a_larger_eps_root():
    assert bool(jnp.isfinite(half(optax.adam(0.1, eps=1e-4, eps_root=1e-4))).all())
