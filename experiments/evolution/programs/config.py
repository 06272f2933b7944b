"""Configuration, model and tasks."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.evolution import study
from experiments.evolution.programs import language as pg
from experiments.evolution.programs.tasks import (
    may_be_learned,
    take_rows,
    taught_programs,
    test_tasks,
)
from metajax import evolve as ev
from metajax.errors import ArgumentError
from metajax.models import Transformer, TransformerConfig

TEST_SEED = 2025
MICRO_ROWS = 3
"""Rows that a core computes at a time."""


@dataclasses.dataclass(frozen=True)
class Config(study.StudyConfig):
    """Options of the experiment."""

    steps: int = 1500
    """Updates of the base model."""
    taught_operations: int = 1
    """Operations of the programs that it is taught, at most."""
    layers: int = 3
    """Blocks of the transformer, of width 128: 0.2 million parameters each."""
    rounds: int = 6
    """Rounds of self-play."""
    round_steps: int = 400
    """Updates of each."""
    proposals: int = 4096
    """Tasks of each round: five eighths deduction, an eighth of each other kind."""
    texts: int = 512
    """Programs with inputs that the model writes a round."""
    samples: int = 4
    """Answers to each task."""
    temperature: float = 1.0
    """What answers and programs are sampled at."""
    weight: Literal["learnable", "uncertain", "right"] = "learnable"
    """Weight of a task of which a share p > 0 of the answers is right: 1 - p, min(p, 1 - p),
    or 1."""
    unsolved: Literal["shown", "left_out"] = "shown"
    """What is learned from a deduction that no sample got right: the interpreter's output, or
    nothing."""
    floor: float = 0.3
    """Share of real data in what is trained on, at least."""
    rows: int = 24
    """Packed rows in an update, a multiple of 6."""
    rate: float = 2e-3
    """Muon's learning rate, and Adam's for what isn't a matrix; in the rounds half of it."""
    longest: int = 5
    """Digits of an input, at most."""
    taught: int = 8192
    """Random programs of which the real data is made, before those that are held out or degenerate
    are left out."""
    texts_taught: int = 8192
    """Texts of real data that a round draws from; the base model draws from six times as many."""
    test: Literal["held_out", "like"] = "held_out"
    """Test programs: those written by hand, or random ones, by which settings were chosen."""
    test_inputs: int = 4
    """Inputs of each test program."""
    gate_tasks: int = 1024
    """Held-out tasks of the gate, in each of its two groups."""

    may_differ: ClassVar[frozenset[str]] = study.StudyConfig.may_differ | {"test_inputs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "layers", "texts", "samples", "temperature", "rows", "longest", "taught",
            "texts_taught", "test_inputs", "taught_operations",
        )  # fmt: skip
        if self.taught_operations >= pg.MAX_OPERATIONS:
            raise ArgumentError(
                f"taught_operations must be less than {pg.MAX_OPERATIONS}, the longest program's; "
                f"got {self.taught_operations}"
            )
        if self.rows % (2 * MICRO_ROWS):
            raise ArgumentError(f"rows must be a multiple of {2 * MICRO_ROWS}; got {self.rows}")
        if self.proposals < 8 or self.proposals % 8:
            raise ArgumentError(
                f"proposals must be a multiple of 8, and at least that; got {self.proposals}"
            )
        if not 0 <= self.floor <= 1:
            raise ArgumentError(f"floor must be in [0, 1]; got {self.floor}")
        if self.longest > pg.MAX_LENGTH:
            raise ArgumentError(f"longest must be at most {pg.MAX_LENGTH}; got {self.longest}")
        if self.gate_tasks < 8:
            raise ArgumentError(f"gate_tasks must be at least 8; got {self.gate_tasks}")


class Setup(NamedTuple):
    """The model and the tasks of a config.

    Attributes:
        config: the config.
        model: the transformer.
        params: its initial parameters.
        apply: ``apply(params, tokens, segment_ids=...)``.
        taught: the real data's programs.
        tests: test tasks of each kind, ``test_inputs`` for each program.
        operations: of these programs, ``[programs]``.
    """

    config: Config
    model: Transformer
    params: Any
    apply: metajax.losses.Apply
    taught: pg.Programs
    tests: list[ev.Tasks]
    operations: np.ndarray


def set_up(config: Config) -> Setup:
    """The model and the tasks of a config."""
    model = Transformer(
        TransformerConfig.llama(
            vocab_size=len(pg.WORDS), width=128, n_layers=config.layers, n_heads=4, mlp_width=344,
            max_length=256, scan=False,
        )
    )  # fmt: skip
    key = jax.random.key(config.seed)
    params, apply = metajax.from_linen(model, key, jnp.zeros((1, 2), jnp.int32))
    tested = pg.held_out_programs()
    if config.test == "like":
        tested = like_programs(jax.random.key(TEST_SEED), 256, 1)
    tests = test_tasks(jax.random.key(TEST_SEED), tested, config.test_inputs, config.longest)
    taught = taught_programs(jax.random.fold_in(key, 1), config.taught, config.taught_operations)
    return Setup(config, model, params, apply, taught, tests, np.asarray(tested.lengths))


def like_programs(key: jax.Array, count: int, least: int) -> pg.Programs:
    """Random programs of ``least`` operations and more, as many of each; none is held out."""
    numbers = least + np.arange(2 * count) % (pg.MAX_OPERATIONS + 1 - least)
    drawn = pg.draw_programs(key, 2 * count, operations=numbers)
    return take_rows(drawn, np.flatnonzero(may_be_learned(drawn)[0])[:count])


def optimizer_of(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Muon, which is ahead of AdamW here (docs/self-evolution.md), behind a bound on the gradient.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); steps as large as
    Adam's, as in Liu et al. 2025 (arXiv 2502.16982).
    """
    muon = optax.contrib.muon(rate, consistent_rms=0.2, adam_b2=0.98, weight_decay=0.01)
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def schedule_of(rate: float, steps: int, stable: int) -> optax.Schedule:
    """Warm-up over a twentieth, the rate up to the step ``stable``, then a decay to a fiftieth."""
    return study.warmup_stable_decay(rate, steps, warm=steps // 20, stable=stable, end=rate / 50)
