"""What the parts of self-evolution pass to each other."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from metajax.types import Params

Array = jax.Array | np.ndarray


class Levels(NamedTuple):
    """What is proposed now: tasks from one level of difficulty to another, both included.

    Attributes:
        first: the easiest level.
        last: the hardest one, ``first`` where all are of one level.
    """

    first: int
    last: int


class Tasks(NamedTuple):
    """Prompts, padded on the left, so that each ends where its answer begins.

    Attributes:
        prompts: tokens ``[n, width]``, int32; 0 where there is padding.
        lengths: how many of them are the prompt's, ``[n]``.
        levels: how hard each is, ``[n]``.
        valid: ``[n]``, whether it may be learned from; False for a text that isn't a task, for a
            repetition, and for a held-out prompt. The rest of such a row means nothing.
        about: what else a verifier needs to know of each task, as a PyTree of arrays ``[n, ...]``;
            None for nothing. The loop passes it on.
    """

    prompts: Array
    lengths: Array
    levels: Array
    valid: Array
    about: Any = None


class Attempts(NamedTuple):
    """A model's answers to tasks.

    Attributes:
        tokens: ``[n, samples, width]``; 0 behind an answer's end.
        log_probs: of each token under the model, in nats, the same shape; 0 behind the end.
        lengths: tokens of each answer, its end token among them, ``[n, samples]``.
        ended: whether the answer has an end token, ``[n, samples]``.
    """

    tokens: Array
    log_probs: Array
    lengths: Array
    ended: Array


class Answers(NamedTuple):
    """One answer to each task.

    Attributes:
        tokens: ``[n, width]``, the end token among them; 0 behind it.
        lengths: how many, ``[n]``.
    """

    tokens: Array
    lengths: Array


class Verdict(NamedTuple):
    """Which of the attempts is to be learned from, and how much.

    Attributes:
        choice: the sample that is the label, ``[n]``.
        weight: in [0, 1], ``[n]``; 0 where nothing is learned from the task.
        agreement: in [0, 1], ``[n]``: the share of the samples that answer alike.
    """

    choice: Array
    weight: Array
    agreement: Array


class Examples(NamedTuple):
    """D_t, what is learned from: whole texts, padded on the right.

    Attributes:
        tokens: ``[n, width]``.
        prompt: how many tokens of each are its prompt's, ``[n]``.
        lengths: how many it has in all, ``[n]``.
        weights: how often each is drawn beside the others, at least 0, ``[n]``.
    """

    tokens: np.ndarray
    prompt: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray


class Proposer(Protocol):
    """``propose(params, key, levels) -> Tasks``, always as many of them."""

    def __call__(self, params: Params, key: jax.Array, levels: Levels, /) -> Tasks: ...


class Solver(Protocol):
    """``solve(params, key, tasks) -> Attempts``."""

    def __call__(self, params: Params, key: jax.Array, tasks: Tasks, /) -> Attempts: ...


class Verifier(NamedTuple):
    """What of a model's answers can be trusted.

    Attributes:
        name: for reports.
        verify: ``verify(tasks, attempts) -> Verdict``.
        uses_oracle: whether it knows the right answers, or asks something that does.
    """

    name: str
    verify: Callable[[Tasks, Attempts], Verdict]
    uses_oracle: bool = False


class Problem(NamedTuple):
    """A family of text tasks whose difficulty has no end.

    Attributes:
        name: for reports.
        vocab_size: number of tokens.
        begin: the token that every text begins with; None where there is no such token.
        end: the token that every answer ends with.
        prompt_length: tokens of a prompt of a level, ``begin`` among them; where they differ, the
            most.
        answer_length: tokens of its answer, ``end`` among them; as above.
        draw: ``draw(key, levels [n]) -> Tasks``: a random prompt of each level.
        solve: ``solve(tasks) -> Answers``: the right ones. The oracle: for real data and for
            reports; the loop trains without it.
        read: ``read(prompts [n, width], lengths [n]) -> (valid [n], levels [n])``: which token
            rows, padded on the left, are prompts, and how hard they are.
        allowed: ``allowed(level) -> bools [prompt_length - 1, vocab]``: the tokens that may come
            behind the first one in a prompt of this level, for a model that writes one.
        show: tokens to text, for a person.
    """

    name: str
    vocab_size: int
    begin: int | None
    end: int
    prompt_length: Callable[[int], int]
    answer_length: Callable[[int], int]
    draw: Callable[[jax.Array, Any], Tasks]
    solve: Callable[[Tasks], Answers]
    read: Callable[[Any, Any], tuple[Any, Any]]
    allowed: Callable[[int], np.ndarray]
    show: Callable[[Any], str]
