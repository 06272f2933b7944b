"""Conv-4: its published forms, and its meta-gradient against float64 finite differences."""

from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import losses
from metajax.models import Conv4, Norm, adapts_in_maml

MODES = [metajax.unrolled(), metajax.rematerialised(), metajax.mixed()]


IMAGES = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)


def abstract(module):
    """The outputs and variables of a module as shapes; nothing is compiled."""
    return jax.eval_shape(module.init_with_output, jax.random.key(0), IMAGES)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def test_the_strided_form_is_mamls():
    params = abstract(Conv4(5))[1]["params"]
    assert shapes(params["conv_0"]) == {"kernel": (3, 3, 1, 64), "bias": (64,)}
    assert shapes(params["conv_3"]) == {"kernel": (3, 3, 64, 64), "bias": (64,)}
    assert set(params["norm_0"]) == {"bias"}
    assert shapes(params["head"]) == {"kernel": (64, 5), "bias": (5,)}
    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert n_params == 640 + 3 * (9 * 64 * 64 + 64) + 4 * 64 + 64 * 5 + 5


def test_the_pooled_form_is_protonets():
    features, variables = abstract(Conv4(None, form="pool"))
    assert features.shape == (2, 64)
    assert set(variables["params"]["norm_0"]) == {"scale", "bias"}
    assert "head" not in variables["params"]


def test_relation_networks_form_keeps_its_maps():
    assert abstract(Conv4(None, form="maps"))[0].shape == (2, 7, 7, 64)


