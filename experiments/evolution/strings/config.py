"""What the self-evolution of strings of digits can be told, and the model that it comes to."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments import common
from experiments.evolution import study
from experiments.evolution.strings.digits import digits
from metajax import evolve as ev
from metajax.errors import ArgumentError
from metajax.models import Transformer, TransformerConfig

MICRO_ROWS = 3
"""Rows that a core computes at a time."""

SURE_IN_ITSELF, SURE_IN_VIEWS = 0.98, 0.5
"""The least probability of a token of a kept answer. Agreement between views finds what is wrong,
and a high bar beside it leaves out whole kinds of right ones, which the model then forgets."""

LEVELS_A_ROUND, REACH = 2, 3
"""How many levels further a round can go: with curriculum accelerated, and with learnable."""

YIELD_IN_ITSELF, YIELD_IN_VIEWS = 0.3, 0.5
"""The least share of a length's answers that must be trusted for several lengths a round. With a
lower bar a length too far is trusted where the model leaves out a digit in every view alike."""


class Size(NamedTuple):
    """A model and how long it is trained.

    Attributes:
        model: of ``TransformerConfig.nope``.
        base_levels: digits of the real data's strings, up to so many.
        steps: updates of the base model.
        rounds: of self-evolution.
        round_steps: updates of each.
        proposals: tasks of each.
        rows: packed rows in an update.
        rate: AdamW's.
        pool: packed rows that a round draws from; the base model has four times as many.
        real: strings of real data that these are packed from.
        chunk: tasks that are answered together: few enough that all that is asked in a round, the
            held-out tasks too, comes in the same chunks, for which one program is compiled.
    """

    model: dict[str, Any]
    base_levels: int
    steps: int
    rounds: int
    round_steps: int
    proposals: int
    rows: int
    rate: float
    pool: int
    real: int
    chunk: int


SIZES = {
    "small": Size(
        {"width": 128, "n_layers": 3, "n_heads": 4, "mlp_width": 344},
        base_levels=8, steps=1000, rounds=10, round_steps=300, proposals=2048, rows=12, rate=1e-3,
        pool=4096, real=60_000, chunk=128,
    ),
    "paper": Size(
        {"width": 384, "n_layers": 6, "n_heads": 6, "mlp_width": 1536, "dtype": jnp.bfloat16},
        base_levels=10, steps=2000, rounds=30, round_steps=500, proposals=20_000, rows=384,
        rate=5e-4, pool=32_768, real=400_000, chunk=512,
    ),
}  # fmt: skip


PAPER_ADDITION = {
    "base_levels": 16,
    "steps": 10_000,
    "rounds": 8,
    "round_steps": 1000,
    "proposals": 50_000,
}
"""What the published size of addition has of its own."""


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the experiment; what isn't given is the size's own."""

    size: Literal["small", "paper"] = "small"
    """The model and its schedule: 0.6 million parameters for two cores, or the paper's 14
    million."""
    task: Literal["copy", "reverse", "addition"] = "copy"
    """What is done with the digits."""
    proposer: Literal["program", "model"] = "program"
    """Who poses the tasks: a program, as published, or the model itself."""
    curriculum: Literal["one", "accelerated", "learnable"] = "one"
    """How many digits more a round: one; two where the model can be trusted on both lengths; or up
    to three, to the length of which it is least sure."""
    least_yield: float | None = None
    """Share of a length's answers that must be trusted for curriculum accelerated to take it: 0.5
    where views must agree, else 0.3."""
    filters: Literal["all", "none"] = "all"
    """Which answers are kept: those that end, have the most common length and no doubtful token; or
    all."""
    confidence: float | None = None
    """The least probability of a token of a kept answer: 0.5 where views must agree, else 0.98."""
    views: int = 3
    """How often each task is asked in other words too, its digits renamed or its operands
    exchanged: all answers must agree for one to be kept. With filters none, never."""
    gate: Literal["no_worse", "none"] = "no_worse"
    """Whether θ_{t+1} must pass held-out tasks."""
    damage: Literal["none", "once", "always"] = "none"
    """In half of the answers a digit is dropped, before they are verified: in round 3, or from
    round 3 on."""
    rounds: int | None = None
    """Rounds of self-evolution."""
    round_steps: int | None = None
    """Updates of each."""
    proposals: int | None = None
    """Tasks of each."""
    base_levels: int | None = None
    """The longest strings of the real data."""
    rows: int | None = None
    """Packed rows in an update, a multiple of 6."""
    rate: float | None = None
    """AdamW's learning rate."""
    row_length: int = 64
    """Tokens of a packed row, at least."""
    control: Literal["yes", "no"] = "yes"
    """Whether the control is trained."""
    test_prompts: int = 1024
    """Prompts of each length at the end; an eighth of them after each round."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"test_prompts", "control"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "rounds", "round_steps", "proposals", "base_levels", "rows", "rate", "row_length"
        )
        if self.rows is not None and self.rows % (2 * MICRO_ROWS):
            raise ArgumentError(f"rows must be a multiple of {2 * MICRO_ROWS}; got {self.rows}")
        for name in ("confidence", "least_yield"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ArgumentError(f"{name} must be above 0 and at most 1; got {value}")
        if self.views < 0:
            raise ArgumentError(f"views must be at least 0; got {self.views}")
        if self.test_prompts < 8:
            raise ArgumentError(f"test_prompts must be at least 8; got {self.test_prompts}")


class Setting(NamedTuple):
    """What a config comes to.

    Attributes:
        config: with nothing left out.
        problem: the tasks.
        model: the transformer.
        params: its initial parameters.
        apply: ``apply(params, tokens, segment_ids=...)``.
        longest: the longest strings that are looked at.
    """

    config: Config
    problem: ev.Problem
    model: Transformer
    params: Any
    apply: metajax.losses.Apply
    longest: int


def size_of(config: Config) -> Size:
    """The size that a config names, for its task."""
    size = SIZES[config.size]
    if config.size == "paper" and config.task == "addition":
        size = size._replace(**PAPER_ADDITION)
    return size


def setting_of(config: Config) -> Setting:
    """The model and the tasks of a config."""
    size = size_of(config)
    own = {name: getattr(size, name) for name in size._fields if hasattr(config, name)}
    views = config.views > 0
    own["confidence"] = SURE_IN_VIEWS if views else SURE_IN_ITSELF
    own["least_yield"] = YIELD_IN_VIEWS if views else YIELD_IN_ITSELF
    config = study.replaced(config, **own)
    assert config.base_levels is not None
    assert config.rounds is not None
    problem = digits(config.task)
    faster = {"one": 1, "accelerated": LEVELS_A_ROUND, "learnable": REACH}[config.curriculum]
    longest = config.base_levels + faster * config.rounds + 2
    text = problem.prompt_length(longest) + problem.answer_length(longest) + 16
    model = Transformer(
        TransformerConfig.nope(
            vocab_size=problem.vocab_size,
            max_length=max(text + 32, config.row_length),
            scan=False,
            **size.model,
        )
    )
    key = jax.random.key(config.seed)
    params, apply = metajax.from_linen(model, key, jnp.zeros((1, 2), jnp.int32))
    return Setting(config, problem, model, params, apply, longest)


def optimizer_of(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW as published, but for eps."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )


def schedule_of(rate: float, steps: int, stable: int) -> optax.Schedule:
    """Warm-up over a tenth, the rate up to the step ``stable``, then a decay to a hundredth."""
    return study.warmup_stable_decay(rate, steps, warm=steps // 10, stable=stable, end=rate / 100)
