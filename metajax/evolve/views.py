"""The same task in other words: what a model can be asked twice.

A task often has a symmetry that is known without knowing its answer: whatever is done with digits
as such does the same when they are renamed, and a sum doesn't depend on which operand comes first.
A model that errs with confidence mostly errs because of what a text looks like, and then not in
another view of it; so agreement between views tells more than its probabilities do.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.types import Attempts, Solver, Tasks
from metajax.types import Params


class View(NamedTuple):
    """Another way to pose tasks, and the way back.

    Attributes:
        name: for reports.
        ask: ``ask(key, tasks) -> (tasks, memo)``: the tasks in other words, of the same shapes.
        back: ``back(memo, tokens [n, samples, width]) -> tokens``: answers to these, as answers to
            the tasks as they were.
    """

    name: str
    ask: Callable[[jax.Array, Tasks], tuple[Tasks, Any]]
    back: Callable[[Any, Any], Any]


def renamed(first: int, count: int) -> View:
    """Tokens exchanged with each other, by a random permutation for each task.

    It is right for tasks in which these tokens are names and nothing more: copying and reversing
    digits, not adding them.

    Args:
        first: the least of the tokens.
        count: how many there are, one after another.

    Raises:
        ArgumentError: ``first`` is negative, or ``count`` less than 2.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> tasks, view = digits("copy").draw(jax.random.key(0), [5]), renamed(0, 10)
        >>> other, memo = view.ask(jax.random.key(1), tasks)
        >>> digits("copy").show(tasks.prompts[0]), digits("copy").show(other.prompts[0])
        ('<23172=', '<02370=')
        >>> digits("copy").show(view.back(memo, other.prompts[:, None])[0, 0])
        '<23172='
    """
    first = _checks.non_negative_int("first", first)
    count = _checks.at_least("count", count, 2)

    # With NumPy: compiling these few operations would take longer than they do.
    def replace(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        name = np.clip(tokens - first, 0, count - 1)
        named = (tokens >= first) & (tokens < first + count)
        return np.where(named, first + np.take_along_axis(table, name, axis=1), tokens)

    def ask(key: jax.Array, tasks: Tasks) -> tuple[Tasks, Any]:
        prompts, lengths = np.asarray(tasks.prompts), np.asarray(tasks.lengths)
        width = prompts.shape[1]
        table = np.argsort(np.asarray(jax.random.bits(key, (len(prompts), count))), axis=1)
        there = np.arange(width) >= width - lengths[:, None]
        other = np.where(there, replace(table, prompts), prompts)
        return tasks._replace(prompts=other.astype(prompts.dtype)), np.argsort(table, axis=1)

    def back(inverse: np.ndarray, tokens: Any) -> np.ndarray:
        # Behind an answer's end stands 0, which may be a name.
        flat = np.asarray(tokens).reshape(len(tokens), -1)
        return replace(inverse, flat).reshape(tokens.shape).astype(flat.dtype)

    return View(f"{count} tokens renamed", ask, back)


def in_views(solve: Solver, views: Sequence[View]) -> Solver:
    """Asks each task as it is, and in each view: an attempt for each, all in the task's own words.

    Which is for a verifier that compares them, such as ``majority_vote(1.0)``.

    Args:
        solve: answers tasks, with one attempt each.
        views: other ways to pose them.

    Returns:
        A solver with ``1 + len(views)`` attempts for each task, that to the task as it is first.

    Raises:
        ArgumentError: there is no view; from the solver, ``solve`` gives several attempts.

    Example:
        >>> solve = in_views(lambda params, key, tasks: None, [renamed(0, 10)])
    """
    if not views:
        raise ArgumentError("views must have at least one view, got none.")

    def single(params: Params, key: jax.Array, tasks: Tasks) -> Attempts:
        found = solve(params, key, tasks)
        if found.tokens.shape[1] != 1:
            raise ArgumentError(
                f"solve must give one attempt for each task, got {found.tokens.shape[1]}."
            )
        return found

    def answer(params: Params, key: jax.Array, tasks: Tasks, /) -> Attempts:
        found = [single(params, jax.random.fold_in(key, 0), tasks)]
        for number, view in enumerate(views, 1):
            ask_key, solve_key = jax.random.split(jax.random.fold_in(key, number))
            other, memo = view.ask(ask_key, tasks)
            own = single(params, solve_key, other)
            tokens = np.array(view.back(memo, own.tokens))
            behind = np.arange(tokens.shape[-1]) >= np.asarray(own.lengths)[..., None]
            tokens[behind] = 0
            found.append(own._replace(tokens=tokens))
        return Attempts(*(np.concatenate(leaves, axis=1) for leaves in zip(*found, strict=True)))

    return answer
