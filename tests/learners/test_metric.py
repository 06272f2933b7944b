"""Metric-based learners against independent implementations in NumPy and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import metajax
from metajax.learners import cosine_similarities, logistic_regression, ridge, svm_dual
from metajax.models import FullContext, RelationHead

N_WAY, SHOTS, QUERIES, WIDTH = 3, 2, 4, 5


def linear(weights, inputs):
    return inputs @ weights


@pytest.fixture
def weights(x64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))


@pytest.fixture
def episode(x64):
    rng = np.random.default_rng(1)

    def batch(each):
        targets = rng.permutation(np.repeat(np.arange(N_WAY), each))
        inputs = rng.normal(size=(len(targets), WIDTH)) + targets[:, None]
        return metajax.Batch(jnp.asarray(inputs), jnp.asarray(targets, jnp.int32))

    return metajax.Episode(batch(SHOTS), batch(QUERIES))


def loss_of(learner, params, episode):
    adapted, _ = learner.adapt(params, episode.support)
    loss, metrics = learner.loss(adapted, episode)
    return loss, metrics


def cross_entropy(logits, targets):
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(targets)), targets].mean()


def embedded(weights, episode):
    (s, s_targets), (q, q_targets) = jax.tree.map(np.asarray, episode[:2])
    return s @ np.asarray(weights), s_targets, q @ np.asarray(weights), q_targets


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototypical(distance, weights, episode):
    s, s_targets, q, q_targets = embedded(weights, episode)
    prototypes = np.stack([s[s_targets == c].mean(axis=0) for c in range(N_WAY)])
    if distance == "euclidean":
        logits = np.array([[-np.sum((x - p) ** 2) for p in prototypes] for x in q])
    else:
        logits = unit(q) @ unit(prototypes).T
    learner = metajax.prototypical(linear, n_way=N_WAY, distance=distance)
    loss, metrics = loss_of(learner, weights, episode)
    np.testing.assert_allclose(loss, cross_entropy(logits, q_targets), rtol=1e-10)
    right = np.mean(logits.argmax(axis=1) == q_targets)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


def test_matching(weights, episode):
    s, s_targets, q, q_targets = embedded(weights, episode)
    attention = np.exp(3.0 * unit(q) @ unit(s).T)
    attention /= attention.sum(axis=1, keepdims=True)
    p = np.stack([attention[:, s_targets == c].sum(axis=1) for c in range(N_WAY)], axis=1)
    loss, _ = loss_of(metajax.matching(linear, n_way=N_WAY, scale=3.0), weights, episode)
    np.testing.assert_allclose(loss, -np.log(p[np.arange(len(q)), q_targets]).mean(), rtol=1e-10)


def test_relation(weights, episode):
    s, s_targets, q, q_targets = embedded(weights, episode)
    sums = np.stack([s[s_targets == c].sum(axis=0) for c in range(N_WAY)])
    last = np.linspace(-1, 1, 2 * WIDTH)
    relations = np.array(
        [[1 / (1 + np.exp(-np.concatenate([c, x]) @ last)) for c in sums] for x in q]
    )
    relate = lambda params, pairs: jax.nn.sigmoid(pairs @ last)
    learner = metajax.relation(linear, relate, n_way=N_WAY)
    loss, metrics = loss_of(learner, weights, episode)
    expected = np.mean((relations - np.eye(N_WAY)[q_targets]) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    right = np.mean(relations.argmax(axis=1) == q_targets)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-6)


def test_the_statistics_of_both_of_relation_s_networks_are_reported(weights, episode):
    embed = lambda w, x: (linear(w, x), {"batch_stats": {"body": {"mean": x.mean()}}})
    relate = lambda w, pairs: (
        jax.nn.sigmoid(pairs.sum(axis=-1)),
        {"batch_stats": {"head": {"mean": pairs.mean()}}},
    )
    learner = metajax.relation(embed, relate, n_way=N_WAY)
    _, metrics = loss_of(learner, weights, episode)
    inputs = jnp.concatenate([episode.support.inputs, episode.query.inputs])
    np.testing.assert_allclose(metrics["batch_stats"]["body"]["mean"], inputs.mean(), rtol=1e-6)
    assert set(metrics["batch_stats"]) == {"body", "head"}


@pytest.mark.parametrize("shots", [(1, 9), (5, 5)])
def test_the_gradient_of_a_large_episode_is_that_of_its_queries_one_by_one(shots):
    """Of 60 classes and 600 examples, a fusion of jaxlib 0.10.2 ended the process."""
    n_way, width = 60, 64
    keys = jax.random.split(jax.random.key(0), 3)
    start = jax.random.normal(keys[0], (width, width)) / 8
    support, query = (
        metajax.Batch(
            jax.random.normal(key, (n_way * count, width)), jnp.repeat(jnp.arange(n_way), count)
        )
        for key, count in zip(keys[1:], shots, strict=True)
    )
    embed = lambda w, x: jnp.tanh(x @ w)
    learner = metajax.prototypical(embed, n_way=n_way)

    def one_by_one(w):
        means = embed(w, support.inputs).reshape(n_way, -1, width).mean(axis=1)

        def loss(x, target):
            distances = jnp.sum((embed(w, x[None]) - means) ** 2, axis=-1)
            return distances[target] + jax.nn.logsumexp(-distances)

        return jax.lax.map(lambda pair: loss(*pair), tuple(query)).mean()

    episode = metajax.Episode(support, query)
    found = jax.jit(jax.grad(lambda w: loss_of(learner, w, episode)[0]))(start)
    np.testing.assert_allclose(found, jax.jit(jax.grad(one_by_one))(start), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("examples", [3, 9])
def test_ridge_is_the_minimum_in_either_space(examples, x64):
    """Fewer examples than features, and more: the gradient of the penalised square is zero."""
    rng = np.random.default_rng(2)
    x, y, penalty = rng.normal(size=(examples, 5)), rng.normal(size=(examples, 2)), 0.3
    w = np.asarray(ridge(jnp.asarray(x), jnp.asarray(y), jnp.asarray(penalty)))
    np.testing.assert_allclose(x.T @ (x @ w - y) + penalty * w, 0, atol=1e-12)


@pytest.mark.parametrize("examples", [4, 12])
def test_logistic_regression_is_the_minimum(examples, x64):
    """The gradient of the penalised loss is zero, and a quasi-Newton method finds the same."""
    rng = np.random.default_rng(3)
    x, penalty = rng.normal(size=(examples, 6)), 0.4
    y = np.eye(3)[np.arange(examples) % 3]
    w = np.asarray(logistic_regression(jnp.asarray(x), jnp.asarray(y), penalty, steps=3000))

    def loss_and_gradient(flat):
        weights = flat.reshape(6, 3)
        logits = x @ weights
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log((p * y).sum(axis=1)).sum() + penalty / 2 * np.square(weights).sum()
        return loss, (x.T @ (p - y) + penalty * weights).ravel()

    np.testing.assert_allclose(loss_and_gradient(w.ravel())[1], 0, atol=1e-10)
    found = scipy.optimize.minimize(loss_and_gradient, np.zeros(18), jac=True, method="BFGS")
    np.testing.assert_allclose(w.ravel(), found.x, atol=1e-4)
    losses = [
        loss_and_gradient(
            np.ravel(logistic_regression(jnp.asarray(x), jnp.asarray(y), penalty, n))
        )[0]
        for n in range(12)
    ]
    assert (np.diff(losses) < 0).all(), "it falls in each step"


def test_a_linear_probe_is_logistic_regression_on_features_of_length_one(weights, episode):
    s, s_targets, q, q_targets = embedded(weights, episode)
    unit = lambda x: np.concatenate(
        [x / np.linalg.norm(x, axis=1, keepdims=True), np.ones((len(x), 1))], axis=1
    )
    w = logistic_regression(jnp.asarray(unit(s)), jnp.eye(N_WAY)[s_targets], 0.5, 200)
    learner = metajax.linear_probe(linear, n_way=N_WAY, penalty=0.5, steps=200)
    loss, _ = loss_of(learner, learner.init(weights), episode)
    np.testing.assert_allclose(loss, cross_entropy(unit(q) @ np.asarray(w), q_targets), rtol=1e-9)
    plain = metajax.linear_probe(linear, n_way=N_WAY, penalty=0.5, normalise=False)
    assert abs(loss_of(plain, weights, episode)[0] - loss) > 1e-3


def test_r2d2(weights, episode):
    s, s_targets, q, q_targets = embedded(weights, episode)
    w = np.linalg.solve(s.T @ s + 0.5 * np.eye(WIDTH), s.T @ np.eye(N_WAY)[s_targets])
    learner = metajax.r2d2(linear, n_way=N_WAY, penalty=0.5, scale=2.0)
    meta_params = learner.init(weights)._replace(bias=jnp.array(0.1))
    loss, _ = loss_of(learner, meta_params, episode)
    np.testing.assert_allclose(loss, cross_entropy(2 * q @ w + 0.1, q_targets), rtol=1e-10)


def test_the_gradient_of_r2d2_s_penalty(weights, episode):
    learner = metajax.r2d2(linear, n_way=N_WAY, penalty=0.5)

    def of(log_lambda):
        return loss_of(learner, learner.init(weights)._replace(log_lambda=log_lambda), episode)[0]

    at, step = jnp.log(0.5), 1e-5
    numeric = (of(at + step) - of(at - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(of)(at), numeric, rtol=1e-7)


def test_the_svm_satisfies_its_optimality_conditions(x64):
    """With G = K A − Y: a row of A is optimal where no feasible exchange of two entries descends.

    Mass moves from entry j to entry k as long as k is below its ceiling, so there G_k ≥ max G of
    those that could give: all of them, since nothing bounds entries from below.
    """
    rng = np.random.default_rng(3)
    features = rng.normal(size=(9, 4))
    one_hot = np.eye(3)[np.repeat(np.arange(3), 3)]
    kernel, c = features @ features.T, 0.4
    dual = np.asarray(
        svm_dual(jnp.asarray(kernel), jnp.asarray(one_hot), regularisation=c, iterations=5000)
    )
    np.testing.assert_allclose(dual.sum(axis=1), 0, atol=1e-9)
    assert (dual <= c * one_hot + 1e-9).all()
    slope = kernel @ dual - one_hot
    for row, below, ceiling in zip(slope, dual, c * one_hot, strict=True):
        free = below < ceiling - 1e-6
        for give, take in itertools.permutations(range(3), 2):
            if free[take]:
                assert row[take] >= row[give] - 1e-5


def test_metaoptnet_s_gradient_is_that_of_the_optimum(weights, episode):
    learner = metajax.metaoptnet(linear, n_way=N_WAY, iterations=4000)

    def of(weights):
        return loss_of(learner, learner.init(weights), episode)[0]

    direction = jnp.asarray(np.random.default_rng(4).normal(size=weights.shape))
    step = 1e-5
    numeric = (of(weights + step * direction) - of(weights - step * direction)) / (2 * step)
    slope = jnp.vdot(jax.grad(of)(weights), direction)
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)


def test_proto_maml_starts_as_prototypical(weights, episode):
    import optax

    learner = metajax.proto_maml(linear, optax.sgd(1e-12), n_way=N_WAY, steps=1)
    prototypical = metajax.prototypical(linear, n_way=N_WAY)
    gradients = [
        jax.grad(lambda w, which=which: loss_of(which, w, episode)[0])(weights)
        for which in (learner, prototypical)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-6)


CLASSIFIERS = {
    "prototypical": lambda n_way: metajax.prototypical(linear, n_way=n_way),
    "matching": lambda n_way: metajax.matching(linear, n_way=n_way),
    "relation": lambda n_way: metajax.relation(
        linear, lambda params, pairs: jax.nn.sigmoid(pairs.sum(axis=-1)), n_way=n_way
    ),
    "r2d2": lambda n_way: metajax.r2d2(linear, n_way=n_way),
    "linear_probe": lambda n_way: metajax.linear_probe(linear, n_way=n_way),
    "metaoptnet": lambda n_way: metajax.metaoptnet(linear, n_way=n_way),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_padding_changes_nothing(build, weights, episode):
    """Padded examples, in classes of their own or in real ones, and a padded way."""

    def padded(batch, extra):
        garbage = 100.0 * jnp.ones((extra, WIDTH))
        targets = jnp.concatenate([batch.targets, jnp.arange(extra) % (N_WAY + 2)])
        mask = jnp.arange(len(targets)) < len(batch.targets)
        return metajax.MaskedBatch(jnp.concatenate([batch.inputs, garbage]), targets, mask)

    wider = metajax.Episode(padded(episode.support, 5), padded(episode.query, 3))
    plain, wide = build(N_WAY), build(N_WAY + 2)

    def loss(learner, episode):
        return lambda w: loss_of(learner, learner.init(w), episode)

    expected, got = loss(plain, episode)(weights), loss(wide, wider)(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
    gradients = [
        jax.grad(lambda w, f=f: f(w)[0])(weights) for f in (loss(wide, wider), loss(plain, episode))
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-8)


def test_a_class_without_examples_is_never_chosen(weights, episode):
    for build in CLASSIFIERS.values():
        learner = build(N_WAY + 1)
        loss, metrics = loss_of(learner, learner.init(weights), episode)
        assert bool(jnp.isfinite(loss)), build
        assert 0 <= float(metrics["accuracy"]) <= 1


def test_the_cosine_with_a_zero_vector_is_zero_and_has_a_derivative():
    zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
    assert float(cosine_similarities(zero, one)[0, 0]) == 0
    slope = jax.grad(lambda x: cosine_similarities(x, one)[0, 0])(zero)
    assert bool(jnp.isfinite(slope).all())


def test_running_statistics_are_reported_and_carried():
    """``embed`` may return what its pass changed, and the trainer's state carries it."""
    import optax

    def embed(variables, inputs):
        mean = inputs.mean(axis=0)
        changed = {"batch_stats": 0.9 * variables["batch_stats"] + 0.1 * mean}
        return (inputs - mean) @ variables["params"], changed

    def sample(key):
        inputs = jax.random.normal(key, (4, 2)) + 3
        batch = metajax.Batch(inputs, jnp.array([0, 0, 1, 1]))
        return metajax.Episode(batch, batch)

    trainer = metajax.meta_trainer(
        metajax.prototypical(embed, n_way=2),
        optax.sgd(0.0),
        sample,
        meta_batch=1,
        carry=metajax.carry_statistics,
    )
    variables = {"params": jnp.eye(2), "batch_stats": jnp.zeros(2)}
    state, metrics = trainer.run(trainer.init(variables, jax.random.key(0)), 60)
    np.testing.assert_allclose(state.params["batch_stats"], [3.0, 3.0], atol=0.4)
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}


