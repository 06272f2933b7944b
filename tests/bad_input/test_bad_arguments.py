"""Bad values of arguments, by their kind, and data that don't fit: refused, and named."""

import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from toy import embed, init_params, loss_fn, make_sampler

import metajax
from experiments.evolution.strings.tasks import digits
from metajax import data, evolve, lm, losses
from metajax.evolve import Completions, Levels, Tasks, Verdict, verifiers
from metajax.learners import svm_dual
from metajax.models import MLP, Conv, Conv4, Normalization, ResNet12, Transformer, TransformerConfig

PACKAGE = pathlib.Path(metajax.__file__).parent
SGD, KEY, PARAMS, SAMPLE = optax.sgd(0.1), jax.random.key(0), init_params(), make_sampler()
EPISODE = SAMPLE(KEY)
LEARNER = metajax.maml(loss_fn, SGD, steps=1)
TASKS = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), EPISODE)
CLASSES = metajax.Batch(jnp.ones((4, 3)), jnp.array([0, 1, 0, 1]))
PROTO = metajax.prototypical(embed, n_way=2)
MODEL = Transformer(
    TransformerConfig.nope(vocab_size=14, width=8, n_layers=1, n_heads=2, max_length=32)
)
COPY = digits("copy")
SOLVER = {"answer_length": COPY.answer_length, "end": COPY.end}
IMAGES = jnp.zeros((2, 8, 8, 1))
DATA = data.from_arrays(np.zeros((8, 2, 2, 1), np.uint8), np.repeat([0, 1], 4))
NAN = float("nan")

COUNT = (0, -1, 1.5, "2", NAN)
AT_LEAST_TWO = (1, *COUNT)
NOT_NEGATIVE = (-1, 1.5, "2")
RATE = (0.0, -0.1, NAN, float("inf"), "1")
SHARE = (0, -0.1, 1.5, NAN, "0.7")
WORD = ("other", 3)


def adapt(loss=loss_fn, params=PARAMS, support=EPISODE.support, **options):
    return metajax.adapt(loss, params, support, **{"optimizer": SGD, "steps": 1, **options})


def trainer(learner=LEARNER, sample=SAMPLE, **options):
    return metajax.meta_trainer(learner, SGD, sample, **{"meta_batch": 2, **options})


def gradient(episodes=TASKS, params=PARAMS, learner=LEARNER, **options):
    return metajax.meta_gradient(learner, **options)(params, episodes)


def evaluate(learner=LEARNER, key=KEY, **options):
    return metajax.evaluate(learner, PARAMS, SAMPLE, key, **{"episodes": 2, **options})


def grpo(**options):
    return evolve.grpo(len, SGD, **{"steps": 1, **options})


def sampler(**options):
    return data.episode_sampler(DATA, **{"n_way": 2, "k_shot": 1, "query": 1, **options})


def network(module, inputs=IMAGES, **options):
    return module.init(KEY, inputs, **options)


ARGUMENTS = [
    ("steps", COUNT, lambda v: adapt(steps=v)),
    ("steps", COUNT, lambda v: metajax.maml(loss_fn, SGD, steps=v)),
    ("checkpoint_levels", NOT_NEGATIVE, lambda v: metajax.mixed(checkpoint_levels=v)),
    ("batch_size", COUNT, lambda v: metajax.reptile(loss_fn, SGD, steps=1, batch_size=v)),
    ("learning_rate", RATE, lambda v: metajax.meta_sgd(loss_fn, learning_rate=v, steps=1)),
    ("n_way", AT_LEAST_TWO, lambda v: metajax.prototypical(embed, n_way=v)),
    ("distance", WORD, lambda v: metajax.prototypical(embed, n_way=2, distance=v)),
    ("penalty", RATE, lambda v: metajax.r2d2(embed, n_way=2, penalty=v)),
    ("penalty", RATE, lambda v: metajax.linear_probe(embed, n_way=2, penalty=v)),
    ("regularisation", RATE, lambda v: metajax.metaoptnet(embed, n_way=2, regularisation=v)),
    ("iterations", COUNT, lambda v: svm_dual(IMAGES, IMAGES, regularisation=1.0, iterations=v)),
    ("proximal", RATE, lambda v: metajax.imaml(loss_fn, SGD, steps=1, proximal=v)),
    ("tasks_per_chunk", (*COUNT, "Auto"), lambda v: gradient(tasks_per_chunk=v)),
    ("memory_budget", COUNT, lambda v: gradient(tasks_per_chunk="auto", memory_budget=v)),
    ("meta_batch", COUNT, lambda v: trainer(meta_batch=v)),
    ("non_finite", WORD, lambda v: trainer(non_finite=v)),
    ("steps", COUNT, lambda v: trainer().run(trainer().init(PARAMS, KEY), v)),
    ("key", (0, None, jax.random.split(KEY, 3)), lambda v: trainer().init(PARAMS, v)),
    ("key", (0, None), lambda v: evaluate(key=v)),
    ("episodes", AT_LEAST_TWO, lambda v: evaluate(episodes=v)),
    ("n_tasks", COUNT, lambda v: metajax.task_mesh(v)),
    ("n_way", COUNT, lambda v: sampler(n_way=v)),
    ("k_shot", COUNT, lambda v: sampler(k_shot=v)),
    ("query", COUNT, lambda v: sampler(query=v)),
    ("features", COUNT, lambda v: network(MLP(features=(v,)), jnp.zeros((1, 3)))),
    ("features", COUNT, lambda v: network(Conv(v))),
    ("strides", COUNT, lambda v: network(Conv(2, strides=v))),
    ("form", WORD, lambda v: network(Conv4(5, form=v))),
    ("norm", WORD, lambda v: network(Conv4(5, 2, norm=v))),
    ("count", COUNT, lambda v: evolve.program_proposer(COPY, count=v)),
    ("chunk", COUNT, lambda v: evolve.model_solver(MODEL, **SOLVER, chunk=v)),
    ("end", ("=", -1), lambda v: evolve.model_solver(MODEL, **SOLVER | {"end": v})),
    ("at_least", SHARE, verifiers.majority_vote),
    ("at_least", SHARE, verifiers.confident),
    ("mastered", (2, -1, NAN), lambda v: evolve.one_harder(1, mastered=v)),
    ("margin", SHARE, lambda v: evolve.non_inferior(None, None, margin=v)),
    *((n, COUNT, lambda v, n=n: grpo(**{n: v})) for n in ("steps", "batch", "micro_batches")),
    ("temperature", RATE, lambda v: grpo(temperature=v)),
    ("kl", (-1, NAN, "1"), lambda v: grpo(kl=v)),
    ("clip", RATE, lambda v: grpo(clip=v)),
    ("normalise", ("token", 0.0, -1.0), lambda v: grpo(normalise=v)),
    ("real_share", (*SHARE, 1), lambda v: grpo(real_share=v)),
    ("specials", (["a", "a"], [""]), lambda v: lm.CharTokenizer("xyz", tuple(v))),
]
"""The name, bad values, and what is called with one."""


