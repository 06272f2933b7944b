"""The same task in other words, so that a model's answers can be compared with each other.

A task often has a symmetry that is known without its answer: copying treats all digits alike, and a
sum doesn't depend on the order of its operands. A model that is wrong with confidence is mostly
wrong because of what a text looks like, and then not in another view of it. So agreement between
views says more than the model's probabilities.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.types import Completions, Solver, Tasks
from metajax.types import Params


class View(NamedTuple):
    """Another way to pose tasks, and the way back.

    Attributes:
        name: for reports.
        pose: ``pose(key, tasks) -> (tasks, memo)``: the tasks in other words, of the same shapes.
        undo: ``undo(memo, tokens [n, samples, width]) -> tokens``: answers to these, as answers to
            the original tasks.
    """

    name: str
    pose: Callable[[jax.Array, Tasks], tuple[Tasks, Any]]
    undo: Callable[[Any, Any], Any]


def permuted_tokens(first: int, count: int) -> View:
    """A random permutation of some tokens, another one for each task.

    It fits tasks in which these tokens are mere names: copying and reversing digits, not adding.

    Args:
        first: the least of the tokens.
        count: how many there are, one after another.

    Raises:
        ArgumentError: ``first`` is negative, or ``count`` less than 2.

    Example:
        >>> tasks = Tasks(np.array([[1, 2, 3, 9]]), np.array([4]), None, np.array([True]))
        >>> view = permuted_tokens(1, 5)
        >>> posed, memo = view.pose(jax.random.key(0), tasks)
        >>> posed.prompts.tolist(), view.undo(memo, posed.prompts[:, None]).tolist()
        ([[3, 4, 5, 9]], [[[1, 2, 3, 9]]])
    """
    _checks.non_negative_int("first", first)
    _checks.at_least("count", count, 2)

    # With NumPy: compiling these few operations would take longer than they do.
    def replace(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        name = np.clip(tokens - first, 0, count - 1)
        named = (tokens >= first) & (tokens < first + count)
        return np.where(named, first + np.take_along_axis(table, name, axis=1), tokens)

    def pose(key: jax.Array, tasks: Tasks) -> tuple[Tasks, Any]:
        prompts, lengths = np.asarray(tasks.prompts), np.asarray(tasks.lengths)
        width = prompts.shape[1]
        table = np.argsort(np.asarray(jax.random.bits(key, (len(prompts), count))), axis=1)
        inside = np.arange(width) >= width - lengths[:, None]
        posed = np.where(inside, replace(table, prompts), prompts)
        return tasks._replace(prompts=posed.astype(prompts.dtype)), np.argsort(table, axis=1)

    def undo(inverse: np.ndarray, tokens: Any) -> np.ndarray:
        flat = np.asarray(tokens).reshape(len(tokens), -1)
        return replace(inverse, flat).reshape(tokens.shape).astype(flat.dtype)

    return View(f"{count} tokens permuted", pose, undo)


def solve_in_views(solve: Solver, views: Sequence[View]) -> Solver:
    """Poses each task as it is and in each view; a verifier such as ``majority_vote(1.0)`` compares
    the answers.

    Args:
        solve: answers tasks, with one completion each.
        views: other ways to pose them.

    Returns:
        A solver with ``1 + len(views)`` completions of each task, all in the task's own words, that
        of the original task first.

    Raises:
        ArgumentError: there is no view; from the solver, ``solve`` gives several completions.

    Example:
        >>> solve = solve_in_views(lambda params, key, tasks: None, [permuted_tokens(0, 10)])
    """
    if not views:
        raise ArgumentError("views must have at least one view, got none.")

    def solve_once(params: Params, key: jax.Array, tasks: Tasks) -> Completions:
        found = solve(params, key, tasks)
        if found.tokens.shape[1] != 1:
            raise ArgumentError(
                f"solve must give one completion for each task, got {found.tokens.shape[1]}."
            )
        return found

    def solve_all(params: Params, key: jax.Array, tasks: Tasks, /) -> Completions:
        found = [solve_once(params, jax.random.fold_in(key, 0), tasks)]
        for number, view in enumerate(views, 1):
            pose_key, solve_key = jax.random.split(jax.random.fold_in(key, number))
            posed, memo = view.pose(pose_key, tasks)
            completions = solve_once(params, solve_key, posed)
            tokens = np.array(view.undo(memo, completions.tokens))
            # The 0 of the padding may be one of the tokens that were replaced.
            behind = np.arange(tokens.shape[-1]) >= np.asarray(completions.lengths)[..., None]
            tokens[behind] = 0
            found.append(completions._replace(tokens=tokens))
        return Completions(*(np.concatenate(leaves, axis=1) for leaves in zip(*found, strict=True)))

    return solve_all
