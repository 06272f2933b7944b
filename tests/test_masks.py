"""Padding, which the statistics of a batch must not see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import losses, models
from metajax.check import _contract as contract
from metajax.learners import task_gradient

N_WAY, SHOTS, QUERIES, SIZE = 3, 2, 2, 16
SGD = optax.sgd(0.3)


def batch(seed, each):
    images = jax.random.normal(jax.random.key(seed), (N_WAY * each, SIZE, SIZE, 1))
    return metajax.Batch(images, jnp.repeat(jnp.arange(N_WAY), each))


EPISODE = metajax.Episode(batch(0, SHOTS), batch(1, QUERIES))


def padded(batch, seed):
    """The batch with padding before, between and after its examples, labelled as no class."""
    n = len(batch.targets)
    place = jnp.sort(jax.random.permutation(jax.random.key(seed), n + 4)[:n])
    inputs = 5 + 3 * jax.random.normal(jax.random.key(7), (n + 4, *batch.inputs.shape[1:]))
    return metajax.MaskedBatch(
        inputs.at[place].set(batch.inputs),
        jnp.full(n + 4, -1).at[place].set(batch.targets),
        jnp.zeros(n + 4, bool).at[place].set(True),
    )


PADDED = metajax.Episode(padded(EPISODE.support, 1), padded(EPISODE.query, 2))
REPEATED = metajax.Episode(
    *(
        metajax.MaskedBatch(
            jnp.concatenate([each.inputs, each.inputs[:3]]),
            jnp.concatenate([each.targets, each.targets[:3]]),
            jnp.arange(len(each.targets) + 3) < len(each.targets),
        )
        for each in EPISODE[:2]
    )
)


def network(module, *inputs, **options):
    return metajax.from_linen(module, jax.random.key(3), *inputs, **options)


def conv4(**options):
    return network(models.Conv4(features=4, **options), jnp.zeros((1, SIZE, SIZE, 1)))


def with_maml(learner=metajax.maml, norm="batch"):
    params, apply = conv4(n_classes=N_WAY, norm=norm)
    return learner(losses.cross_entropy(apply), SGD, steps=1), params


def by_support():
    params, apply = conv4(n_classes=N_WAY, norm="support")
    learner = metajax.maml(
        losses.cross_entropy(apply),
        SGD,
        steps=1,
        outer_loss=losses.cross_entropy_given_support(apply),
    )
    return learner, params


def metric(learner, **options):
    params, apply = conv4(n_classes=None, form="pool")
    return learner(apply, n_way=N_WAY, **options), params


def with_relation():
    params, embed = conv4(n_classes=None, form="maps")
    maps = embed(params, EPISODE.support.inputs)
    head, relate = network(models.RelationHead(3), jnp.concatenate([maps, maps], axis=-1))
    learner = metajax.relation(
        metajax.masked(lambda p, x, **options: embed(p["body"], x, **options)),
        metajax.masked(lambda p, x, **options: relate(p["head"], x, **options)),
        n_way=N_WAY,
    )
    return learner, {"body": params, "head": head}


def with_full_context():
    params, embed = conv4(n_classes=None, form="pool")
    width = embed(params, EPISODE.support.inputs).shape[1]
    context, read = network(
        models.FullContext(width, steps=2), jnp.ones((2, width)), jnp.ones((1, width))
    )
    learner = metajax.matching(
        metajax.masked(lambda p, x, **options: embed(p["body"], x, **options)),
        n_way=N_WAY,
        full_context=metajax.masked(lambda p, *both, **mask: read(p["context"], *both, **mask)),
    )
    return learner, {"body": params, "context": context}


LEARNERS = {
    "maml": with_maml,
    "running": lambda: with_maml(norm="running"),
    "meta-SGD": lambda: with_maml(
        lambda loss, _, steps: metajax.meta_sgd(loss, learning_rate=0.3, steps=steps)
    ),
    "reptile": lambda: with_maml(metajax.reptile),
    "support": by_support,
    "prototypical": lambda: metric(metajax.prototypical),
    "proto-maml": lambda: metric(metajax.proto_maml, optimizer=SGD, steps=1),
    "r2d2": lambda: metric(metajax.r2d2),
    "relation": with_relation,
}


MARKS = {"prototypical": (), "maml": (pytest.mark.slow, pytest.mark.ci)}
CASES = [
    pytest.param(build, id=name, marks=MARKS.get(name, pytest.mark.slow))
    for name, build in LEARNERS.items()
]


@pytest.mark.parametrize("build", CASES)
def test_a_network_that_normalises_by_the_batch_doesn_t_see_padding(build, x64):
    """Loss, accuracy and meta-gradient are those of the episode without padding."""
    compare(*build(), jnp.float64, 1e-6)


@pytest.mark.slow
def test_full_context_embeddings_don_t_see_padding():
    compare(*with_full_context(), jnp.float32, 1e-3)  # an LSTM's first carry is float32


def compare(learner, params, dtype, rtol):
    cast = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )
    params = cast(learner.init(params))
    of = jax.jit(task_gradient(learner))
    gradient, metrics = of(params, cast(EPISODE))
    for other in (PADDED, REPEATED):
        found, found_metrics = of(params, cast(other))
        for name in metrics:
            np.testing.assert_allclose(found_metrics[name], metrics[name], rtol=rtol, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 1e3),
            found,
            gradient,
        )


@pytest.mark.slow
def test_resnet12_doesn_t_see_padding():
    params, apply = network(
        models.ResNet12(N_WAY, features=(2, 2, 3, 3)), jnp.zeros((1, SIZE, SIZE, 1))
    )
    apply = jax.jit(apply)
    inputs, _, mask, _ = PADDED.support
    found = apply(params, inputs, mask=mask)[mask]
    np.testing.assert_allclose(found, apply(params, inputs[mask]), rtol=1e-4, atol=1e-5)


def test_running_statistics_leave_padding_out():
    module = models.Normalization("running")
    x = jax.random.normal(jax.random.key(0), (4, 3))
    mask = jnp.array([True, False, True, True])
    variables = module.init(jax.random.key(1), x)
    got, expected = (
        module.apply(variables, rows, mask=mask, mutable=["batch_stats"])[1]
        for rows, mask in ((x, mask), (x[mask], None))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_without_a_mask_the_program_is_the_same():
    _, apply = conv4(n_classes=N_WAY)
    params, plain = conv4(n_classes=N_WAY)
    text = lambda apply, batch: str(
        jax.make_jaxpr(lambda p, b: losses.cross_entropy(apply)(p, b)[0])(params, batch)
    )
    unmarked = lambda params, inputs: plain(params, inputs)
    assert text(apply, EPISODE.query) == text(unmarked, EPISODE.query)
    assert text(apply, PADDED.query) != text(unmarked, PADDED.query)


def test_check_learner_says_where_padding_counts():
    @metajax.masked
    def centred(params, inputs, mask=None):
        where = None if mask is None else mask[:, None]
        x = inputs.reshape(len(inputs), -1)
        return (x - x.mean(axis=0, where=where)) @ params

    params = jnp.ones((SIZE * SIZE, N_WAY)) * jnp.arange(N_WAY)
    blind = lambda params, inputs: centred(params, inputs)
    others = set(contract.CHECKS) - contract.ESSENTIAL - {"padding"}
    for network, passes in ((centred, True), (blind, False)):
        learner = metajax.maml(losses.cross_entropy(network), SGD, steps=1)
        report = metajax.check_learner(learner, params, PADDED, skip=others)
        check = next(check for check in report.checks if check.name == "padding")
        assert check.passed is passes, check.sentence
    assert "metajax.masked" in check.sentence


def test_mean_squared_error_leaves_padding_out():
    loss_fn = losses.mean_squared_error(lambda params, inputs: inputs * params)
    inputs, targets = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))
    mask = jnp.array([True, False, True])
    got = loss_fn(jnp.array(2.0), metajax.MaskedBatch(inputs, targets, mask))
    np.testing.assert_allclose(got, np.mean([1, 1, 49, 81]), rtol=1e-6)
    none = loss_fn(jnp.array(2.0), metajax.MaskedBatch(inputs, targets, mask & False))
    assert float(none) == 0


def test_reptile_s_minibatches_keep_the_classes():
    """A support set of as many examples as classes, in batches of two."""
    loss_fn = losses.cross_entropy(lambda params, inputs: inputs @ params)
    learner = metajax.reptile(loss_fn, SGD, steps=3, batch_size=2)
    inputs, targets = jnp.eye(3), jnp.arange(3)
    classes = jnp.array([True, True, True])
    plain, _ = learner.adapt(jnp.zeros((3, 3)), metajax.Batch(inputs, targets))
    masked, _ = learner.adapt(
        jnp.zeros((3, 3)), metajax.MaskedBatch(inputs, targets, jnp.ones(3, bool), classes)
    )
    np.testing.assert_allclose(masked, plain, rtol=1e-6)


class BatchNormed(nn.Module):
    """A module of one's own, with Flax's batch normalisation."""

    masked = True

    @nn.compact
    def __call__(self, x, mask=None):
        mask = None if mask is None else mask[:, None]
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dense(N_WAY)(nn.BatchNorm(use_running_average=False)(x, mask=mask))


def test_flax_s_batch_normalisation_takes_the_mask():
    params, apply = network(BatchNormed(), EPISODE.query.inputs, mutable=("batch_stats",))
    assert metajax.masks.is_masked(apply)
    loss_fn = losses.cross_entropy(apply)
    (found, metrics), (expected, alone) = (
        loss_fn(params, batch) for batch in (PADDED.query, EPISODE.query)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), metrics, alone
    )