def refused(call, *words):
    """The call ends in one of metajax's errors, raised by metajax, with these words."""
    with pytest.raises(metajax.MetajaxError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert PACKAGE in pathlib.Path(last.filename).parents, last


@pytest.mark.parametrize(
    ("name", "value", "call"),
    [
        pytest.param(name, value, call, id=f"{name}-{index}-{number}")
        for index, (name, values, call) in enumerate(ARGUMENTS)
        for number, value in enumerate(values)
    ],
)
def test_a_bad_value_is_refused_by_its_argument_s_name(name, value, call):
    refused(lambda: call(value), name)


def of_class(learner=PROTO, support=CLASSES, query=CLASSES):
    adapted, _ = learner.adapt(PARAMS, support)
    return learner.loss(adapted, metajax.Episode(support, query))


def batch_loss(*batch):
    loss = losses.cross_entropy(lambda params, inputs: inputs @ params["body"])
    return loss(PARAMS, batch[0] if len(batch) == 1 else batch)


def spent():
    built = trainer()
    state = built.init(PARAMS, KEY)
    state.step.delete()  # as a call that takes the state does, without its compilation
    return built.step(state)


def other_inputs(params=None, width=3):
    own, apply = metajax.from_linen(MLP(features=(2,)), KEY, jnp.zeros((1, 3)))
    return apply(own if params is None else params, jnp.zeros((4, width)))


def squares():
    return losses.mean_squared_error(lambda params, x: x)(PARAMS, (jnp.ones((4, 3)), FOURS))


def one_round(**others):
    tasks = COPY.draw(KEY, [2, 2])
    ones = np.ones((2, 1), int)
    completions = Completions(np.zeros((2, 1, 4), int), np.zeros((2, 1, 4)), ones, ones > 0)
    held_out = evolve.held_out_tasks(COPY, KEY, known=range(1, 3), frontier=range(3, 4), each=2)
    own = evolve.EvolveConfig(
        propose=lambda params, key, levels: tasks,
        solve=lambda params, key, tasks: completions,
        verifier=verifiers.keep_all(),
        update=evolve.fine_tune(lambda p, t: t, SGD, steps=1, mixture=lambda kept: kept),
        gate=evolve.accept_all(),
        curriculum=evolve.one_harder(2),
        real=lambda key: None,
        held_out=lambda levels: held_out,
    )._replace(**others)
    start = {"rounds": 1, "proposals": 2, "longest": 8, "vocab_size": 14}
    return next(evolve.evolve(own, evolve.init_state(own, {"w": jnp.ones(1)}, KEY, **start)))


def judged(*verdict):
    verifier = evolve.Verifier("own", lambda tasks, completions: Verdict(*verdict))
    return one_round(verifier=verifier)


def solved_ones():
    return evolve.model_solver(MODEL, **SOLVER)(PARAMS, KEY, Tasks(ONES, ONES, ONES, ONES))


FOURS, INTS, ONES, NONE = jnp.ones((4, 1)), jnp.zeros(4, int), np.ones(2), np.zeros(2, int)
INPUTS = jnp.ones((4, 3))
MASKED = metajax.MaskedBatch
DO_NOT_FIT = [
    (lambda: adapt(lambda p, b: None), "loss_fn must return", "NoneType"),
    (lambda: adapt(lambda p, b: b.inputs @ p["body"][:, 0]), "scalar", "(8,)"),
    (lambda: adapt(lambda p, b: jnp.array(1)), "loss_fn", "int32"),
    (lambda: adapt(params={}), "params has no floating-point leaf"),
    (lambda: adapt(trainable=lambda path: False), "selects no leaf", "body"),
    (lambda: adapt(trainable={"a": True}), "trainable", "prefix"),
    (lambda: batch_loss(INPUTS), "a batch must be a Batch"),
    (lambda: batch_loss((1, 2, 3)), "pair (inputs, targets)"),
    (lambda: batch_loss(INPUTS, jnp.zeros(3, int)), "as many inputs as targets", "(3,)"),
    (lambda: batch_loss(INPUTS, jnp.zeros((4, 3), int)), "targets [examples]", "(4, 3)"),
    (lambda: batch_loss(INPUTS, jnp.zeros(4)), "targets must be integer", "float32"),
    (lambda: batch_loss(MASKED(INPUTS, INTS, jnp.ones(3))), "batch.mask", "(3,)"),
    (lambda: batch_loss(MASKED(INPUTS, INTS, None, jnp.ones(2))), "batch.classes", "(2,)"),
    (squares, "targets' shape (4, 1)", "(4, 3)"),
    (lambda: of_class(support=metajax.Batch(INPUTS, FOURS.astype(int))), "support targets"),
    (lambda: of_class(query=metajax.Batch(jnp.ones((4, 2)), INTS)), "of one shape", "(4, 2)"),
    (lambda: of_class(query=metajax.Batch(INPUTS, jnp.zeros(5, int))), "as many inputs", "(5,)"),
    (lambda: other_inputs(width=5), "params don't fit MLP", "(3, 2)"),
    (lambda: other_inputs({"kernel": jnp.zeros((3, 2))}), "params don't fit MLP", "dense_0"),
    (lambda: gradient(TASKS._replace(query=EPISODE.query)), "task axis"),
    (lambda: gradient(jax.tree.map(lambda x: x[:0], TASKS)), "number of task", "0"),
    (lambda: gradient(params={}), "params", "at least one array"),
    (lambda: trainer(sample=lambda key: tuple(EPISODE)), "sample", "Episode("),
    (lambda: trainer(sample=lambda key: metajax.Episode("a", "b")), "sample returns", "str 'a'"),
    (lambda: trainer(mesh=Mesh(np.array(jax.devices()[:1]), ("batch",))), "axis 'tasks'"),
    (lambda: trainer(meta_batch=3, mesh=metajax.task_mesh(2)), "3", "2 devices"),
    (spent, "state was consumed", "Go on with the state"),
    (lambda: evaluate(LEARNER._replace(loss=lambda a, e: (1.0, [1.0]))), "dict of metrics"),
    (lambda: metajax.carry_statistics({}, {"loss": 1}), "batch_stats", "['loss']"),
    (lambda: network(Conv(2), IMAGES[0]), "inputs must be images", "(8, 8, 1)"),
    (lambda: network(Conv(2, (3,))), "kernel_size", "two dimensions"),
    (lambda: network(Conv4(5, 2, "pool")), "too small", "(2, 1, 1, 2)"),
    (lambda: network(ResNet12(5, (2, 2, 2, 2))), "too small", "(2, 1, 1, 2)"),
    (lambda: network(Normalization("batch"), jnp.ones(3)), "channels", "(3,)"),
    (lambda: network(Normalization("support"), jnp.ones((3, 2)), reference=9), "reference", "9"),
    (lambda: evolve.program_proposer(COPY, count=2)(None, KEY, Levels(3, 2)), "first=3"),
    (solved_ones, "tasks must be prompts", "(2,)"),
    (lambda: verifiers.agreement_band(0.8, 0.3), "low must be at most high", "0.8"),
    (lambda: one_round(propose=lambda p, k, levels: COPY.draw(k, [2])), "propose must return"),
    (lambda: one_round(solve=lambda *of: Completions(*4 * [ONES])), "solve must return tokens"),
    (lambda: judged(NONE, np.ones(3), ONES), "weights [2]", "(3,)"),
    (lambda: judged(NONE, 2 * ONES, ONES), "weights in [0, 1]", "2.0"),
    (lambda: judged(NONE + 5, ONES, ONES), "choices among the 1 samples", "5"),
]
"""What would be wrong in silence, or hard to understand in Python's own words."""


@pytest.mark.parametrize("row", DO_NOT_FIT, ids=[row[1] for row in DO_NOT_FIT])
def test_what_does_not_fit_is_refused_by_name(row):
    refused(*row)


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
        lambda: adapt(
            optimizer=optax.GradientTransformation(lambda p: (), fails),
            steps=2, mode=metajax.first_order(),
        ),
    ],
)  # fmt: skip
def test_a_users_own_error_reaches_them(call):
    with pytest.raises(OwnError, match="mine"):
        call()
