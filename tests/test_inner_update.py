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