def with_random_biases_and_scales(variables):
    """Biases start at zero and scales at one, where what is wrong with them would not show."""
    keys = iter(jax.random.split(jax.random.key(3), len(jax.tree.leaves(variables))))
    return jax.tree.map_with_path(
        lambda path, leaf: (
            jax.random.normal(next(keys), leaf.shape) if path[-1].key in ("bias", "scale") else leaf
        ),
        variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("form", ["stride", "pool", "maps"])
def test_outputs_are_those_of_linens_layers(form, norm):
    class Reference(nn.Module):
        @nn.compact
        def __call__(self, x):
            strided = form == "stride"
            for block in range(4):
                x = nn.Conv(8, (3, 3), strides=2 if strided else 1, name=f"conv_{block}")(x)
                x = nn.BatchNorm(
                    use_running_average=False,
                    use_scale=not strided,
                    epsilon=1e-3 if strided else 1e-5,
                    momentum=0.9,
                    name=f"norm_{block}",
                )(x)
                x = nn.relu(x)
                if form == "pool" or (form == "maps" and block < 2):
                    x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = x.mean((1, 2)) if strided else x.reshape(len(x), -1)
            return nn.Dense(5, name="head")(x)

    module, images = (
        Conv4(5, features=8, form=form, norm=norm),
        jax.random.normal(jax.random.key(0), (4, 28, 28, 1)),
    )
    variables = module.init(jax.random.key(1), images)
    params = with_random_biases_and_scales(variables["params"])
    statistics = Reference().init(jax.random.key(1), images)["batch_stats"]
    expected, averages = Reference().apply(
        {"params": params, "batch_stats": statistics}, images, mutable=["batch_stats"]
    )
    outputs, changed = module.apply(
        {**variables, "params": params}, images, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    if norm == "running":
        close = lambda own, other: np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)
        jax.tree.map(close, changed, averages)


@pytest.mark.slow
@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_convolutions_bias_counts_unless_statistics_take_it_away(norm):
    module = Conv4(5, features=8, norm=norm)
    images = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    variables = module.init(jax.random.key(1), images)
    params = variables["params"]
    conv = {**params["conv_1"], "bias": params["conv_1"]["bias"] + 1}
    shifted = {**variables, "params": {**params, "conv_1": conv}}
    before, after = (module.apply(each, images, train=False) for each in (variables, shifted))
    assert bool(jnp.allclose(before, after)) == (norm in ("batch", "support"))


def episodes(n_tasks, shape=(28, 28, 1)):
    images = jax.random.uniform(jax.random.key(2), (n_tasks, 2, 5, *shape))
    targets = jnp.tile(jnp.arange(5), (n_tasks, 1))
    batch = lambda part: metajax.Batch(images[:, part], targets)
    return metajax.Episode(batch(0), batch(1))


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("form", "norm", "steps"), [("stride", "batch", 1), ("pool", "support", 2)]
)
def test_meta_gradient_against_finite_differences(x64, mode, form, norm, steps):
    module = Conv4(5, features=4, form=form, norm=norm)
    tasks = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, episodes(2)
    )
    params, apply = metajax.from_linen(module, jax.random.key(0), tasks.support.inputs[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    learner = metajax.maml(
        losses.cross_entropy(apply),
        optax.sgd(0.5),
        steps=steps,
        mode=mode,
        trainable=adapts_in_maml,
        outer_loss=losses.cross_entropy_given_support(apply) if norm == "support" else None,
    )
    gradient_fn = jax.jit(metajax.meta_gradient(learner))
    gradient, _ = gradient_fn(params, tasks)
    # So small a step keeps all units on their side of ReLU's kink, and float64 still resolves it.
    step = 1e-8
    for seed in range(3):
        keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
        direction = jax.tree.map(
            lambda leaf, keys=keys: jax.random.normal(next(keys), leaf.shape), params
        )
        up, down = (optax.tree.add_scale(params, size, direction) for size in (step, -step))
        rise = gradient_fn(up, tasks)[1]["loss"] - gradient_fn(down, tasks)[1]["loss"]
        actual = optax.tree.vdot(gradient, direction)
        np.testing.assert_allclose(actual, rise / (2 * step), rtol=1e-5)


@pytest.mark.slow
def test_first_order_is_the_query_gradient_at_the_adapted_parameters():
    module, tasks = Conv4(5, features=4), episodes(1)
    params, apply = metajax.from_linen(module, jax.random.key(0), tasks.support.inputs[0])
    loss_fn = losses.cross_entropy(apply)
    learner = metajax.maml(loss_fn, optax.sgd(0.5), steps=2, mode=metajax.first_order())
    gradient, _ = jax.jit(metajax.meta_gradient(learner))(params, tasks)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    slope_of = jax.jit(jax.grad(lambda p, batch: loss_fn(p, batch)[0]))
    adapted = params
    for _ in range(2):
        slope = slope_of(adapted, task.support)
        adapted = jax.tree.map(lambda p, g: p - 0.5 * g, adapted, slope)
    expected = slope_of(adapted, task.query)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, expected
    )


@pytest.mark.slow
def test_the_normalisations_shift_is_learned_but_not_adapted():
    module, tasks = Conv4(5, features=4), episodes(2)
    params, apply = metajax.from_linen(module, jax.random.key(0), tasks.support.inputs[0])
    learner = metajax.maml(
        losses.cross_entropy(apply), optax.sgd(0.5), steps=1, trainable=adapts_in_maml
    )
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    adapted, _ = jax.jit(learner.adapt)(params, task.support)
    np.testing.assert_array_equal(adapted["norm_1"]["bias"], params["norm_1"]["bias"])
    assert not np.array_equal(adapted["conv_1"]["kernel"], params["conv_1"]["kernel"])
    gradient, _ = jax.jit(metajax.meta_gradient(learner))(params, tasks)
    assert np.abs(gradient["norm_1"]["bias"]).max() > 0


def test_predictions_without_transduction_do_not_depend_on_the_other_queries():
    module, tasks = Conv4(5, features=4, norm="support"), episodes(1)
    params, apply = metajax.from_linen(module, jax.random.key(0), tasks.support.inputs[0])
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    loss_fn = jax.jit(losses.cross_entropy_given_support(apply))
    together = loss_fn(params, task)[0]
    alone = [
        loss_fn(
            params,
            metajax.Episode(
                task.support, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], task.query)
            ),
        )[0]
        for i in range(5)
    ]
    np.testing.assert_allclose(together, jnp.stack(alone).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Conv4(0), "n_classes must be at least 1, got 0"),
        (Conv4(5, form="dense"), "form must be one of 'stride', 'pool', 'maps', got 'dense'"),
        (Conv4(5, norm="layer"), "norm must be one of"),
    ],
)
def test_bad_input_is_named(module, message):
    with pytest.raises(ValueError, match=message):
        abstract(module)
