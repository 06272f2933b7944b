"""Bad input to the networks and to self-evolution; to language models, see tests/lm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from table import Row, each, refused

from experiments.evolution.strings.tasks import digits
from metajax import evolve
from metajax.evolve import Completions, Levels, Tasks, Verdict, verifiers
from metajax.models import MLP, Conv, Conv4, Normalization, ResNet12, Transformer, TransformerConfig

KEY = jax.random.key(0)
SIZES = {"vocab_size": 14, "width": 8, "n_layers": 1, "n_heads": 2, "max_length": 32}
CONFIG = TransformerConfig.nope(**SIZES)
MODEL = Transformer(CONFIG)
COPY = digits("copy")
IMAGES = jnp.zeros((2, 8, 8, 1))


@functools.cache
def params():
    return MODEL.init(KEY, jnp.zeros((1, 2), int))["params"]


def run(module, *inputs, **options):
    return module.init(KEY, *inputs, **options)


NETWORKS = [
    Row("mlp-width", lambda: run(MLP(features=(0,)), jnp.zeros((1, 3))), ("features", "got 0")),
    Row("conv-rank", lambda: run(Conv(2), IMAGES[0]), ("inputs must be images", "(8, 8, 1)")),
    Row("conv-strides", lambda: run(Conv(2, strides=0), IMAGES), ("strides must be", "got 0")),
    Row("conv-kernel", lambda: run(Conv(2, (3,)), IMAGES), ("kernel_size", "two dimensions")),
    Row("conv-features", lambda: run(Conv(-1), IMAGES), ("features must be", "got -1")),
    Row("conv4-form", lambda: run(Conv4(5, form="pools"), IMAGES), ("form", "'pools'")),
    Row("conv4-norm", lambda: run(Conv4(5, 2, norm="layer"), IMAGES), ("norm", "'layer'")),
    Row("conv4-small", lambda: run(Conv4(5, 2, "pool"), IMAGES), ("too small", "(2, 1, 1, 2)")),
    Row(
        "resnet-small",
        lambda: run(ResNet12(5, (2, 2, 2, 2)), IMAGES),
        ("too small", "(2, 1, 1, 2)"),
    ),
    Row("norm-rank", lambda: run(Normalization("batch"), jnp.ones(3)), ("channels", "(3,)")),
    Row(
        "norm-reference",
        lambda: run(Normalization("support"), jnp.ones((3, 2)), reference=9),
        ("reference must be between 1 and the 3 examples", "9"),
    ),
]


def parts(**others):
    tasks = COPY.draw(KEY, [2, 2])
    completions = Completions(
        np.zeros((2, 1, 4), int), np.zeros((2, 1, 4)), np.ones((2, 1), int), np.ones((2, 1), bool)
    )
    held_out = evolve.held_out_tasks(COPY, KEY, known=range(1, 3), frontier=range(3, 4), each=2)
    made = evolve.EvolveConfig(
        propose=lambda params, key, levels: tasks,
        solve=lambda params, key, tasks: completions,
        verifier=verifiers.keep_all(),
        update=evolve.fine_tune(lambda p, t: t, optax.sgd(0.1), steps=1, mixture=lambda kept: kept),
        gate=evolve.accept_all(),
        curriculum=evolve.one_harder(2),
        real=lambda key: None,
        held_out=lambda levels: held_out,
    )
    return made._replace(**others)


def one_round(**others):
    own = parts(**others)
    start = {"rounds": 1, "proposals": 2, "longest": 8, "vocab_size": 14}
    return next(evolve.evolve(own, evolve.init_state(own, {"w": jnp.ones(1)}, KEY, **start)))


def judged(verdict):
    return {"verifier": evolve.Verifier("own", lambda tasks, completions: verdict)}


SOLVER = {"answer_length": COPY.answer_length, "end": COPY.end}
ONES, NONE = np.ones(2), np.zeros(2, int)
SELF = [
    Row("count", lambda: evolve.program_proposer(COPY, count=0), ("count must be", "got 0")),
    Row(
        "levels-order",
        lambda: evolve.program_proposer(COPY, count=2)(None, KEY, Levels(3, 2)),
        ("the first not above the last", "first=3"),
    ),
    Row("solver-chunk", lambda: evolve.model_solver(MODEL, **SOLVER, chunk=0), ("chunk", "got 0")),
    Row("solver-end", lambda: evolve.model_solver(MODEL, **SOLVER | {"end": "="}), ("end", "'='")),
    Row(
        "solver-tasks",
        lambda: evolve.model_solver(MODEL, **SOLVER)(params(), KEY, Tasks(ONES, ONES, ONES, ONES)),
        ("tasks must be prompts", "(2,)"),
    ),
    Row(
        "share", lambda: verifiers.majority_vote(0), ("at_least must be above 0 and at most 1", "0")
    ),
    Row("share-text", lambda: verifiers.majority_vote("0.7"), ("at_least", "'0.7'")),
    Row("share-nan", lambda: verifiers.confident(float("nan")), ("at_least", "nan")),
    Row("band", lambda: verifiers.agreement_band(0.8, 0.3), ("low must be at most high", "0.8")),
    Row("mastered", lambda: evolve.one_harder(1, mastered=2), ("mastered must be in [0, 1]", "2")),
    Row(
        "margin",
        lambda: evolve.non_inferior(None, None, margin=0),
        ("margin must lie between 0 and 1", "0"),
    ),
    Row("kl", lambda: evolve.grpo(len, optax.sgd(1.0), steps=1, kl=-1), ("kl", "-1")),
    Row(
        "frontier",
        lambda: evolve.held_out_tasks(COPY, KEY, known=range(1, 2), frontier=range(0)),
        ("frontier must hold at least one level",),
    ),
    Row(
        "proposed-number",
        lambda: one_round(propose=lambda p, k, levels: COPY.draw(k, [2])),
        ("propose must return prompts [2, width]", "(1,"),
    ),
    Row(
        "completions",
        lambda: one_round(solve=lambda p, k, tasks: Completions(*4 * [np.ones(2)])),
        ("solve must return tokens", "(2,)"),
    ),
    Row(
        "verdict-shape",
        lambda: one_round(**judged(Verdict(NONE, np.ones(3), ONES))),
        ("weights [2]", "(3,)"),
    ),
    Row(
        "verdict-weight",
        lambda: one_round(**judged(Verdict(NONE, 2 * ONES, ONES))),
        ("weights in [0, 1]", "2.0"),
    ),
    Row(
        "verdict-choice",
        lambda: one_round(**judged(Verdict(NONE + 5, ONES, ONES))),
        ("choices among the 1 samples", "5"),
    ),
]


@each([*NETWORKS, *SELF])
def test_it_is_refused_by_name(row):
    refused(row.call, row.words)
