"""check_learner: learners that are broken, one way each, and what is said of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax.check import _contract as contract
from metajax.check._perturb import alike, leaf_changed, parting, sameness
from metajax.learners import task_gradient

SGD = optax.sgd(0.1)
PARAMS = {"w": jnp.array([0.5, -0.3, 0.2]), "b": jnp.array(0.1)}


def batch(seed):
    inputs = jax.random.normal(jax.random.key(seed), (4, 3))
    return metajax.Batch(inputs, inputs.sum(axis=1) + 0.5)


EPISODE = metajax.Episode(batch(0), batch(1))


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) + params["b"] - targets) ** 2)


def maml(inner=loss_fn, outer=None, optimizer=SGD):
    return metajax.maml(inner, optimizer, steps=2, outer_loss=outer)


def query(loss_fn):
    return lambda adapted, episode: loss_fn(adapted, episode.query)


GOOD = maml()


def no_targets(params, batch):
    return jnp.mean((batch.inputs @ params["w"] + params["b"]) ** 2)


def no_batch(params, batch):
    return jnp.sum(params["w"] ** 2) + params["b"] ** 2


def root_of_zero(params, batch):
    return loss_fn(params, batch) + jnp.sqrt(jnp.sum((0 * params["w"]) ** 2))


@jax.custom_vjp
def wrongly_differentiated(x):
    return x**2


wrongly_differentiated.defvjp(lambda x: (x**2, x), lambda x, cotangent: (x * cotangent,))


def wrong_gradient(params, batch):
    return wrongly_differentiated(loss_fn(params, batch))


def by_numpys_random_numbers():
    random = np.random.default_rng(0)

    def noisy(params, batch):
        return loss_fn(params, batch) * (1 + random.random())

    return maml(noisy)


def by_a_counter():
    calls = itertools.count(1)

    def scaled(params, batch):
        return loss_fn(params, batch) / next(calls)

    return maml(loss_fn, query(scaled))


def adapts_into_half_precision(params, support, observe=None):
    adapted, info = GOOD.adapt(params, support, observe=observe)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), adapted), info


def without_observe(params, support):
    return GOOD.adapt(params, support)


def in_another_shape(params, episode):
    gradient, metrics = task_gradient(GOOD)(params, episode)
    return gradient | {"b": gradient["b"][None]}, metrics


BROKEN = {
    "inner loss without targets": (
        lambda: maml(no_targets, query(loss_fn)),
        {"support targets"},
        "the loss of the inner loop ignores the targets",
    ),
    "loss without its batch": (
        lambda: maml(no_batch, query(loss_fn)),
        {"support", "support targets"},
        "another support set leaves the adapted parameters as they are",
    ),
    "a rate of zero": (
        lambda: maml(optimizer=optax.sgd(0.0)),
        {"support", "support targets", "improvement"},
        "or no step is taken",
    ),
    "uphill": (
        lambda: maml(optimizer=optax.sgd(-0.1)),
        {"improvement"},
        "the inner learning rate is too large, or the steps go uphill",
    ),
    "scored with the initial parameters": (
        lambda: maml(outer=lambda adapted, episode: loss_fn(PARAMS, episode.query)),
        {"support", "support targets", "adapted", "gradient", "improvement"},
        "it uses others, such as the initial ones, that it closes over",
    ),
    "scored on the support set": (
        lambda: maml(outer=lambda adapted, episode: loss_fn(adapted, episode.support)),
        {"query", "query targets"},
        "so it doesn't score the query set",
    ),
    "a query loss without targets": (
        lambda: maml(outer=query(no_targets)),
        {"query targets"},
        "so it doesn't score the query set by its targets",
    ),
    "cut off from its parameters": (
        lambda: maml(outer=query(lambda p, b: loss_fn(jax.lax.stop_gradient(p), b))),
        {"gradient", "finite differences"},
        "the meta-gradient is exactly zero everywhere: a stop_gradient",
    ),
    "a root of zero": (
        lambda: maml(outer=query(root_of_zero)),
        {"finite", "finite differences"},
        "look for a square root, norm, logarithm or division at zero",
    ),
    "a wrong derivative": (
        lambda: metajax.maml(
            loss_fn, SGD, steps=1, mode=metajax.unrolled(), outer_loss=query(wrong_gradient)
        ),
        {"finite differences"},
        "differs from the finite difference",
    ),
    "first order, and checked as if it weren't": (
        lambda: metajax.maml(loss_fn, SGD, steps=2, mode=metajax.first_order()),
        {"finite differences"},
        "A first-order learner's do: skip=",
    ),
    "NumPy's random numbers": (
        by_numpys_random_numbers,
        {"jit", "vmap", "determinism"},
        "draw no random number but from a fixed jax.random.key",
    ),
    "Python state": (
        by_a_counter,
        {"jit", "vmap", "determinism"},
        "would be frozen into the program",
    ),
    "a Python number out of a traced one": (
        lambda: maml(lambda params, batch: float(loss_fn(params, batch))),
        {"adapt"},
        "raised ConcretizationTypeError",
    ),
    "a loss for each example": (
        lambda: maml(lambda params, batch: (batch.inputs @ params["w"] - batch.targets) ** 2),
        {"adapt"},
        "loss_fn must return a scalar, got shape (4,); average over the examples",
    ),
    "other types after adaptation": (
        lambda: GOOD._replace(adapt=adapts_into_half_precision),
        {"adapt"},
        "leaf 'b' becomes float16[] by adaptation and was float32[]",
    ),
    "adapt without observe": (
        lambda: GOOD._replace(adapt=without_observe),
        {"adapt"},
        "unexpected keyword argument 'observe'",
    ),
    "a loss without metrics": (
        lambda: GOOD._replace(loss=lambda adapted, episode: loss_fn(adapted, episode.query)),
        {"loss"},
        "loss must return (loss, metrics) with a dict",
    ),
    "integer parameters": (
        lambda: GOOD._replace(init=lambda params: params | {"count": jnp.array(3)}),
        {"init"},
        "leaf 'count' is int32, which has no gradient",
    ),
    "a gradient of another shape": (
        lambda: GOOD._replace(gradient=in_another_shape),
        {"gradient", "retrace"},
        "were traced 3 times",
    ),
}


QUICK = {"labels", "support", "support targets", "query", "query targets", "adapted"}
"""Checks that share one small program: these are made of all. Those expected to fail are too."""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said(name):
    build, expected, words = BROKEN[name]
    skip = set(contract.CHECKS) - contract.ESSENTIAL - QUICK - expected
    report = metajax.check_learner(build(), PARAMS, EPISODE, skip=skip)
    failed = {check.name: check.sentence for check in report.failed}
    assert set(failed) == expected, str(report)
    assert any(words in sentence for sentence in failed.values()), str(report)
    assert words in str(report)
    with pytest.raises(metajax.CheckError, match="checks failed:"):
        report.raise_if_failed()


@pytest.mark.slow
def test_what_is_right_passes_every_check():
    report = metajax.check_learner(GOOD, PARAMS, EPISODE)
    assert report.raise_if_failed() is report
    assert [check.name for check in report.checks] == list(contract.CHECKS)
    others = {check.name for check in report.checks if check.passed is None}
    assert others == {"labels", "predict", "padding"}, str(report)
    assert str(report).count("\n") + 1 == len(contract.CHECKS)


def test_tasks_may_be_drawn_and_zeros_may_hide_what_matters():
    sample = lambda key: metajax.Episode(*(batch(i) for i in (0, 1)))._replace(query=batch(2))
    hidden = lambda params, batch: loss_fn({"w": params["w"] * params["b"], "b": 0.0}, batch)
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    only = {"init", "adapt", "loss", "support", "query"}
    report = metajax.check_learner(maml(hidden), params, sample, skip=set(contract.CHECKS) - only)
    assert report.passed
    sentences = {check.name: check.sentence for check in report.checks}
    assert "not just at these parameters" in sentences["support"]
    assert sentences["jit"] == "left out, as asked"


def classes(labels, loss):
    """Three logits, and targets as given: the report on labels alone."""
    inputs = jax.random.normal(jax.random.key(2), (len(labels), 3))
    task = metajax.Batch(inputs, jnp.array(labels))

    def loss_fn(params, batch):
        return loss(batch.inputs @ params, batch.targets)

    learner = metajax.maml(loss_fn, SGD, steps=1)
    episode = metajax.Episode(task, task)
    return lambda **options: metajax.check_learner(
        learner,
        jnp.eye(3),
        episode,
        skip=set(contract.CHECKS) - {"init", "adapt", "loss", "labels"},
        **options,
    )


def gathered(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def one_hot(logits, targets):
    return -jnp.mean(jnp.sum(jax.nn.one_hot(targets, 3) * jax.nn.log_softmax(logits), axis=-1))


def clipped(logits, targets):
    rows = jnp.arange(len(targets))
    return -jax.nn.log_softmax(logits).at[rows, targets].get(mode="clip").mean()


@pytest.mark.parametrize(
    ("loss", "what_it_does"),
    [(gathered, "it would be NaN"), (one_hot, "count for nothing"), (clipped, "the last class")],
)
def test_labels_that_are_no_class(loss, what_it_does):
    right = classes([0, 1, 2, 1], loss)()
    assert right.passed, str(right)
    assert what_it_does in str(right)
    wrong = classes([1, 2, 3, 4] if loss is clipped else [1, 2, 3, 1], loss)
    (check,) = wrong().failed
    assert check.name == "labels"
    assert f"go from 1 to {4 if loss is clipped else 3}" in check.sentence
    assert what_it_does in check.sentence
    (check,) = wrong(n_way=3).failed
    assert "and n_way=3 means 0 to 2" in check.sentence


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"skip names no check: \['speed'\]; they are \['init'"):
        metajax.check_learner(GOOD, PARAMS, EPISODE, skip=("speed",))
    with pytest.raises(ValueError, match="n_way must be at least 1, got 0"):
        metajax.check_learner(GOOD, PARAMS, EPISODE, n_way=0)


def test_other_values():
    key = jax.random.key(0)
    assert not alike(leaf_changed(jnp.zeros(3), key), jnp.zeros(3))
    assert leaf_changed(jnp.array([2, 5, 2]), key).tolist() == [3, 2, 3]
    assert leaf_changed(jnp.array([True]), key).tolist() == [True]
    assert parting(jnp.array([jnp.nan, 1.0]), jnp.array([jnp.nan, 1.0]), 1e-6) is None
    assert "nan" in parting(jnp.array([jnp.nan, 1.0]), jnp.array([0.0, 1.0]), 1e-6)


def flat(value=0.0, targets=0.0):
    return metajax.Batch(jnp.full((4, 3), value), jnp.full(4, targets))


ONE_CLASS = metajax.Batch(batch(0).inputs, jnp.zeros(4, jnp.int32))
HOLED = batch(0)._replace(inputs=batch(0).inputs.at[0, 0].set(jnp.nan))
SAME = metajax.Batch(jnp.tile(batch(0).inputs[:1], (4, 1)), batch(0).targets)


@pytest.mark.parametrize(
    ("episode", "words"),
    [
        (metajax.Episode(flat(), flat()), "the support set's inputs are all 0"),
        (metajax.Episode(batch(0), flat()), "the query set's inputs are all 0"),
        (metajax.Episode(HOLED, batch(1)), "the support set's inputs have a NaN or an infinity"),
        (metajax.Episode(tuple(flat()), tuple(flat())), "the support set's inputs are all 0"),
        (metajax.Episode(ONE_CLASS, ONE_CLASS), "the support set's targets are all 0"),
    ],
)
def test_data_that_tell_nothing_are_named_and_the_learner_is_not_blamed(episode, words):
    def still(params, batch):  # its loss and its gradient are zero where the data are
        return jnp.mean(((batch[0] - batch[0].mean(axis=0)) @ params["w"] * batch[1]) ** 2)

    only = {"init", "adapt", "loss", "data", "finite", "gradient", "improvement"}
    skip = set(contract.CHECKS) - only
    report = metajax.check_learner(maml(still), PARAMS, episode, skip=skip)
    (failed,) = report.failed
    assert failed.name == "data"
    assert words in failed.sentence
    told = [check for check in report.checks if check.name in ("gradient", "improvement", "finite")]
    for check in told:
        assert check.passed is True or words in check.sentence, str(report)
    assert any(check.passed is None for check in told)


def test_a_broken_learner_is_still_blamed_where_the_data_tell_it():
    uphill = maml(optimizer=optax.sgd(-0.1))
    skip = set(contract.CHECKS) - {"init", "adapt", "loss", "data", "improvement"}
    report = metajax.check_learner(uphill, PARAMS, EPISODE, skip=skip)
    assert [check.name for check in report.failed] == ["improvement"]


def test_uniform_data_of_which_no_check_fails_are_only_mentioned():
    constant = metajax.Batch(batch(0).inputs, jnp.full(4, 0.7))
    skip = set(contract.CHECKS) - {"init", "adapt", "loss", "data", "improvement"}
    episode = metajax.Episode(constant, constant)
    report = metajax.check_learner(GOOD, PARAMS, episode, skip=skip)
    assert report.passed
    (mentioned,) = [check for check in report.checks if check.name == "data"]
    assert mentioned.passed is None
    assert "targets are all 0.7" in mentioned.sentence


def test_what_is_the_same_in_a_batch():
    inputs = jnp.concatenate([batch(0).inputs, jnp.full((1, 3), jnp.nan)])
    mask = jnp.array([True] * 4 + [False])
    padded = metajax.MaskedBatch(inputs, jnp.arange(5), mask)
    assert sameness(padded) is None
    assert sameness(padded._replace(mask=None)) == "inputs have a NaN or an infinity"
    assert sameness(padded._replace(targets=jnp.array([1, 1, 1, 1, 0]))) == "targets are all 1"
    assert sameness(SAME) == "inputs are the same in every example"
    assert sameness(1.0) is None
    assert sameness((1.0, jnp.zeros(()))) is None
    assert sameness(None) is None
    assert sameness({"x": jnp.full((2, 3), 0.7)}) == "arrays are all 0.7"
    assert sameness({"x": jnp.zeros((2, 3)), "y": jnp.arange(2)}) is None


@pytest.mark.slow
def test_what_is_no_parameter_is_named():
    """Running statistics and a counter beside the parameters are neither adapted nor learned."""
    params = {"params": PARAMS, "batch_stats": {"mean": jnp.zeros(3), "count": jnp.array(2)}}

    def centred(params, batch):
        inputs = batch.inputs - params["batch_stats"]["mean"]
        return loss_fn(params["params"], batch._replace(inputs=inputs))

    report = metajax.check_learner(maml(centred), params, EPISODE)
    assert report.passed, str(report)
    sentence = report.checks[0].sentence
    assert sentence.startswith("leaves: 2; no parameters")
    assert sentence.endswith("batch_stats/count, batch_stats/mean")
