"""Bad input to the networks, the language models and self-evolution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from table import Row, each, refused

from experiments.evolution.strings.tasks import digits
from metajax import evolve, lm
from metajax.evolve import Completions, Levels, Tasks, Verdict, verifiers
from metajax.lm import lora
from metajax.models import MLP, Conv, Conv4, Normalization, ResNet12, Transformer, TransformerConfig
from metajax.models.rotary import Rotary

KEY = jax.random.key(0)
SIZES = {"vocab_size": 14, "width": 8, "n_layers": 1, "n_heads": 2, "max_length": 32}
CONFIG = TransformerConfig.nope(**SIZES)
MODEL = Transformer(CONFIG)
COPY = digits("copy")
IMAGES = jnp.zeros((2, 8, 8, 1))


@functools.cache
def params():
    return MODEL.init(KEY, jnp.zeros((1, 2), int))["params"]


def generate(prompts=((1, 2),), key=None, own=None, model=MODEL, **options):
    own = params() if own is None else own
    return lm.generate(model, own, prompts, key, **{"max_new_tokens": 2, **options})


def factors(**options):
    return lora.init(params(), KEY, **{"rank": 2, "targets": "kernel", **options})


def other_params():
    other = Transformer(dataclasses.replace(CONFIG, width=4, mlp_width=32))
    return jax.eval_shape(other.init, KEY, jnp.zeros((1, 2), int))["params"]


def shaped(tree):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree)


def run(module, *inputs, **options):
    return module.init(KEY, *inputs, **options)


def token_loss(tokens, segments=None, mask=None, apply=None):
    apply = apply or (lambda p, tokens: jnp.zeros((*tokens.shape, 14)))
    return lm.next_token_loss(apply)({}, lm.TokenBatch(tokens, segments, mask))


NETWORKS = [
    Row("mlp-width", lambda: run(MLP(features=(0,)), jnp.zeros((1, 3))), ("features", "got 0")),
    Row("mlp-scalar", lambda: run(MLP(), jnp.zeros(())), ("inputs must be [examples, ...]",)),
    Row("conv-rank", lambda: run(Conv(2), IMAGES[0]), ("inputs must be images", "(8, 8, 1)")),
    Row("conv-strides", lambda: run(Conv(2, strides=0), IMAGES), ("strides must be", "got 0")),
    Row("conv-kernel", lambda: run(Conv(2, (3,)), IMAGES), ("kernel_size", "two dimensions")),
    Row(
        "conv-padding", lambda: run(Conv(2, padding="same"), IMAGES), ("'SAME', 'VALID'", "'same'")
    ),
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
    Row("config-width", lambda: TransformerConfig(9, 8.0, 1, 2), ("width must be", "8.0")),
    Row(
        "config-heads", lambda: TransformerConfig(9, 8, 1, 3), ("multiple of n_heads", "n_heads=3")
    ),
    Row("config-bool", lambda: TransformerConfig(9, 8, True, 2), ("n_layers must be", "True")),
    Row(
        "config-dtype", lambda: TransformerConfig(**SIZES, dtype="float33"), ("dtype", "'float33'")
    ),
    Row("config-int", lambda: TransformerConfig(**SIZES, dtype="int32"), ("dtype", "int32")),
    Row("config-tied", lambda: TransformerConfig(**SIZES, tied="yes"), ("tied must be", "'yes'")),
    Row("config-rotary", lambda: TransformerConfig(**SIZES, rotary=1.0), ("rotary must be",)),
    Row("rotary", lambda: Rotary(theta=float("nan")), ("theta must be a positive finite", "nan")),
    Row(
        "float-tokens", lambda: run(MODEL, jnp.zeros((1, 2))), ("tokens must be integers", "float")
    ),
    Row("token-rank", lambda: run(MODEL, jnp.zeros(2, int)), ("[batch, length]", "[2]")),
    Row("too-long", lambda: run(MODEL, jnp.zeros((1, 33), int)), ("max_length=32", "33")),
    Row(
        "segments",
        lambda: run(MODEL, jnp.zeros((1, 2), int), segments=jnp.ones((1, 3), int)),
        ("segments must have the shape of tokens, (1, 2)", "(1, 3)"),
    ),
]

LANGUAGE = [
    Row("prompt-text", lambda: generate("hello"), ("prompts must be lists of tokens", "'hello'")),
    Row("prompt-number", lambda: generate(5), ("prompts must be lists of tokens", "5")),
    Row("no-prompts", lambda: generate([]), ("at least one prompt",)),
    Row("empty-prompt", lambda: generate([[1], []]), ("prompts[1]", "at least one token")),
    Row("ragged-prompt", lambda: generate([[1, [2, 3]]]), ("prompts[0]", "list of tokens")),
    Row("prompt-rank", lambda: generate(np.zeros(3, int)), ("[prompts, length]", "(3,)")),
    Row("float-prompt", lambda: generate([[1.5]]), ("prompts[0] must hold integers", "float64")),
    Row("out-of-range", lambda: generate([[1, 14]]), ("tokens from 0 to 13", "14")),
    Row("negative", lambda: generate([[-1]]), ("tokens from 0 to 13", "-1")),
    Row("prompt-long", lambda: generate([[1] * 31]), ("max_length=32", "31 + 2")),
    Row("new-tokens", lambda: generate(max_new_tokens=0), ("max_new_tokens", "got 0")),
    Row("temperature", lambda: generate(key=KEY, temperature=0), ("temperature", "0.0")),
    Row("no-key", lambda: generate(temperature=1.0), ("key must be given",)),
    Row("seed", lambda: generate(key=0, temperature=1.0), ("one random key", "int 0")),
    Row("samples", lambda: generate(samples=2), ("samples=2", "temperature")),
    Row("top-p", lambda: generate(key=KEY, temperature=1.0, top_p=2), ("top_p", "2.0")),
    Row("stop-tokens", lambda: generate(stop_tokens=["a"]), ("stop_tokens", "['a']")),
    Row("stop-token", lambda: generate(stop_tokens=[99]), ("stop_tokens must be below", "99")),
    Row("allowed", lambda: generate(allowed=np.ones(3, bool)), ("allowed must be bools", "[3]")),
    Row("model", lambda: generate(model=MLP()), ("model must be", "Transformer")),
    Row("params-none", lambda: generate(own=[1.0]), ("params must be a dict", "list")),
    Row(
        "params-of-another",
        lambda: generate(own=shaped(other_params())),
        ("params don't fit the model", "has shape (4, 8), not (8, 8)"),
    ),
    Row(
        "params-missing",
        lambda: generate(own={"embed": {}}),
        ("params don't fit the model", "kernel' is missing", "more"),
    ),
    Row("lora-layer", lambda: factors(targets="block_9"), ("'block_9' matches no leaf", "blocks")),
    Row("lora-pattern", lambda: factors(targets="("), ("regular expressions", "'('")),
    Row("lora-targets", lambda: factors(targets=3), ("regular expressions", "3")),
    Row("lora-rank", lambda: factors(rank=9), ("rank must be at most the sides", "9")),
    Row("lora-key", lambda: lora.init(params(), 0, rank=1, targets="kernel"), ("key", "int 0")),
    Row("lora-std", lambda: factors(b_std="a"), ("b_std", "'a'")),
    Row(
        "lora-unknown",
        lambda: generate(
            lora={"head": {"bias": lora.Factors(jnp.ones((8, 1)), jnp.ones((1, 8)), 1.0)}}
        ),
        ("lora has factors at 'head/bias'", "no matrix"),
    ),
    Row(
        "lora-shape",
        lambda: generate(
            lora={"head": {"kernel": lora.Factors(jnp.ones((3, 1)), jnp.ones((1, 14)), 1.0)}}
        ),
        ("don't fit 'head/kernel'", "(3, 1)", "(8, 14)"),
    ),
    Row("lora-array", lambda: generate(lora={"head": jnp.ones(3)}), ("lora must hold Factors",)),
    Row("loss-tokens", lambda: token_loss([[1, 2]]), ("tokens must be integers", "[[1, 2]]")),
    Row("loss-floats", lambda: token_loss(jnp.ones((1, 3))), ("tokens must be integers",)),
    Row("loss-short", lambda: token_loss(jnp.ones((2, 1), int)), ("length >= 1", "(2, 1)")),
    Row(
        "loss-mask",
        lambda: token_loss(jnp.ones((1, 3), int), mask=jnp.ones((1, 2))),
        ("mask must have the shape of tokens, (1, 3)", "(1, 2)"),
    ),
    Row(
        "loss-logits",
        lambda: token_loss(jnp.ones((1, 3), int), apply=lambda p, t: jnp.zeros((1, 2))),
        ("apply must return logits", "(1, 2)"),
    ),
    Row("documents", lambda: lm.pack("abc", 4), ("documents must be a list of lists", "'abc'")),
    Row("document", lambda: lm.pack([["a", "b"]], 4), ("documents[0] must be integers",)),
    Row("length", lambda: lm.pack([[1, 2]], -1), ("length must be at least 1", "-1")),
    Row("masks", lambda: lm.pack([[1, 2]], 4, masks=[[1]]), ("masks[0]", "(2,)", "(1,)")),
    Row("text", lambda: lm.text_sampler("abc", length=2, batch=1), ("tokens must be integers",)),
    Row("short", lambda: lm.text_sampler([1], length=2, batch=1), ("n > length=2", "(1,)")),
    Row("rows", lambda: lm.row_sampler([[1, 2]], batch=1), ("rows must be a TokenBatch",)),
    Row("draw", lambda: lm.as_episodes([1]), ("draw must be a function", "list [1]")),
    Row("characters", lambda: lm.CharTokenizer("aba"), ("characters must be distinct", "'a'")),
    Row("character-list", lambda: lm.CharTokenizer(["a"]), ("characters must be a string",)),
    Row("encode", lambda: lm.CharTokenizer("ab").encode("abc"), ("without a token", "'c'")),
    Row("encode-number", lambda: lm.CharTokenizer("ab").encode(5), ("text must be a string", "5")),
    Row("decode", lambda: lm.CharTokenizer("ab").decode([2]), ("from 0 to 1", "2")),
    Row("decode-text", lambda: lm.CharTokenizer("ab").decode(["a"]), ("list of integers", "'a'")),
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


@each([*NETWORKS, *LANGUAGE, *SELF])
def test_it_is_refused_by_name(row):
    refused(row.call, row.words)
