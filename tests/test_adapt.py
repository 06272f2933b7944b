"""Adaptation against closed forms, and its errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax

MODES = [metajax.unrolled(), metajax.rematerialised(), metajax.mixed(), metajax.first_order()]
mode_parameter = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def quadratic(params, batch):
    matrix, optimum = batch
    difference = params - optimum
    return 0.5 * difference @ matrix @ difference


def task(seed=0, size=4):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return jnp.asarray(root @ root.T / size), jnp.asarray(rng.normal(size=size))


@mode_parameter
def test_gradient_descent_on_a_quadratic(x64, mode):
    matrix, optimum = task()
    start, rate, steps = jnp.ones(4), 0.1, 3
    adapted, info = metajax.adapt(
        quadratic, start, (matrix, optimum), optimizer=optax.sgd(rate), steps=steps, mode=mode
    )
    shrink = np.eye(4) - rate * np.asarray(matrix)
    expected = [
        np.asarray(optimum) + np.linalg.matrix_power(shrink, k) @ np.asarray(start - optimum)
        for k in range(steps + 1)
    ]
    np.testing.assert_allclose(adapted, expected[-1], rtol=1e-12)
    losses = [quadratic(jnp.asarray(theta), (matrix, optimum)) for theta in expected[:-1]]
    np.testing.assert_allclose(info.loss, losses, rtol=1e-12)


def test_any_optax_optimizer_gives_what_optax_gives(x64):
    batch = task()
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1, eps_root=1e-8))
    params = jnp.ones(4)
    adapted, _ = metajax.adapt(quadratic, params, batch, optimizer=optimizer, steps=4)
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(jax.grad(quadratic)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(adapted, params, rtol=1e-12)


def test_observe_sees_the_parameters_before_and_after_every_step():
    adapted, info = metajax.adapt(
        lambda p, batch: ((p - batch) ** 2, {"distance": jnp.abs(p - batch)}),
        jnp.array(0.0),
        jnp.array(1.0),
        optimizer=optax.sgd(0.25),
        steps=3,
        observe=lambda p: {"value": p},
    )
    np.testing.assert_allclose(info.observed["value"], [0, 0.5, 0.75, 0.875])
    np.testing.assert_allclose(info.aux["distance"], [1, 0.5, 0.25])
    np.testing.assert_allclose(adapted, 0.875)


def test_select_chooses_the_batch_of_each_step():
    adapted, _ = metajax.adapt(
        lambda p, batch: (p - batch) ** 2,
        jnp.array(0.0),
        jnp.array([1.0, 3.0]),
        optimizer=optax.sgd(0.25),
        steps=2,
        select=lambda support, index: support[index],
    )
    np.testing.assert_allclose(adapted, 0.5 * (0.5 + 3.0))


@pytest.mark.parametrize(
    "trainable",
    [lambda path: path.startswith("head/"), {"body": False, "head": True}],
    ids=["predicate", "prefix"],
)
@mode_parameter
def test_only_trainable_leaves_adapt_but_all_get_an_outer_gradient(x64, mode, trainable):
    params = {"body": jnp.array(2.0), "head": {"kernel": jnp.array(1.0), "bias": jnp.array(0.5)}}

    def loss_fn(params, batch):
        return (params["head"]["kernel"] * params["body"] + params["head"]["bias"] - batch) ** 2

    def outer(params):
        adapted, _ = metajax.adapt(
            loss_fn, params, 3.0, optimizer=optax.sgd(0.03), steps=2, mode=mode, trainable=trainable
        )
        return loss_fn(adapted, 4.0), adapted

    gradient, adapted = jax.grad(outer, has_aux=True)(params)
    assert adapted["body"] == params["body"]
    assert adapted["head"]["kernel"] != params["head"]["kernel"]
    assert all(jnp.abs(leaf) > 0 for leaf in jax.tree.leaves(gradient))
    if mode.name != "first_order":
        step = 1e-6
        up, down = ({**params, "body": params["body"] + s} for s in (step, -step))
        difference = (outer(up)[0] - outer(down)[0]) / (2 * step)
        np.testing.assert_allclose(gradient["body"], difference, rtol=1e-7)


def test_integer_leaves_stay_as_they_are():
    params = {"weight": jnp.array(0.0), "count": jnp.array(3)}
    adapted, _ = metajax.adapt(
        lambda p, batch: (p["weight"] - batch) ** 2, params, 1.0, optimizer=optax.sgd(0.5), steps=1
    )
    assert adapted["count"] == 3
    assert adapted["weight"] == 1.0


def test_partition_and_combine_are_inverse():
    params = {"a": jnp.arange(3.0), "b": [jnp.ones(2), None]}
    halves = metajax.partition(params, lambda path: path == "a")
    assert jax.tree.structure(metajax.combine(*halves)) == jax.tree.structure(params)
    assert halves[0]["b"][0] is None
    assert halves[1]["a"] is None


def simple(params, batch):
    return jnp.sum((params - batch) ** 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": -2}, "steps must be at least 1, got -2"),
        ({"trainable": lambda path: False}, "trainable selects no leaf"),
        ({"trainable": {"a": True, "b": True}}, "trainable must be a predicate"),
        ({"trainable": "head"}, r"got 'head': a name selects .*lambda path: 'head' in path"),
        ({"trainable": ["head"]}, r"got \['head'\]: a name selects nothing"),
        ({"trainable": {"head", "body"}}, "a name selects nothing"),
        ({"trainable": re.compile("^he")}, r"a name selects .*re\.search\('\^he', path\)"),
        ({"trainable": lambda path: "head"}, "trainable must return True or False, got 'head'"),
        ({"trainable": lambda path: None}, "trainable must return True or False, got None"),
        ({"trainable": re.compile("he").search}, "must return True or False, got None"),
        ({"trainable": 1}, "trainable must hold bools only, got 1 for the leaf ''"),
        ({"trainable": jnp.array(True)}, r"trainable must hold bools only, got Array\(True"),
        ({"loss_fn": lambda p, b: p - b}, r"loss_fn must return a scalar, got shape \(2,\)"),
        ({"loss_fn": lambda p, b: jnp.sum(p > b)}, "floating-point scalar, got int32"),
        ({"optimizer": optax.adam(0.1)}, "eps_root"),
        ({"optimizer": optax.rmsprop(0.1, eps_in_sqrt=False)}, "no finite derivative"),
        ({"params": {"count": jnp.array(1)}}, "no floating-point leaf to adapt"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {
        "loss_fn": simple,
        "params": jnp.zeros(2),
        "support": jnp.ones(2),
        "optimizer": optax.sgd(0.1),
        "steps": 1,
    } | changes
    positional = [arguments.pop(name) for name in ("loss_fn", "params", "support")]
    with pytest.raises(ValueError, match=message):
        metajax.adapt(*positional, **arguments)


@pytest.mark.parametrize("true", [True, np.True_, np.array(True)[()]])
def test_bools_of_numpy_select_too(true):
    params = {"body": jnp.ones(2), "head": {"w": jnp.ones(2), "b": jnp.ones(2)}}
    selected = {"body": False, "head": {"w": True, "b": True}}
    for trainable in (
        {"body": not true, "head": true},
        {"body": False, "head": {"w": true, "b": true}},
        lambda path: true if path.startswith("head") else np.False_,
    ):
        found = metajax.trees.selected(params, trainable)
        assert found == selected
        assert all(type(flag) is bool for flag in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        ({"body": True, "haed": True}, ("'haed'", "'head/w'")),
        ({"head": True}, ("'head'", "'body'")),
        ({"body": False, "head": {"w": True}}, ("'w'", "'head/b'")),
        ({"body": False, "head": "all"}, ("got 'all'", "'head/b'")),
        ({"body": False, "head": {"w": True, "b": 1.0}}, ("got 1.0", "'head/b'")),
    ],
)
def test_a_tree_of_bools_must_fit_the_parameters(trainable, words):
    params = {"body": jnp.ones(2), "head": {"b": jnp.ones(2), "w": jnp.ones(2)}}
    with pytest.raises(metajax.ArgumentError) as caught:
        metajax.partition(params, trainable)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_is_not_a_parameter_stays_as_it_is():
    """Of a dict of Flax collections, as a whole or inside of something, ``"params"`` adapts."""
    variables = {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
    selected = {"params": {"w": True}, "batch_stats": {"mean": False}}
    assert metajax.trees.selected(variables, None) == selected
    nested = {"body": variables, "head": jnp.ones(2)}
    assert metajax.trees.selected(nested, None) == {"body": selected, "head": True}
    loss_fn = lambda p, batch: jnp.sum(p["params"]["w"] * p["batch_stats"]["mean"])
    arguments = {"optimizer": optax.sgd(0.1), "steps": 1}
    adapted, _ = metajax.adapt(loss_fn, variables, None, **arguments)
    np.testing.assert_array_equal(adapted["batch_stats"]["mean"], 1.0)
    np.testing.assert_allclose(adapted["params"]["w"], 0.9)
    asked = lambda path: path.startswith("batch_stats/")
    adapted, _ = metajax.adapt(loss_fn, variables, None, trainable=asked, **arguments)
    np.testing.assert_allclose(adapted["batch_stats"]["mean"], 0.9)
    # A dict that has other entries beside "params" isn't one of collections.
    assert metajax.trees.selected({"params": 1.0, "rate": 2.0}, None)["rate"]


def test_adam_is_accepted_where_nothing_differentiates_its_update():
    optimizer = optax.adam(0.1)
    arguments = {"optimizer": optimizer, "steps": 2, "mode": metajax.first_order()}
    adapted, _ = metajax.adapt(simple, jnp.zeros(2), jnp.ones(2), **arguments)
    np.testing.assert_allclose(adapted, 0.2, rtol=1e-2)


def test_the_optimizer_is_checked_under_jit_and_grad_too():
    def outer(params):
        return simple(
            metajax.adapt(simple, params, 1.0, optimizer=optax.adam(0.1), steps=1)[0], 1.0
        )

    with pytest.raises(ValueError, match="eps_root"):
        jax.jit(jax.grad(outer))(jnp.zeros(2))
