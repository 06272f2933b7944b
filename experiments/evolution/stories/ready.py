"""The frozen base model as a judge: its stories, its likelihood, and the checker made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import common
from experiments.evolution.stories import fluency, own_stories
from experiments.evolution.stories.config import Setup
from metajax import evolve as ev


class Ready(NamedTuple):
    """What the rounds and the tests share.

    Attributes:
        setup: the checkpoint and the tasks.
        free: the base's stories, of which nothing was asked.
        back: its stories that are kept back.
        outside: real stories, if there are any.
        losses: of texts, for a model's parameters.
        verifier: checks words, ending and fluency.
        likelihood: mean log-likelihoods of stories under the base.
        limit: the least mean log-likelihood of a fluent story.
    """

    setup: Setup
    free: ev.Examples
    back: list[list[int]]
    outside: list[list[int]]
    losses: Any
    verifier: ev.Verifier
    likelihood: Callable[[list[list[int]]], np.ndarray]
    limit: float

    def fluent(self, stories: list[list[int]]) -> np.ndarray:
        """Which stories are likely enough under the base: bools ``[n]``."""
        return self.likelihood(stories) >= self.limit

    def perplexity(self, params: Any) -> float:
        """On the base's stories that are kept back."""
        return fluency.perplexity(self.losses(params, self.back))

    def perplexities(self, params: Any) -> dict[str, float]:
        """On these, and on real stories."""
        found = {"perplexity_own": self.perplexity(params)}
        if self.outside:
            found["perplexity_real"] = fluency.perplexity(self.losses(params, self.outside))
        return found


def make_ready(setup: Setup, run: common.Run) -> Ready:
    """Lets the base write its stories, and sets the guard of fluency by those kept back."""
    config, end = setup.config, setup.problem.end
    written = own_stories.write(setup, config.written or run.path / "stories.npz")
    learned, back = own_stories.split(written)
    width = 1 + config.longest
    losses = fluency.losses_of(setup.apply, width)
    texts = own_stories.texts(setup, back)
    sums, counts = losses(setup.params, texts)
    limit = float(np.quantile(-sums / counts, config.doubtful))

    def likelihood(answers: list[list[int]]) -> np.ndarray:
        first = [end] if setup.problem.begin is None else [setup.problem.begin]
        sums, counts = losses(setup.params, [first + answer for answer in answers])
        return -sums / counts

    checked = ev.checked(
        setup.tokenizer, setup.family.check, end=end, begin=setup.problem.begin,
        name="a program finds words and ending",
    )  # fmt: skip
    verifier = fluency.fluent(checked, likelihood, limit)
    free, outside = own_stories.free(setup, learned), real_stories(setup, width)
    return Ready(setup, free, texts, outside, losses, verifier, likelihood, limit)


def real_stories(setup: Setup, width: int) -> list[list[int]]:
    """The beginnings of the file's stories in tokens.

    Raises:
        RunError: the file can't be read, or has no story.
    """
    file = setup.config.real
    if file is None:
        return []
    try:
        found = [text.strip() for text in file.read_text(encoding="utf-8").split("\n\n")]
    except (OSError, UnicodeDecodeError) as error:
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
