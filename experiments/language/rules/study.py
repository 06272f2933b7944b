"""What the experiments with string rules share: families, the base model, and its training.

The base model is a language model that was trained on documents of lines, each document of one
rule; so it has learned to learn from what is before it. Six compositions are held out: their parts
occur in training, but never together.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.language.rules import tasks as strings
from metajax import lm
from metajax.errors import ArgumentError
from metajax.lm import lora
from metajax.lm.optimizers import muon
from metajax.models import Transformer, TransformerConfig

HELD_OUT = (
    "reverse+caesar", "rotate+substitution", "swap+mirror", "sort+caesar", "shuffle+plain",
    "reverse+grammar",
)  # fmt: skip
SEEN = tuple(family for family in strings.FAMILIES if family not in HELD_OUT)
BASE_STEPS = 4000
"""Updates of the base model."""
MICRO_BATCH = 4
"""Documents computed together: as many as stay in a core's cache."""
TEST_SEED, TUNING_SEED = 2024, 2025
TARGETS = r"block_\d+/.*/kernel"
"""Which matrices have low-rank factors: all of the blocks."""


@dataclasses.dataclass(frozen=True)
class RulesConfig(common.RunConfig):
    """The options that experiments with string rules share."""

    letters: int = 8
    """Size of the alphabet."""
    length: int = 4
    """Letters in a word."""
    k_shot: int = 8
    """Examples in a task's support set."""
    query: int = 8
    """Examples in its query set."""
    width: int = 96
    """Width of the base model's residual stream, in heads of 32."""
    layers: int = 3
    """Its blocks."""
    base: Path | None = None
    """A trained base model, a folder of such a run named base/model; without it, one is trained."""
    base_rate: float = 4e-3
    """Its learning rate after the warm-up."""
    base_batch: int = 32
    """Documents in an update, a multiple of 4."""
    rank: int = 8
    """Rank of the low-rank factors."""
    test_episodes: int = 300
    """Tasks of held-out families at test, at least, as many of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "letters", "length", "k_shot", "query", "layers", "base_rate",
            "rank",
        )  # fmt: skip
        for name, unit in (("base_batch", MICRO_BATCH), ("width", 32)):
            value = getattr(self, name)
            if value <= 0 or value % unit:
                raise ArgumentError(f"{name} must be a multiple of {unit}; got {value}")
        if self.test_episodes < 2 * len(HELD_OUT):
            raise ArgumentError(
                f"test_episodes must be at least 2 for each of {len(HELD_OUT)} families; got "
                f"{self.test_episodes}"
            )

    @property
    def words(self) -> strings.Words:
        """The words of the tasks."""
        return strings.Words(self.letters, self.length)

    def sampler(self, families: Sequence[str]) -> metajax.Sampler:
        """Tasks of these families, a line a row."""
        return strings.string_tasks(
            self.words, families=families, k_shot=self.k_shot, query=self.query
        )


class Base(NamedTuple):
    """The base model.

    Attributes:
        model: a ``Transformer``.
        variables: its parameters, ``"params"``, and factors from zero beside them, ``"lora"``.
        seconds: what its training took; 0 where it was there.
    """

    model: Transformer
    variables: dict[str, Any]
    seconds: float


def base_model(run: common.Run, config: RulesConfig, steps: int) -> Base:
    """The base model of a folder, or trained now for so many steps, in the run's folder ``base``.

    Raises:
        RunError: the folder's model has another vocabulary, or is too short.
    """
    length = (config.k_shot + 1) * config.words.line
    vocabulary = config.words.tokenizer.vocab_size
    if config.base is not None:
        model, params = lm.load_pretrained(config.base, scan=False)
        found = model.config
        if found.vocab_size != vocabulary or found.max_length < length:
            raise common.RunError(
                f"base: {config.base} has {found.vocab_size} tokens and takes {found.max_length} "
                f"of them; {vocabulary} and at least {length} are wanted"
            )
        return Base(model, _with_factors(config, params), 0.0)
    model = Transformer(
        TransformerConfig.llama(
            vocab_size=vocabulary,
            width=config.width,
            n_layers=config.layers,
            n_heads=config.width // 32,
            mlp_width=8 * round(config.width / 3),
            max_length=length,
            scan=False,
        )
    )
    key_params, key_tasks = jax.random.split(jax.random.key(config.seed))
    params, apply = metajax.from_linen(model, key_params, jnp.zeros((1, 2), jnp.int32))
    count = config.base_batch // MICRO_BATCH
    trainer = metajax.meta_trainer(
        lm.supervised(lm.next_token_loss(apply)),
        muon(
            optax.warmup_cosine_decay_schedule(
                0.0,
                config.base_rate,
                min(100, steps // 2),
                steps,
                config.base_rate / 10,
            )
        ),
        lm.as_episodes(documents(config)),
        meta_batch=count,
        mesh=metajax.task_mesh(count),
    )
    part = run._replace(name="base model", path=run.path / "base")
    fitted = common.fit(
        part,
        trainer,
        trainer.init(params, key_tasks),
        steps=steps,
        per_step={"tokens": config.base_batch * length},
    )
    lm.save_pretrained(part.path / "model", model.config, jax.device_get(fitted.state.params))
    plots.training_curve(part.path / "training.png", fitted.metrics, adapts=False)
    return Base(model, _with_factors(config, fitted.state.params), fitted.seconds)


def _with_factors(config: RulesConfig, params: Any) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    factors = lora.init(params, key, rank=config.rank, targets=TARGETS)
    return {"params": params, "lora": factors}


def documents(config: RulesConfig) -> Any:
    """``draw(key) -> TokenBatch``: a micro-batch of documents, each of lines of one seen rule."""
    sample = strings.string_tasks(config.words, families=SEEN, k_shot=config.k_shot + 1, query=1)

    def draw(key: jax.Array) -> lm.TokenBatch:
        lines = jax.vmap(sample)(jax.random.split(key, MICRO_BATCH)).support
        return jax.tree.map(lambda part: part.reshape(MICRO_BATCH, -1), lines)

    return draw


def draw_tasks(
    config: RulesConfig, families: Sequence[str], count: int, *, seed: int = TEST_SEED
) -> metajax.Episode:
    """At least ``count`` tasks, as many of each family, family by family; always the same ones."""
    each = _each(families, count)
    draw = strings.tasks_of_family(config.words, k_shot=config.k_shot, query=config.query)
    draw_all = jax.jit(jax.vmap(draw, in_axes=(0, None)))
    parts = []
    for family in families:
        number = strings.FAMILIES.index(family)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), each)
        parts.append(draw_all(keys, number))
    return joined(parts)


def joined(parts: Iterable[metajax.Episode]) -> metajax.Episode:
    """Lists of tasks ``[tasks, ...]``, one behind the other."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def test_tasks(config: RulesConfig) -> dict[str, metajax.Episode]:
    """The tasks of the tests, by what their rules are: held out, or seen in training."""
    return {
        "held-out": draw_tasks(config, HELD_OUT, config.test_episodes),
        "seen": draw_tasks(config, SEEN, config.test_episodes // 2),
    }


def _each(families: Sequence[str], count: int) -> int:
    """Tasks of a family: an even number, so that two cores can share them."""
    return 2 * -(-count // (2 * len(families)))
