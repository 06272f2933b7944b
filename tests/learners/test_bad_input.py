"""Inputs that no task should have: a named error, or a result that is defined."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.learners import cosine_similarities, ridge, svm_dual
from metajax.models import FullContext

N_WAY, WIDTH = 3, 4
TARGETS = jnp.array([0, 0, 1, 1, 2, 2])


def linear(weights, inputs):
    return inputs @ weights


def batch(seed, width=WIDTH):
    return metajax.Batch(jax.random.normal(jax.random.key(seed), (6, width)), TARGETS)


EPISODE = metajax.Episode(batch(0), batch(1))
WEIGHTS = jnp.eye(WIDTH) + 0.1


def outcome(learner, params, episode):
    adapted, _ = learner.adapt(params, episode.support)
    loss, metrics = learner.loss(adapted, episode)
    return loss, (metrics["accuracy"], adapted)


def value_and_slope(learner, episode, weights=WEIGHTS):
    """Loss, accuracy and gradient in the network's weights, as one program."""
    of = lambda w: outcome(learner, learner.init(w), episode)
    (loss, (accuracy, _)), slope = jax.jit(jax.value_and_grad(of, has_aux=True))(weights)
    return loss, accuracy, slope


VECTORS = {
    "prototypical": lambda embed, n_way=N_WAY: metajax.prototypical(embed, n_way=n_way),
    "cosine": lambda embed, n_way=N_WAY: metajax.prototypical(
        embed, n_way=n_way, distance="cosine"
    ),
    "matching": lambda embed, n_way=N_WAY: metajax.matching(embed, n_way=n_way),
    "r2d2": lambda embed, n_way=N_WAY: metajax.r2d2(embed, n_way=n_way),
    "linear_probe": lambda embed, n_way=N_WAY: metajax.linear_probe(embed, n_way=n_way),
    "metaoptnet": lambda embed, n_way=N_WAY: metajax.metaoptnet(embed, n_way=n_way),
    "proto_maml": lambda embed, n_way=N_WAY: metajax.proto_maml(
        embed, optax.sgd(0.1), n_way=n_way, steps=2
    ),
}
ALL = VECTORS | {
    "relation": lambda embed, n_way=N_WAY: metajax.relation(
        embed, lambda params, pairs: jax.nn.sigmoid(pairs.sum(axis=-1)), n_way=n_way
    )
}
every_learner = pytest.mark.parametrize("build", ALL.values(), ids=ALL)


@pytest.mark.parametrize("build", VECTORS.values(), ids=VECTORS)
def test_feature_maps_where_vectors_are_compared(build):
    learner = build(lambda weights, inputs: (inputs @ weights)[..., None])
    with pytest.raises(ValueError, match=r"embed must return features \[examples, d\] .*\(6, 4, 1"):
        outcome(learner, learner.init(WEIGHTS), EPISODE)


def test_features_of_unequal_width_in_proto_maml():
    """Its two passes may differ: the query's has inputs of another width, say."""
    learner = VECTORS["proto_maml"](lambda weights, inputs: inputs)
    with pytest.raises(ValueError, match=r"features \[examples, 4\], as wide .* shape \(6, 5\)"):
        outcome(learner, WEIGHTS, metajax.Episode(batch(0), batch(1, width=5)))


@pytest.mark.parametrize(
    ("full_context", "message"),
    [
        (lambda params, s, q: (s[:, :3], q), r"one d .* shapes \(6, 3\) and \(6, 4\)"),
        (lambda params, s, q: (s[..., None], q[..., None]), r"one d .* shapes \(6, 4, 1\)"),
        (lambda params, s, q: (s[:5], q), r"6 support and 6 query .* \(5, 4\) and \(6, 4\)"),
        (lambda params, s, q: (s, q[:1]), r"6 support and 6 query .* \(6, 4\) and \(1, 4\)"),
    ],
    ids=["width", "maps", "support", "query"],
)
def test_what_full_context_may_return(full_context, message):
    learner = metajax.matching(linear, n_way=N_WAY, full_context=full_context)
    with pytest.raises(ValueError, match=f"full_context must return features .*{message}"):
        outcome(learner, WEIGHTS, EPISODE)


