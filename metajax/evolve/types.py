"""What the parts of self-evolution pass to each other."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from metajax.trainer import TrainState
from metajax.types import Metrics, Params

Array = jax.Array | np.ndarray


class Levels(NamedTuple):
    """A range of difficulty, both ends included.

    Attributes:
        first: the easiest level.
        last: the hardest level.
    """

    first: int
    last: int


class Tasks(NamedTuple):
    """Prompts, padded on the left, so that each ends where its answer begins.

    Attributes:
        prompts: tokens ``[n, width]``, int32; 0 in the padding.
        lengths: tokens of each prompt, ``[n]``.
        levels: difficulty of each, ``[n]``.
        valid: ``[n]``, whether it may be learned from. False for a text that is no task, for a
            duplicate and for a held-out prompt; the rest of such a row means nothing.
        about: what else a verifier needs, as a PyTree of arrays ``[n, ...]``; None for nothing.
            The loop passes it on.
    """

    prompts: Array
    lengths: Array
    levels: Array
    valid: Array
    about: Any = None


class Completions(NamedTuple):
    """A model's answers to tasks.

    Attributes:
        tokens: ``[n, samples, width]``; 0 behind the end.
        log_probs: of each token under the model, before temperature, in nats, the same shape; 0
            behind the end.
        lengths: tokens of each, the end token among them, ``[n, samples]``.
        ended: whether there is an end token, ``[n, samples]``.
    """

    tokens: Array
    log_probs: Array
    lengths: Array
    ended: Array


class Answers(NamedTuple):
    """One answer to each task.

    Attributes:
        tokens: ``[n, width]``, the end token among them; 0 behind it.
        lengths: tokens of each, ``[n]``.
    """

    tokens: Array
    lengths: Array


class Verdict(NamedTuple):
    """Which completion of each task is its label, and how much it counts.

    Attributes:
        choice: index of the sample that is the label, ``[n]``.
        weight: in [0, 1], ``[n]``; 0 where nothing is learned from the task.
        agreement: in [0, 1], ``[n]``: the share of the samples that agree with the label.
        rewards: of each sample, ``[n, samples]``, for tasks with several right answers; see
            ``rewards_of``. None where the label alone is right.
    """

    choice: Array
    weight: Array
    agreement: Array
    rewards: Array | None = None


class Rollouts(NamedTuple):
    """What the model did in a round.

    Attributes:
        tasks: what was proposed.
        completions: what was answered.
        verdict: what is trusted.
    """

    tasks: Tasks
    completions: Completions
    verdict: Verdict


class Examples(NamedTuple):
    """Texts to train on: prompt and answer, padded on the right.

    Attributes:
        tokens: ``[n, width]``.
        prompt: tokens of each prompt, ``[n]``.
        lengths: tokens of each text, ``[n]``.
        weights: how often each is drawn relative to the others, at least 0, ``[n]``.
    """

    tokens: np.ndarray
    prompt: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray


class TrainingData(NamedTuple):
    """D_t of θ_{t+1} = f(θ_t, D_t).

    Attributes:
        real: examples from before the loop, drawn for this round; never left out.
        past: those of each earlier round, oldest first; with weight 0 if the round was refused.
        new: those of this round.
        rollouts: what ``new`` was made from; None where there was no round.
    """

    real: Examples
    past: tuple[Examples, ...]
    new: Examples
    rollouts: Rollouts | None


class Proposer(Protocol):
    """``propose(params, key, levels) -> Tasks``, the same number of them in each call."""

    def __call__(self, params: Params, key: jax.Array, levels: Levels, /) -> Tasks: ...


class Solver(Protocol):
    """``solve(params, key, tasks) -> Completions``."""

    def __call__(self, params: Params, key: jax.Array, tasks: Tasks, /) -> Completions: ...


class Verifier(NamedTuple):
    """Decides which completions can be trusted.

    Attributes:
        name: for reports.
        verify: ``verify(tasks, completions) -> Verdict``.
        uses_oracle: whether it knows the right answers, or asks something that does.
    """

    name: str
    verify: Callable[[Tasks, Completions], Verdict]
    uses_oracle: bool = False


class Update(NamedTuple):
    """f of θ_{t+1} = f(θ_t, D_t): one round of training.

    Attributes:
        name: for reports.
        init: ``init(params, key) -> TrainState``. All that later rounds need is in the state.
        update: ``update(state, data, key, scale) -> (state, metrics, tokens)``. The old state stays
            valid, so that the loop can go back to it; ``scale`` multiplies the step size;
            ``tokens`` is how many were trained on.
        temperature: that at which the solver must draw, where the update depends on it.
    """

    name: str
    init: Callable[[Params, jax.Array], TrainState]
    update: Callable[..., tuple[TrainState, Metrics, int]]
    temperature: float | None = None


class Problem(NamedTuple):
    """A family of text tasks of unbounded difficulty.

    Attributes:
        name: for reports.
        vocab_size: number of tokens.
        begin: the token that every text begins with; None if there is none.
        end: the token that every answer ends with.
        prompt_length: the most tokens that a prompt of a level has, ``begin`` among them.
        answer_length: the most tokens that its answer has, ``end`` among them.
        draw: ``draw(key, levels [n]) -> Tasks``: a random prompt of each level.
        answer: ``answer(tasks) -> Answers``: the right ones. The oracle, for real data and for
            reports; the loop trains without it.
        read: ``read(prompts [n, width], lengths [n]) -> (valid [n], levels [n])``: which token
            rows, padded on the left, are prompts, and of which level.
        allowed: ``allowed(level) -> bools [prompt_length - 1, vocab]``: the tokens that may follow
            the first one in a prompt of this level, for a model that writes prompts.
        show: tokens as text, for a person.
    """

    name: str
    vocab_size: int
    begin: int | None
    end: int
    prompt_length: Callable[[int], int]
    answer_length: Callable[[int], int]
    draw: Callable[[jax.Array, Any], Tasks]
    answer: Callable[[Tasks], Answers]
    read: Callable[[Any, Any], tuple[Any, Any]]
    allowed: Callable[[int], np.ndarray]
    show: Callable[[Any], str]

    @property
    def first_token(self) -> int:
        """What a model writes a text from: ``begin``, or the end of another text."""
        return self.end if self.begin is None else self.begin
