"""Labels that are no class: refused where they are known, NaN where they are traced."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import lm, losses
from metajax.learners import task_gradient

N_WAY = 5
LEARNERS = {
    "maml": lambda: metajax.maml(losses.cross_entropy(linear), optax.sgd(0.1), steps=2),
    "mixed": lambda: metajax.maml(
        losses.cross_entropy(linear), optax.sgd(0.1), steps=4, mode=metajax.mixed()
    ),
    "reptile": lambda: metajax.reptile(losses.cross_entropy(linear), optax.sgd(0.1), steps=2),
    "prototypical": lambda: metajax.prototypical(linear, n_way=N_WAY),
    "matching": lambda: metajax.matching(linear, n_way=N_WAY),
    "r2d2": lambda: metajax.r2d2(linear, n_way=N_WAY),
    "metaoptnet": lambda: metajax.metaoptnet(linear, n_way=N_WAY),
    "proto-maml": lambda: metajax.proto_maml(linear, optax.sgd(0.1), n_way=N_WAY, steps=1),
}
SLOW = ("mixed", "matching", "metaoptnet")
every_learner = pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, build in LEARNERS.items()
    ],
)
PARAMS = jax.random.normal(jax.random.key(0), (4, N_WAY))


def linear(params, inputs):
    return inputs @ params


def episodes(first=0, tasks=3):
    """Labels from ``first`` on."""
    inputs = jax.random.normal(jax.random.key(1), (2, tasks, 2 * N_WAY, 4))
    targets = jnp.tile(jnp.arange(N_WAY) + first, (tasks, 2))
    return metajax.Episode(*(metajax.Batch(each, targets) for each in inputs))


def with_label(label, part):
    """Episodes of which one, the last, has one label that is no class."""
    right = episodes()
    batch = getattr(right, part)
    wrong = batch._replace(targets=batch.targets.at[-1, 3].set(label))
    return right._replace(**{part: wrong})


@every_learner
@pytest.mark.parametrize("label", [-1, N_WAY])
@pytest.mark.parametrize("part", ["support", "query"])
def test_a_known_label_that_is_no_class_is_refused(build, part, label):
    learner = build()
    params, wrong = learner.init(PARAMS), with_label(label, part)
    message = f"targets must be class indices from 0 to 4, got {label}"
    with pytest.raises(metajax.ArgumentError, match=message):
        metajax.evaluate_episodes(learner, params, wrong)
    if learner.gradient is not None and part == "query":
        return  # Reptile trains without it
    with pytest.raises(metajax.ArgumentError, match=message):
        metajax.meta_gradient(learner)(params, wrong)


@every_learner
def test_labels_from_one_on(build):
    learner = build()
    params = learner.init(PARAMS)
    with pytest.raises(metajax.ArgumentError, match="from 0 to 4, got 5"):
        metajax.evaluate_episodes(learner, params, episodes(first=1))
    assert np.isfinite(metajax.evaluate_episodes(learner, params, episodes()).mean["loss"])


@every_learner
@pytest.mark.parametrize("label", [-1, N_WAY, 2**31 - 1])
@pytest.mark.parametrize("part", ["support", "query"])
def test_a_traced_label_that_is_no_class_makes_the_gradient_nan(build, part, label):
    """And the task that has none stays as it is."""
    learner = build()
    if learner.gradient is not None and part == "query":
        return
    params = learner.init(PARAMS)
    gradient = jax.jit(jax.vmap(task_gradient(learner), in_axes=(None, 0)))
    got, metrics = gradient(params, with_label(label, part))
    expected, _ = gradient(params, episodes())
    assert bool(jnp.isnan(metrics["loss"][-1]))
    assert all(bool(jnp.isnan(leaf[-1]).any()) for leaf in jax.tree.leaves(got)[:1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:-1], b[:-1]), got, expected)


@pytest.mark.parametrize("label", [-1, N_WAY])
def test_a_label_that_is_no_class_counts_as_wrong(label):
    logits = jnp.eye(N_WAY)
    targets = jnp.arange(N_WAY).at[-1].set(label)
    loss, metrics = jax.jit(losses.classification_outcome)(logits, targets)
    assert bool(jnp.isnan(loss))
    np.testing.assert_allclose(metrics["accuracy"], 0.8, rtol=1e-6)


def test_padding_may_have_any_label():
    """Loss and gradient are those of the rest."""
    logits = jax.random.normal(jax.random.key(2), (N_WAY, N_WAY))
    targets = jnp.arange(N_WAY).at[jnp.array([0, 4])].set(jnp.array([-1, 7]))
    mask = jnp.array([False, True, True, True, False])
    outcome = lambda logits, *rest: losses.classification_outcome(logits, *rest)[0]
    both = jax.value_and_grad(outcome)
    expected = both(logits[1:4], targets[1:4])
    for function in (both, jax.jit(both)):
        loss, gradient = function(logits, targets, mask)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient[1:4], expected[1], rtol=1e-6)
        np.testing.assert_array_equal(gradient[jnp.array([0, 4])], 0)


def test_labels_that_are_known_cost_the_program_nothing():
    """What is closed over, and right, is not looked at again."""
    inputs, targets = jax.tree.map(lambda leaf: leaf[0], episodes()).query
    plain = lambda p: optax.softmax_cross_entropy_with_integer_labels(inputs @ p, targets).mean()
    ours = lambda p: losses.cross_entropy(linear)(p, (inputs, targets))[0]
    compiled = [jax.jit(each).lower(PARAMS).compile().as_text() for each in (ours, plain)]
    operations = [re.sub(r"metadata=\{[^}]*\}", "", text).count(" = ") for text in compiled]
    assert operations[0] == operations[1]


def test_an_adaptation_by_hand_refuses_labels_that_are_no_class():
    support = jax.tree.map(lambda leaf: leaf[0], episodes(first=1)).support
    with pytest.raises(metajax.ArgumentError, match="got 5"):
        metajax.adapt(
            losses.cross_entropy(linear), PARAMS, support, optimizer=optax.sgd(0.1), steps=1
        )


def test_a_pair_of_other_things_has_no_labels():
    """Such as two batches that a loss reads together."""
    batches = {"x": jnp.ones((3, 2, 4))}, {"x": jnp.full((3, 2, 4), 2.0)}
    learner = lm.supervised(
        lambda params, pair: (((pair[0]["x"] - pair[1]["x"]) @ params).mean(), {})
    )
    sample = lambda key: metajax.Episode(None, jax.tree.map(lambda leaf: leaf[0], batches))
    trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sample, meta_batch=2)
    state, metrics = trainer.run(trainer.init(PARAMS, jax.random.key(0)), 2)
    assert metrics["loss"].shape == (2,)
    assert bool((state.params != PARAMS).all())