def test_features_that_full_context_was_not_made_for():
    module = FullContext(WIDTH)
    variables = module.init(jax.random.key(0), *(each.inputs for each in EPISODE[:2]))
    learner = metajax.matching(
        lambda params, inputs: inputs, n_way=N_WAY, full_context=module.apply
    )
    wide = metajax.Episode(batch(0, width=5), batch(1, width=5))
    with pytest.raises(ValueError, match=r"support must be features \[examples, 4\].*\(6, 5\)"):
        outcome(learner, variables, wide)


@every_learner
def test_a_class_that_the_mask_leaves_empty(build):
    """It is never chosen, and the rest is as in the task of two classes."""
    mask = TARGETS < 2
    masked = metajax.Episode(
        *(metajax.MaskedBatch(each.inputs, each.targets, mask) for each in EPISODE[:2])
    )
    small = jax.tree.map(lambda leaf: leaf[:4], EPISODE)
    got, expected = (
        value_and_slope(build(linear, n_way), episode)
        for n_way, episode in ((N_WAY, masked), (2, small))
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@every_learner
def test_a_query_of_a_class_that_the_mask_leaves_empty_is_wrong_and_finite(build):
    support = metajax.MaskedBatch(*EPISODE.support, TARGETS < 2)
    loss, accuracy, slope = value_and_slope(build(linear), metajax.Episode(support, EPISODE.query))
    assert bool(jnp.isfinite(loss))
    assert accuracy <= 4 / 6 + 1e-6
    assert bool(jnp.isfinite(slope).all())


@every_learner
def test_a_support_set_that_is_all_padding(build):
    support = metajax.MaskedBatch(*EPISODE.support, TARGETS < 0)
    loss, _, slope = value_and_slope(build(linear), metajax.Episode(support, EPISODE.query))
    assert bool(jnp.isfinite(loss))
    np.testing.assert_array_equal(slope, 0)


@every_learner
def test_embeddings_that_are_all_zero(build):
    """All classes are alike then; a cosine with a zero vector is 0, and has a derivative."""
    loss, accuracy, slope = value_and_slope(build(linear), EPISODE, 0 * WEIGHTS)
    guess = 1 / 4 if build is ALL["relation"] else np.log(N_WAY)  # (1/2 - [y = c])²
    np.testing.assert_allclose(loss, guess, rtol=1e-5)
    np.testing.assert_allclose(accuracy, 1 / N_WAY, rtol=1e-6)  # ties go to class 0
    assert bool(jnp.isfinite(slope).all())


@pytest.mark.parametrize("build", [VECTORS["cosine"], VECTORS["matching"]])
def test_a_zero_vector_among_others(build):
    """One query, and one class's whole support: cosines of 0, as the definition has it."""
    inputs = EPISODE.support.inputs.at[:2].set(0)
    query = metajax.Batch(jnp.zeros((1, WIDTH)), jnp.array([1]))
    episode = metajax.Episode(metajax.Batch(inputs, TARGETS), query)
    loss, _, slope = value_and_slope(build(linear), episode)
    np.testing.assert_allclose(loss, np.log(N_WAY), rtol=1e-5)
    assert bool(jnp.isfinite(slope).all())


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("penalty", lambda value: metajax.r2d2(linear, n_way=3, penalty=value)),
        ("penalty", lambda value: metajax.linear_probe(linear, n_way=3, penalty=value)),
        ("penalty", lambda value: ridge(jnp.eye(2), jnp.eye(2), value)),
        ("penalty", lambda value: ridge(jnp.eye(2), jnp.eye(2), jnp.array(value))),
        (
            "regularisation",
            lambda value: metajax.metaoptnet(linear, n_way=3, regularisation=value),
        ),
        (
            "regularisation",
            lambda value: svm_dual(jnp.eye(2), jnp.eye(2), regularisation=value, iterations=1),
        ),
        (
            "proximal",
            lambda value: metajax.imaml(linear, optax.sgd(0.1), steps=1, proximal=value),
        ),
    ],
    ids=["r2d2", "linear_probe", "ridge", "ridge_array", "metaoptnet", "svm_dual", "imaml"],
)
def test_lambda_is_positive(name, build, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a positive finite number, got .*{value}"
    ):
        build(value)


