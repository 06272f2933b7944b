"""Bad input to the core: adaptation, learners, meta-gradient, training, evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from table import Row, each, refused
from toy import embed, init_params, loss_fn, make_sampler

import metajax
from metajax import losses
from metajax.models import MLP

SGD = optax.sgd(0.1)
PARAMS = init_params()
SAMPLE = make_sampler()
EPISODE = SAMPLE(jax.random.key(0))
KEY = jax.random.key(0)
LEARNER = metajax.maml(loss_fn, SGD, steps=1)
CLASSES = metajax.Batch(jnp.ones((4, 3)), jnp.array([0, 1, 0, 1]))
TASKS = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), EPISODE)
linear = lambda params, inputs: inputs @ params["body"]
class_loss = losses.cross_entropy(linear)


def adapt(loss_fn=loss_fn, params=PARAMS, support=EPISODE.support, **options):
    return metajax.adapt(loss_fn, params, support, **{"optimizer": SGD, "steps": 1, **options})


def trainer(learner=LEARNER, optimizer=SGD, sample=SAMPLE, **options):
    return metajax.meta_trainer(learner, optimizer, sample, **{"meta_batch": 2, **options})


def evaluate(learner=LEARNER, params=PARAMS, sample=SAMPLE, key=KEY, **options):
    return metajax.evaluate(learner, params, sample, key, **{"episodes": 2, **options})


def of_class(learner, support=CLASSES, query=CLASSES, params=PARAMS):
    adapted, _ = learner.adapt(params, support)
    return learner.loss(adapted, metajax.Episode(support, query))


def gradient(episodes=TASKS, params=PARAMS, learner=LEARNER, **options):
    return metajax.meta_gradient(learner, **options)(params, episodes)


def spent():
    built = trainer()
    state = built.init(PARAMS, KEY)
    state.step.delete()  # as a call that takes the state does, without its compilation
    return built.step(state)


def other_width():
    params, apply = metajax.from_linen(MLP(features=(2,)), KEY, jnp.zeros((1, 3)))
    return apply(params, jnp.zeros((4, 5)))


def other_model():
    _, apply = metajax.from_linen(MLP(features=(2,)), KEY, jnp.zeros((1, 3)))
    return apply({"kernel": jnp.zeros((3, 2))}, jnp.zeros((4, 3)))


PROTO = metajax.prototypical(embed, n_way=2)
OTHER_MESH = Mesh(np.array(jax.devices()[:1]), ("batch",))

ADAPTATION = [
    *[
        Row(f"steps-{value!r}", lambda value=value: adapt(steps=value), ("steps must be", shown))
        for value, shown in [
            (0, "got 0"),
            (-1, "got -1"),
            (1.5, "1.5"),
        ]
    ],
    Row("loss-none", lambda: adapt(lambda p, b: None), ("loss_fn must return", "NoneType")),
    Row(
        "loss-vector",
        lambda: adapt(lambda p, b: b.inputs @ p["body"][:, 0]),
        ("loss_fn must return a scalar", "(8,)", "average over the examples"),
    ),
    Row("loss-integer", lambda: adapt(lambda p, b: jnp.array(1)), ("loss_fn", "int32")),
    Row("params-empty", lambda: adapt(params={}), ("params has no floating-point leaf",)),
    Row("params-integers", lambda: adapt(params={"a": jnp.arange(3)}), ("params", "floating")),
    Row("trainable", lambda: adapt(trainable=lambda path: False), ("selects no leaf", "body")),
    Row("trainable-prefix", lambda: adapt(trainable={"a": True}), ("trainable", "prefix")),
    Row("levels", lambda: metajax.mixed(checkpoint_levels=-1), ("checkpoint_levels", "-1")),
]

LEARNERS = [
    Row(
        "reptile-batch",
        lambda: metajax.reptile(loss_fn, SGD, steps=1, batch_size=0),
        ("batch_size must be at least 1", "0"),
    ),
    Row(
        "reptile-axes",
        lambda: metajax.reptile(loss_fn, SGD, steps=1, batch_size=2).adapt(
            PARAMS, metajax.Batch(jnp.ones((4, 3)), jnp.ones((3, 1)))
        ),
        ("support set", "example axis", "(4, 3)", "(3, 1)"),
    ),
    Row(
        "rates-params",
        lambda: metajax.meta_sgd(loss_fn, learning_rate=0.1, steps=1).adapt(
            PARAMS, EPISODE.support
        ),
        ("params must be a MetaSGDParams", "learner.init"),
    ),
    Row("n-way", lambda: metajax.prototypical(embed, n_way=1), ("n_way must be at least 2", "1")),
    Row(
        "distance",
        lambda: metajax.prototypical(embed, n_way=2, distance="euclid"),
        ("distance must be one of 'euclidean', 'cosine'", "'euclid'"),
    ),
    Row(
        "full-context",
        lambda: of_class(
            metajax.matching(embed, n_way=2, full_context=lambda p, s, q: s),
        ),
        ("full_context must return a pair",),
    ),
]

BATCHES = [
    Row("batch-array", lambda: class_loss(PARAMS, jnp.ones((4, 3))), ("a batch must be a Batch",)),
    Row("batch-triple", lambda: class_loss(PARAMS, (1, 2, 3)), ("pair (inputs, targets)",)),
    Row("inputs-scalar", lambda: class_loss(PARAMS, (jnp.ones(()),) * 2), ("inputs", "()")),
    Row(
        "fewer-targets",
        lambda: class_loss(PARAMS, (jnp.ones((4, 3)), jnp.zeros(3, int))),
        ("as many inputs as targets", "(4, 3)", "(3,)"),
    ),
    Row(
        "one-hot-targets",
        lambda: class_loss(PARAMS, (jnp.ones((4, 3)), jnp.zeros((4, 3), int))),
        ("targets [examples]", "(4, 3)"),
    ),
    Row(
        "float-targets",
        lambda: class_loss(PARAMS, (jnp.ones((4, 3)), jnp.zeros(4))),
        ("targets must be integer class indices", "float32"),
    ),
    Row(
        "mask",
        lambda: class_loss(PARAMS, metajax.MaskedBatch(*CLASSES, jnp.ones(3))),
        ("batch.mask must be [examples] = [4]", "(3,)"),
    ),
    Row(
        "classes",
        lambda: class_loss(PARAMS, metajax.MaskedBatch(*CLASSES, None, jnp.ones(2))),
        ("batch.classes", "logits' classes, 3", "(2,)"),
    ),
    Row(
        "squares",
        lambda: losses.mean_squared_error(linear)(PARAMS, (jnp.ones((4, 3)), jnp.ones((4, 1)))),
        ("outputs of the targets' shape (4, 1)", "(4, 3)"),
    ),
    Row(
        "support-targets",
        lambda: of_class(PROTO, support=metajax.Batch(jnp.ones((4, 3)), jnp.zeros((4, 1), int))),
        ("support targets", "(4, 1)"),
    ),
    Row(
        "query-width",
        lambda: of_class(PROTO, query=metajax.Batch(jnp.ones((4, 2)), jnp.zeros(4, int))),
        ("examples of one shape", "(4, 3)", "(4, 2)"),
    ),
    Row(
        "query-labels",
        lambda: of_class(PROTO, query=metajax.Batch(jnp.ones((4, 3)), jnp.zeros(5, int))),
        ("as many inputs as targets", "(5,)"),
    ),
    Row("linen-width", other_width, ("params don't fit MLP", "(3, 2)")),
    Row("linen-model", other_model, ("params don't fit MLP", "dense_0")),
]

OUTER = [
    Row("leading-axes", lambda: gradient(TASKS._replace(query=EPISODE.query)), ("task axis",)),
    Row(
        "no-tasks", lambda: gradient(jax.tree.map(lambda x: x[:0], TASKS)), ("number of task", "0")
    ),
    Row("no-params", lambda: gradient(params={}), ("params", "at least one array")),
    Row("chunk", lambda: gradient(tasks_per_chunk=0), ("tasks_per_chunk must be at least 1", "0")),
    Row("chunk-name", lambda: gradient(tasks_per_chunk="Auto"), ("'auto' or None", "'Auto'")),
    Row("budget", lambda: gradient(memory_budget=1e9), ("memory_budget must be", "1000000000.0")),
    Row("meta-batch", lambda: trainer(meta_batch=0), ("meta_batch must be at least 1", "got 0")),
    Row("sample-tuple", lambda: trainer(sample=lambda key: tuple(EPISODE)), ("sample", "Episode(")),
    Row(
        "sample-none",
        lambda: trainer(sample=lambda key: None),
        ("what sample returns must be", "None"),
    ),
    Row(
        "sample-text",
        lambda: trainer(sample=lambda key: metajax.Episode("a", "b")),
        ("sample returns", "str 'a'"),
    ),
    Row("mesh-axes", lambda: trainer(mesh=OTHER_MESH), ("axis 'tasks'", "('batch',)")),
    Row("mesh-share", lambda: trainer(meta_batch=3, mesh=metajax.task_mesh(2)), ("3", "2 devices")),
    Row("no-devices", lambda: metajax.task_mesh(2, devices=[]), ("devices", "none")),
    Row("init-key", lambda: trainer().init(PARAMS, 0), ("key must be one random key", "int 0")),
    Row(
        "init-keys",
        lambda: trainer().init(PARAMS, jax.random.split(KEY, 3)),
        ("key must be one random key", "[3]"),
    ),
    Row("state-spent", spent, ("state was consumed", "Go on with the state")),
    Row("run-steps", lambda: trainer().run(trainer().init(PARAMS, KEY), 0), ("steps", "got 0")),
    Row("one-episode", lambda: evaluate(episodes=1), ("episodes must be at least 2", "got 1")),
    Row("evaluate-key", lambda: evaluate(key=0), ("key must be one random key", "int 0")),
    Row(
        "evaluate-one",
        lambda: metajax.evaluate_episodes(LEARNER, PARAMS, jax.tree.map(lambda x: x[:1], TASKS)),
        ("at least 2", "got 1"),
    ),
    Row(
        "metrics",
        lambda: evaluate(LEARNER._replace(loss=lambda a, e: (1.0, {"x": {"y": jnp.ones(2)}}))),
        ("metrics that are scalars", "'x'"),
    ),
    Row(
        "metrics-list",
        lambda: evaluate(LEARNER._replace(loss=lambda a, e: (1.0, [1.0]))),
        ("dict of metrics", "list"),
    ),
    Row("carried", lambda: metajax.carry_statistics({}, {"loss": 1}), ("batch_stats", "['loss']")),
]


@each([*ADAPTATION, *LEARNERS, *BATCHES, *OUTER])
def test_it_is_refused_by_name(row):
    refused(row.call, row.words)


class OwnError(Exception):
    """A user's."""


def fails(*_, **__):
    raise OwnError("mine")


@pytest.mark.parametrize(
    "call",
    [
        lambda: adapt(fails),
        lambda: adapt(observe=fails),
        lambda: adapt(select=fails),
        lambda: gradient(learner=metajax.maml(fails, SGD, steps=1)),
        lambda: trainer(sample=fails),
        lambda: evaluate(LEARNER._replace(loss=fails)),
        lambda: of_class(metajax.prototypical(fails, n_way=2)),
        lambda: metajax.adapt(
            loss_fn, PARAMS, EPISODE.support,
            optimizer=optax.GradientTransformation(lambda p: (), fails),
            steps=2, mode=metajax.first_order(),
        ),
    ],
)  # fmt: skip
def test_a_users_own_error_reaches_them(call):
    with pytest.raises(OwnError, match="mine"):
        call()
