"""The same task in other words: what a model can be asked twice.

A task often has a symmetry that is known without knowing its answer: whatever is done with digits
as such does the same when they are renamed, and a sum doesn't depend on which operand comes first.
A model that errs with confidence mostly errs because of what a text looks like, and then not in
another view of it; so agreement between views tells more than its probabilities do.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.digits import PLUS
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
        >>> from metajax.evolve import digits
        >>> tasks, view = digits("copy").draw(jax.random.key(0), [5]), renamed(0, 10)
        >>> other, memo = view.ask(jax.random.key(1), tasks)
        >>> digits("copy").show(tasks.prompts[0]), digits("copy").show(other.prompts[0])
        ('<02317=', '<62419=')
        >>> digits("copy").show(view.back(memo, other.prompts[:, None])[0, 0])
        '<02317='
    """
    first = _checks.non_negative_int("first", first)
    count = _checks.at_least("count", count, 2)

    def replace(table: jax.Array, tokens: jax.Array) -> jax.Array:
        name = jnp.clip(tokens - first, 0, count - 1)
        named = (tokens >= first) & (tokens < first + count)
        own = jax.vmap(lambda row, index: row[index])(table, name)
        return jnp.where(named, first + own, tokens)

    @jax.jit
    def exchanged(key: jax.Array, prompts: jax.Array, lengths: jax.Array):
        keys = jax.random.split(key, len(prompts))
        table = jax.vmap(lambda own: jax.random.permutation(own, count))(keys)
        there = jnp.arange(prompts.shape[1]) >= prompts.shape[1] - lengths[:, None]
        return jnp.where(there, replace(table, prompts), prompts), jnp.argsort(table, axis=1)

    @jax.jit
    def back(inverse: jax.Array, tokens: jax.Array) -> jax.Array:
        # Behind an answer's end stands 0, which may be a name.
        flat = replace(inverse, tokens.reshape(len(tokens), -1))
        return flat.reshape(tokens.shape)

    def ask(key: jax.Array, tasks: Tasks) -> tuple[Tasks, Any]:
        prompts, inverse = exchanged(key, jnp.asarray(tasks.prompts), jnp.asarray(tasks.lengths))
        return tasks._replace(prompts=prompts), inverse

    return View(f"{count} tokens renamed", ask, back)


def operands_exchanged() -> View:
    """The second operand of ``digits("addition")`` first; the answer is the same.

    Raises:
        ArgumentError: from ``ask``, tasks that aren't sums.

    Example:
        >>> from metajax.evolve import digits
        >>> addition = digits("addition")
        >>> tasks = addition.draw(jax.random.key(0), [2, 3])
        >>> other, _ = operands_exchanged().ask(jax.random.key(1), tasks)
        >>> addition.show(tasks.prompts[1]), addition.show(other.prompts[1])
        ('<640+958=', '<958+640=')
    """

    @jax.jit
    def exchanged(prompts: jax.Array, levels: jax.Array) -> jax.Array:
        width = prompts.shape[1]
        place, own = jnp.arange(width), levels[:, None]
        start = width - 2 * own - 2  # of the first operand; the second is one mark behind it
        shift = jnp.where(place < start + own, own + 1, -own - 1)
        is_digit = (place >= start) & (place < width - 1) & (place != start + own)
        other = jnp.take_along_axis(prompts, jnp.clip(place + shift, 0, width - 1), axis=1)
        return jnp.where(is_digit, other, prompts)

    def ask(key: jax.Array, tasks: Tasks) -> tuple[Tasks, Any]:
        levels = np.asarray(tasks.levels)
        prompts = np.asarray(tasks.prompts)
        whole = prompts[np.arange(len(levels)), prompts.shape[1] - levels - 2] == PLUS
        if not (whole | ~np.asarray(tasks.valid)).all():
            raise ArgumentError("tasks must be sums of two operands of as many digits as a level.")
        return tasks._replace(prompts=exchanged(jnp.asarray(prompts), jnp.asarray(levels))), None

    return View("operands exchanged", ask, lambda memo, tokens: tokens)


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
            tokens = np.array(view.back(memo, jnp.asarray(own.tokens)))
            behind = np.arange(tokens.shape[-1]) >= np.asarray(own.lengths)[..., None]
            tokens[behind] = 0
            found.append(own._replace(tokens=tokens))
        return Attempts(*(np.concatenate(leaves, axis=1) for leaves in zip(*found, strict=True)))

    return answer
