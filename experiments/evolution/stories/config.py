"""Configuration, checkpoint and tasks."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.evolution import study
from experiments.evolution.pretrained import random_checkpoint
from experiments.evolution.pretrained.families import Family
from experiments.evolution.pretrained.families.stories import WORDS, question, stories
from metajax import evolve as ev
from metajax import lm
from metajax.errors import ArgumentError
from metajax.models import Transformer

VALIDATION_SEED, TEST_SEED = 11, 2025
SLACK = 4
"""How many tokens more a question may have than the longest of those with one word thrice."""


@dataclasses.dataclass(frozen=True)
class Config(study.StudyConfig):
    """Options of the experiment."""

    checkpoint: Path | None = None
    """A Hugging Face folder of a model of stories, such as stories260K; without it a small model of
    random weights is made, for the mechanics alone."""
    real: Path | None = None
    """A text file of real stories, a blank line after each, for the perplexity; never learned
    from."""
    stories: int = 96
    """Stories that the model writes before the first update, for the perplexity and the guard."""
    imitated: int = 1024
    """Further ones, which it goes on imitating while it learns."""
    imitation: float = 0.3
    """Their share of each update."""
    longest: int = 256
    """Tokens of a story, at most."""
    steps: int = 0
    """None: the first model is the checkpoint's."""
    rounds: int = 36
    """Rounds of self-evolution."""
    round_steps: int = 8
    """Updates of each."""
    proposals: int = 48
    """Tasks of each."""
    samples: int = 8
    """Stories for each task."""
    temperature: float = 0.7
    """What they are drawn at."""
    rate: float = 1.5e-4
    """AdamW's learning rate; it rises over the first round, and falls to a tenth over the last
    third."""
    batch: int = 48
    """Texts in an update."""
    control: Literal["no"] = "no"
    """There is none: without tasks there is no reward to learn from."""
    doubtful: float = 0.05
    """Share of the model's own first stories that the guard of fluency would refuse."""
    perplexity: float = 1.05
    """The gate refuses a model whose perplexity on held-out stories is more than so many times the
    base's."""
    gate: Literal["guarded", "none"] = "guarded"
    """Whether θ_{t+1} must pass held-out tasks and stories."""
    damage: Literal["none", "once"] = "none"
    """In the second round 30 % of the verdicts are turned round."""
    chunk: int = 64
    """Tasks answered together."""
    held_out: int = 64
    """Held-out tasks of the gate."""
    validation: int = 48
    """Tasks that are scored after each round, and by which the base's prompt is chosen."""
    test_prompts: int = 300
    """Test tasks."""

    may_take_no_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "stories", "imitated", "longest", "temperature", "batch", "perplexity", "chunk",
        )  # fmt: skip
        for name in ("doubtful", "imitation"):
            if not 0 < getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be between 0 and 1; got {getattr(self, name)}")
        if self.steps:
            raise ArgumentError(f"steps must be 0, as the checkpoint begins; got {self.steps}")
        for name in ("held_out", "validation", "test_prompts", "stories", "samples"):
            if getattr(self, name) < 2:
                raise ArgumentError(f"{name} must be at least 2; got {getattr(self, name)}")


class Setup(NamedTuple):
    """The checkpoint and the tasks of a config.

    Attributes:
        config: the options.
        name: of the checkpoint.
        model: the transformer.
        tokenizer: its tokenizer.
        params: its parameters.
        apply: ``apply(params, tokens, ...)``.
        family: questions and their checker.
        problem: the same in tokens.
        validation: tasks that are scored after each round.
        tests: those that are tested at the end.
    """

    config: Config
    name: str
    model: Transformer
    tokenizer: lm.Tokenizer
    params: Any
    apply: Any
    family: Family
    problem: ev.Problem
    validation: ev.Tasks
    tests: ev.Tasks


def set_up(run: common.Run, config: Config) -> Setup:
    """Reads the checkpoint, or makes one in the run's folder.

    A story ends where the next one would begin: such a model knows no other end token.

    Raises:
        RunError: the checkpoint can't be read, or doesn't fit the options.
    """
    folder = config.checkpoint
    if folder is None:
        common.create(run)
        folder = run.path / "checkpoint"
        random_checkpoint.make(folder, seed=config.seed, max_length=1024)
    family = stories()
    try:
        model, params = lm.load_pretrained(folder, dtype="float32", scan=False)
        tokenizer = lm.load_tokenizer(folder)
        asked = max(len(ev.encode_part(tokenizer, question([word] * 3))) for word in WORDS) + SLACK
        problem = ev.text_problem(
            tokenizer,
            name=family.name,
            write=family.write,
            answer=lambda question: "",
            read=family.read,
            longest=lambda level: (asked, config.longest - 1),
            end=getattr(tokenizer, "bos_id", None),
            vocab_size=model.config.vocab_size,
        )
        draw = lambda seed, count: problem.draw(jax.random.key(seed), np.ones(count, int))
        validation, tests = (
            draw(VALIDATION_SEED, config.validation), draw(TEST_SEED, config.test_prompts)
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise common.RunError(f"checkpoint: {error}") from error
    most = model.config.max_length - problem.prompt_length(1)
    if config.longest > most:
        raise common.RunError(
            f"longest: {folder} takes {model.config.max_length} tokens, so a story may have "
            f"{most}; got longest={config.longest}"
        )
    apply = lambda params, tokens, **options: model.apply({"params": params}, tokens, **options)
    name = "random weights" if config.checkpoint is None else folder.absolute().parent.name
    return Setup(config, name, model, tokenizer, params, apply, family, problem, validation, tests)


def held_out_tasks(setup: Setup) -> ev.HeldOut:
    """The gate's tasks, in two halves; no answers are known."""
    tasks = setup.problem.draw(
        jax.random.key(VALIDATION_SEED + 1), np.ones(setup.config.held_out, int)
    )
    half = setup.config.held_out // 2
    known, frontier = (
        jax.tree.map(lambda leaf: leaf[:half], tasks),
        jax.tree.map(lambda leaf: leaf[half:], tasks),
    )
    return ev.HeldOut(known, setup.problem.answer(known), frontier)


def kept_back(setup: Setup) -> np.ndarray:
    """Fingerprints of all tasks that are never learned from."""
    held_out = ev.held_out_fingerprints(held_out_tasks(setup))
    return np.concatenate([held_out, *map(ev.fingerprints, (setup.validation, setup.tests))])


def begun(setup: Setup, texts: list[str]) -> ev.Tasks:
    """Texts behind the begin token, as prompts."""
    first = [] if setup.problem.begin is None else [setup.problem.begin]
    rows = [first + ev.encode_part(setup.tokenizer, text) for text in texts]
    return prompts(rows)


def prompts(rows: list[list[int]]) -> ev.Tasks:
    """Token rows as prompts."""
    width = max(map(len, rows))
    tokens = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    return ev.Tasks(tokens, lengths, np.ones(len(rows), int), np.ones(len(rows), bool))
