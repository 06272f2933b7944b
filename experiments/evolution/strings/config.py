"""Configuration and model."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

import metajax
from experiments import common
from experiments.evolution import study
from experiments.evolution.strings.tasks import digits
from metajax import evolve as ev
from metajax.errors import ArgumentError
from metajax.models import Transformer, TransformerConfig

MICRO_ROWS = 3
"""Rows that a core computes at a time."""

LEVELS_A_ROUND = 2
"""Levels in a round with curriculum accelerated."""


class Size(NamedTuple):
    """A model, and what goes with it.

    Attributes:
        model: arguments of ``TransformerConfig.nope``.
        pool: packed rows that a round draws from; the base model has four times as many.
        real: strings of real data that these are packed from.
        chunk: tasks that are answered together. All that is asked in a round, held-out tasks too,
            comes in chunks of this size, so that one program is compiled.
    """

    model: dict[str, Any]
    pool: int
    real: int
    chunk: int


SIZES = {
    "small": Size(
        {"width": 128, "n_layers": 3, "n_heads": 4, "mlp_width": 344},
        pool=4096, real=60_000, chunk=128,
    ),
    "paper": Size(
        {"width": 384, "n_layers": 6, "n_heads": 6, "mlp_width": 1536, "dtype": jnp.bfloat16},
        pool=32_768, real=400_000, chunk=512,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(study.StudyConfig):
    """Options; ``preset`` has other defaults for the paper's size and for a single view."""

    size: Literal["small", "paper"] = "small"
    """The model and its schedule: 0.6 million parameters for two cores, or the paper's 14
    million."""
    task: Literal["copy", "reverse", "addition"] = "copy"
    """What is done with the digits."""
    proposer: Literal["program", "model"] = "program"
    """Who proposes the tasks: a program, as published, or the model itself."""
    curriculum: Literal["one", "accelerated"] = "one"
    """How many digits more a round: one; or two if the model can be trusted on both lengths."""
    min_keep_rate: float = 0.5
    """Share of a length's answers that must be kept for curriculum accelerated to take it. With a
    lower bar it takes lengths at which the model leaves out a digit in every view alike."""
    filters: Literal["all", "none"] = "all"
    """Which answers are kept: those that end, have the most common length and no doubtful token; or
    all."""
    confidence: float = 0.5
    """The least probability of a token of a kept answer. Agreement between views finds what is
    wrong; a high bar beside it leaves out whole kinds of right answers."""
    views: int = 3
    """How often each task is posed in other words too, its digits permuted or its operands swapped:
    all answers must agree for one to be kept. With filters none, never."""
    gate: Literal["non_inferior", "none"] = "non_inferior"
    """Whether θ_{t+1} must pass held-out tasks."""
    damage: Literal["none", "once", "always"] = "none"
    """In half of the answers a digit is dropped, before they are verified: in round 3, or from
    round 3 on."""
    base_levels: int = 8
    """Digits of the longest strings of the real data."""
    rows: int = 12
    """Packed rows in an update, a multiple of 6."""
    row_length: int = 64
    """Tokens of a packed row, at least."""
    test_prompts: int = 1024
    """Prompts of each length at the end; an eighth of them after each round."""

    may_differ: ClassVar[frozenset[str]] = study.StudyConfig.may_differ | {"test_prompts"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "base_levels", "rows", "row_length")
        if self.rows % (2 * MICRO_ROWS):
            raise ArgumentError(f"rows must be a multiple of {2 * MICRO_ROWS}; got {self.rows}")
        for name in ("confidence", "min_keep_rate"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ArgumentError(f"{name} must be above 0 and at most 1; got {value}")
        if self.views < 0:
            raise ArgumentError(f"views must be at least 0; got {self.views}")
        if self.test_prompts < 8:
            raise ArgumentError(f"test_prompts must be at least 8; got {self.test_prompts}")


PAPER = {
    "base_levels": 10, "steps": 2000, "rounds": 30, "round_steps": 500, "proposals": 20_000,
    "rows": 384, "rate": 5e-4,
}  # fmt: skip
PAPER_ADDITION = PAPER | {
    "base_levels": 16, "steps": 10_000, "rounds": 8, "round_steps": 1000, "proposals": 50_000,
}  # fmt: skip
ONE_VIEW = {"confidence": 0.98, "min_keep_rate": 0.3}


def preset(size: str = "small", task: str = "copy", views: int = 3, **options: Any) -> Config:
    """The config of a size, a task and a number of views; ``options`` go before the preset.

    >>> preset("paper", "addition", rounds=2).proposals, preset(views=0).confidence
    (50000, 0.98)
    """
    fields: dict[str, Any] = {} if views else dict(ONE_VIEW)
    if size == "paper":
        fields |= PAPER_ADDITION if task == "addition" else PAPER
    fields |= {"size": size, "task": task, "views": views} | options
    return Config(**fields)


def parse(arguments: Sequence[str] | None, description: str) -> Config:
    """The config of a command line: what it doesn't give is the preset's."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("size", "task", "views"):
        first.add_argument(f"--{name}", nargs="?")
    given = vars(first.parse_known_args(arguments)[0])
    # What isn't an option's value is left to the parser that names it.
    size = "paper" if given["size"] == "paper" else "small"
    task = "addition" if given["task"] == "addition" else "copy"
    return tyro.cli(
        Config,
        args=arguments,
        default=preset(size, task, 0 if given["views"] == "0" else 3),
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


class Setup(NamedTuple):
    """The tasks and the model of a config.

    Attributes:
        config: the options.
        problem: the tasks.
        model: the transformer.
        params: its initial parameters.
        apply: ``apply(params, tokens, segment_ids=...)``.
        longest: digits of the longest strings that are tested.
    """

    config: Config
    problem: ev.Problem
    model: Transformer
    params: Any
    apply: metajax.losses.Apply
    longest: int


def set_up(config: Config) -> Setup:
    """The tasks and the model of a config."""
    problem = digits(config.task)
    levels = 1 if config.curriculum == "one" else LEVELS_A_ROUND
    longest = config.base_levels + levels * config.rounds + 2
    text = problem.prompt_length(longest) + problem.answer_length(longest) + 16
    model = Transformer(
        TransformerConfig.nope(
            vocab_size=problem.vocab_size,
            max_length=max(text + 32, config.row_length),
            scan=False,
            **SIZES[config.size].model,
        )
    )
    key = jax.random.key(config.seed)
    params, apply = metajax.from_linen(model, key, jnp.zeros((1, 2), jnp.int32))
    return Setup(config, problem, model, params, apply, longest)


def optimizer_of(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW as published, but for eps."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01)
    )


def schedule_of(rate: float, steps: int, stable: int) -> optax.Schedule:
    """Warm-up over a tenth, the rate up to the step ``stable``, then a decay to a hundredth."""
    return study.warmup_stable_decay(rate, steps, warm=steps // 10, stable=stable, end=rate / 100)
