"""Configuration, checkpoint and tasks."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.evolution import report, study
from experiments.evolution.pretrained import random_checkpoint
from experiments.evolution.pretrained.tasks import CHARACTERS, sums
from metajax import evolve as ev
from metajax import lm
from metajax.errors import ArgumentError
from metajax.lm import lora
from metajax.models import Transformer

HELD_OUT_SEED, TEST_SEED = 11, 2025
TARGETS = r"block_\d+/(attention|mlp)/\w+/kernel"
"""Which matrices have low-rank factors."""
TASK_TEXTS = 8
"""Texts of a task of the MAML step: half to adapt to, half to score."""


@dataclasses.dataclass(frozen=True)
class Config(study.StudyConfig):
    """Options of the experiment."""

    checkpoint: Path | None = None
    """A Hugging Face folder, or a hub's id such as Qwen/Qwen3-0.6B; without it a small model of
    random weights is made, for the mechanics alone."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and the computation; the factors are float32."""
    update: Literal["fine-tune", "grpo", "maml"] = "fine-tune"
    """How it learns from a round: by fine-tuning on what was kept, by GRPO, or by MAML on its own
    answers."""
    verifier: Literal["vote", "exact"] = "vote"
    """Which answers are kept: the most common one, if it ends; or the right one, which an oracle
    knows."""
    gate: Literal["non_inferior", "none"] = "non_inferior"
    """Whether θ_{t+1} must pass held-out tasks."""
    steps: int = 60
    """Updates on the worked examples, before the first round."""
    rounds: int = 4
    """Rounds of self-evolution."""
    round_steps: int = 30
    """Updates of each."""
    proposals: int = 256
    """Sums of each."""
    samples: int = 8
    """Answers to each sum."""
    temperature: float = 0.7
    """What they are drawn at."""
    agreement: float = 0.7
    """Least share of the samples that must agree."""
    worked: int = 64
    """Worked examples, at most."""
    base_levels: int = 2
    """Digits of their numbers, up to so many."""
    rank: int = 8
    """Rank of the factors."""
    rate: float = 1e-3
    """AdamW's learning rate; it falls to a tenth within a round."""
    inner_rate: float = 0.1
    """Rate of the inner step of the MAML step."""
    batch: int = 16
    """Texts in an update: packed rows; answers (GRPO); or those of tasks of 8 (MAML)."""
    micro_batch: int = 4
    """Texts computed together, on a CPU."""
    chunk: int = 64
    """Sums answered together."""
    held_out: int = 128
    """Held-out sums of the worked examples' digits, and of each newer number of digits."""
    test_prompts: int = 64
    """Test sums of each number of digits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "samples", "temperature", "worked", "base_levels", "rank", "inner_rate", "batch",
            "micro_batch", "chunk",
        )  # fmt: skip
        if not 0 < self.agreement <= 1:
            raise ArgumentError(f"agreement must be above 0 and at most 1; got {self.agreement}")
        for name in ("held_out", "test_prompts"):
            if getattr(self, name) < 2:
                raise ArgumentError(f"{name} must be at least 2; got {getattr(self, name)}")
        compared = self.verifier == "vote" or self.update == "grpo"
        if compared and self.samples < 2:
            raise ArgumentError(f"samples must be at least 2, to be compared; got {self.samples}")
        unit = TASK_TEXTS if self.update == "maml" else self.micro_batch
        for part in {unit, self.micro_batch}:
            if self.batch % part:
                raise ArgumentError(f"batch must be a multiple of {part}; got {self.batch}")
        if self.update == "maml" and self.proposals < TASK_TEXTS:
            raise ArgumentError(f"proposals must be at least {TASK_TEXTS}; got {self.proposals}")


class Setup(NamedTuple):
    """The checkpoint and the tasks of a config.

    Attributes:
        config: the options.
        folder: the checkpoint: a folder or a hub's id.
        model: the transformer.
        variables: its parameters, ``"params"``, and factors from zero beside them, ``"lora"``.
        problem: the sums, in its tokens.
        tests: those that it is tested on, and never learns from.
        worked: the worked examples.
    """

    config: Config
    folder: Path
    model: Transformer
    variables: dict[str, Any]
    problem: ev.Problem
    tests: ev.Tasks
    worked: ev.Examples


def set_up(run: common.Run, config: Config) -> Setup:
    """Reads the checkpoint, or makes one in the run's folder.

    Raises:
        RunError: the checkpoint can't be read or doesn't fit the task, or an option doesn't fit it.
    """
    folder = config.checkpoint
    if folder is None:
        common.create(run)
        folder = run.path / "checkpoint"
        random_checkpoint.make(folder, characters=CHARACTERS, seed=config.seed)
    longest = config.base_levels + config.rounds + 1
    try:
        model, params = lm.load_pretrained(folder, dtype=config.dtype, scan=False)
        problem = sums(lm.load_tokenizer(folder), model.config.vocab_size)
        tests = report.test_tasks(
            problem, jax.random.key(TEST_SEED), range(1, longest + 1), config.test_prompts
        )
    except (ValueError, ImportError) as error:
        raise common.RunError(f"checkpoint: {error}") from error
    # Prompts and answers are padded to multiples of 16.
    needed = sum(
        -(-count // 16) * 16
        for count in (problem.prompt_length(longest), problem.answer_length(longest) + 2)
    )
    if needed > model.config.max_length:
        raise common.RunError(
            f"checkpoint: {folder} takes {model.config.max_length} tokens; with base_levels="
            f"{config.base_levels} and rounds={config.rounds} up to {needed} are needed"
        )
    try:
        factors = lora.init(
            params,
            jax.random.key(config.seed),
            rank=config.rank,
            targets=TARGETS,
            alpha=2 * config.rank,
        )
    except ValueError as error:
        raise common.RunError(f"rank: {error}") from error
    variables = {"params": params, "lora": factors}
    worked = worked_examples(config, problem, tests)
    return Setup(config, folder, model, variables, problem, tests, worked)


def held_out_sums(config: Config, problem: ev.Problem, levels: ev.Levels) -> ev.HeldOut:
    """Held-out sums: of the worked examples' levels with answers, and of the newest without."""
    first = config.base_levels + 1
    return ev.held_out_tasks(
        problem,
        jax.random.key(HELD_OUT_SEED),
        known=range(1, first),
        frontier=range(max(first, min(levels.first, levels.last - 1)), levels.last + 1),
        each=config.held_out,
    )


def worked_examples(config: Config, problem: ev.Problem, tests: ev.Tasks) -> ev.Examples:
    """A few right answers, to sums that are neither held out nor tested."""
    first = ev.Levels(config.base_levels + 1, config.base_levels + 1)
    kept_back = np.concatenate(
        [ev.held_out_fingerprints(held_out_sums(config, problem, first)), ev.fingerprints(tests)]
    )
    levels = np.arange(8 * config.worked) % config.base_levels + 1
    tasks = problem.draw(jax.random.key(config.seed + 2), levels)
    rows = np.flatnonzero(ev.without_duplicates(tasks, kept_back).valid)[: config.worked]
    if not len(rows):
        raise common.RunError(
            f"worked: no sum of up to base_levels={config.base_levels} digits is left beside "
            f"held_out={config.held_out} and test_prompts={config.test_prompts}"
        )
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tasks)
    return ev.as_examples(tasks, problem.answer(tasks), np.ones(len(rows)))