@pytest.mark.slow
def test_full_context_embeddings_depend_on_the_whole_support_set():
    rng = np.random.default_rng(5)
    support, query = (jnp.asarray(rng.normal(size=(n, 6)), jnp.float32) for n in (4, 3))
    module = FullContext(6, steps=2)
    variables = module.init(jax.random.key(0), support, query)
    slope = jax.jacobian(lambda s: module.apply(variables, s, query))(support)
    embedded_slope, query_slope = (np.abs(np.asarray(part)).max(axis=(1, 3)) for part in slope)
    assert (embedded_slope > 0).all()  # each by each
    assert (query_slope > 0).all()
    learner = metajax.matching(
        lambda params, x: x,
        n_way=2,
        full_context=lambda params, s, q: module.apply(params, s, q),
    )
    batch = metajax.Batch(support, jnp.array([0, 0, 1, 1]))
    loss, _ = loss_of(learner, variables, metajax.Episode(batch, batch))
    assert bool(jnp.isfinite(loss))


@pytest.mark.slow
def test_the_relation_head_scores_pairs_of_feature_maps():
    pairs = jax.random.normal(jax.random.key(0), (4, 5, 5, 8))
    outputs, _ = RelationHead(3).init_with_output(jax.random.key(1), pairs)
    assert outputs.shape == (4,)
    assert bool(((outputs > 0) & (outputs < 1)).all())


def test_bad_outputs_are_named(weights, episode):
    scalars = metajax.prototypical(lambda w, x: x.sum(axis=-1), n_way=N_WAY)
    with pytest.raises(ValueError, match=r"embed must return features .* got shape \(18,\)"):
        loss_of(scalars, weights, episode)
    columns = metajax.relation(linear, lambda w, pairs: pairs[:, :1], n_way=N_WAY)
    with pytest.raises(ValueError, match=r"relate must return .* got shape \(36, 1\)"):
        loss_of(columns, weights, episode)