def test_the_svm_takes_an_iteration():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        svm_dual(jnp.eye(2), jnp.eye(2), regularisation=1.0, iterations=0)


def quadratic(params, target):
    """½ Σ_i i (θ_i − c_i)²."""
    return 0.5 * jnp.sum(jnp.arange(1.0, 5.0) * (params - target) ** 2)


def residual(loss_fn=quadratic, target=2.0, **options):
    learner = metajax.imaml(loss_fn, optax.sgd(0.01), steps=3, **options)
    episode = metajax.Episode(jnp.zeros(4), jnp.full(4, target))
    gradient, metrics = jax.jit(learner.gradient)(jnp.ones(4), episode)
    return gradient, float(metrics["solver_residual"])


def test_the_residual_falls_with_the_iterations_of_cg_and_stays_down():
    """Beyond as many iterations as there are numbers, nothing is divided by zero."""
    found = [residual(proximal=0.01, solver_steps=n)[1] for n in (1, 2, 4, 100)]
    assert found[0] > 0.1
    assert found[0] > found[1] > found[2]
    assert max(found[2:]) < 1e-5


def test_a_solver_that_diverges_reports_it():
    _, few = residual(proximal=0.5, solver="neumann", solver_steps=10)  # H/λ is up to 8
    assert 1e3 < few < np.inf
    _, many = residual(proximal=0.5, solver="neumann", solver_steps=500)
    assert many == np.inf
    # I + H/λ is singular: no u exists.
    _, none = residual(lambda *of: -quadratic(*of), proximal=1.0, solver_steps=10)
    assert none > 1


def test_a_query_gradient_of_zero_is_solved():
    learner = metajax.imaml(quadratic, optax.sgd(0.1), steps=1, proximal=1.0)
    gradient, metrics = learner.gradient(jnp.ones(4), metajax.Episode(jnp.ones(4), jnp.ones(4)))
    np.testing.assert_array_equal(gradient, 0)
    assert metrics["solver_residual"] == 0


def test_training_reports_the_residual():
    learner = metajax.imaml(quadratic, optax.sgd(0.01), steps=3, proximal=0.01, solver_steps=1)
    sample = lambda key: metajax.Episode(jnp.zeros(4), jax.random.normal(key, (4,)))
    trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sample, meta_batch=2)
    _, metrics = trainer.run(trainer.init(jnp.ones(4), jax.random.key(0)), 1)
    assert metrics["solver_residual"].item() > 0.1


@pytest.mark.parametrize("build", [b for n, b in ALL.items() if n != "proto_maml"])
def test_inputs_of_unequal_shape(build):
    learner = build(lambda weights, inputs: inputs)
    with pytest.raises(ValueError, match=r"examples of one shape, got \(6, 4\) and \(6, 5\)"):
        outcome(learner, learner.init(WEIGHTS), metajax.Episode(batch(0), batch(1, width=5)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_cosines_in_half_precision(dtype):
    zero, large, one = (jnp.full((1, 2), value, dtype) for value in (0, 300, 1))
    assert cosine_similarities(zero, one)[0, 0] == 0
    np.testing.assert_allclose(np.float32(cosine_similarities(large, one)[0, 0]), 1, rtol=1e-2)
    slope = jax.grad(lambda x: cosine_similarities(x, one)[0, 0])(zero)
    assert bool(jnp.isfinite(slope).all())
