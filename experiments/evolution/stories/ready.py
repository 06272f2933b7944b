"""The frozen base model as a judge: its stories, its likelihood, and the checker made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common
from experiments.evolution.stories import fluency, own_stories
from experiments.evolution.stories.config import Setup
from metajax import evolve as ev
from metajax.errors import FileError
from metajax.files import read_text


class Ready(NamedTuple):
    """What the rounds and the tests share.

    Attributes:
        setup: the checkpoint and the tasks.
        back: the base's stories, which nobody learns from.
        imitated: further ones, which the model goes on imitating.
        outside: real stories, if there are any.
        losses: of texts, for a model's parameters.
        likelihood: mean log-likelihoods of stories under the base.
        limit: the least mean log-likelihood of a fluent story.
    """

    setup: Setup
    back: list[list[int]]
    imitated: ev.Examples
    outside: list[list[int]]
    losses: Any
    likelihood: Callable[[list[list[int]]], np.ndarray]
    limit: float

    @property
    def verifier(self) -> ev.Verifier:
        """Checks words, ending and fluency."""
        return self.checker(self.setup.family.check)

    def checker(self, check: Callable[[str, str], float]) -> ev.Verifier:
        """A program that finds words and ending, and the guard of fluency."""
        problem = self.setup.problem
        checked = ev.checked(
            self.setup.tokenizer, check, end=problem.end, begin=problem.begin,
            name="a program finds words and ending",
        )  # fmt: skip
        return fluency.fluent(checked, self.likelihood, self.limit)

    def perplexity(self, params: Any) -> float:
        """On the base's stories."""
        return fluency.perplexity(self.losses(params, self.back))

    def perplexities(self, params: Any) -> dict[str, float]:
        """On these, and on real stories."""
        found = {"perplexity_own": self.perplexity(params)}
        if self.outside:
            found["perplexity_real"] = fluency.perplexity(self.losses(params, self.outside))
        return found


def make_ready(setup: Setup, run: common.Run) -> Ready:
    """Lets the base write its stories, and sets the guard of fluency by them."""
    config, first = setup.config, setup.problem.first_token
    key = jax.random.key(config.seed)
    write = lambda name, count, number: own_stories.write(
        setup, run.path / f"{name}.npz", count, jax.random.fold_in(key, number)
    )
    texts = write("stories", config.stories, 5)
    imitated = own_stories.examples(write("imitated", config.imitated, 7))
    width = 1 + config.longest
    losses = fluency.losses_of(setup.apply, width)
    sums, counts = losses(setup.params, texts)
    limit = float(np.quantile(-sums / counts, config.doubtful))

    def likelihood(answers: list[list[int]]) -> np.ndarray:
        sums, counts = losses(setup.params, [[first, *answer] for answer in answers])
        return -sums / counts

    outside = real_stories(setup, width)
    return Ready(setup, texts, imitated, outside, losses, likelihood, limit)


def real_stories(setup: Setup, width: int) -> list[list[int]]:
    """The beginnings of the file's stories in tokens.

    Raises:
        RunError: the file can't be read, or has no story.
    """
    file = setup.config.real
    if file is None:
        return []
    try:
        found = [text.strip() for text in read_text(file).split("\n\n")]
    except FileError as error:
        raise common.RunError(f"real: {error}") from error
    found = [text for text in found if text]
    if not found:
        raise common.RunError(f"real: {file} has no story")
    begin = [] if setup.problem.begin is None else [setup.problem.begin]
    return [(begin + ev.encode_part(setup.tokenizer, text))[:width] for text in found]


def solver(setup: Setup, *, samples: int = 1, longest: int | None = None) -> ev.Solver:
    """Writes stories, of at most so many tokens."""
    return ev.model_solver(
        setup.model,
        answer_length=lambda level: longest or setup.config.longest,
        end=setup.problem.end,
        samples=samples,
        temperature=setup.config.temperature,
        slack=0,
        chunk=setup.config.chunk,
    )
