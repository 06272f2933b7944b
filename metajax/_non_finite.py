"""What an outer step does when its loss or its gradient has a NaN or an infinity."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax import _checks, trees
from metajax.errors import NonFiniteError
from metajax.types import PyTree

NonFinite = Literal["raise", "skip", "clip"] | None
"""A policy; see ``meta_trainer(non_finite=...)``. None for no check at all."""

Update = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
"""``update(state, (gradient, metrics)) -> (state, metrics)``: the second half of an outer step."""


class Guarded(NamedTuple):
    """What the programs carry under the policy "raise".

    Attributes:
        state: the trainer's state.
        found: how many elements of what ``_names`` lists were not finite in the first bad step,
            and then which of its tasks are bad, int32 ``[names + tasks]``; zeros before it.
    """

    state: Any
    found: jax.Array


class Means(NamedTuple):
    """What the first half of an outer step computes under a policy: means over devices.

    Attributes:
        gradient: over all tasks; those that were left out count as zeros.
        metrics: the same.
        good: the share of the tasks that aren't left out.
        bad: above zero for each task that isn't finite, float32 ``[tasks]``; none under "clip".
    """

    gradient: PyTree
    metrics: dict[str, Any]
    good: jax.Array
    bad: jax.Array


def watched(policy: NonFinite) -> Literal["mark", "leave out"] | None:
    """What ``task_means`` is to do with a bad task."""
    if policy == "skip":
        return "leave out"
    return "mark" if policy == "raise" else None


def check(policy: Any) -> None:
    """Raises an ArgumentError unless it is one of ``NonFinite``."""
    if policy is not None:
        _checks.one_of("non_finite", policy, ("raise", "skip", "clip"))


def count(tree: PyTree, before: PyTree | None = None) -> PyTree:
    """How many elements of each leaf are NaN or infinite, int32 scalars.

    Args:
        tree: any pytree of arrays; leaves that aren't floating-point have none.
        before: the tree before an update; elements that were not finite then don't count. An
            optimizer's best loss so far starts as an infinity, for example.

    Example:
        >>> count({"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.array(3)})
        {'a': Array(2, dtype=int32), 'b': Array(0, dtype=int32)}
    """

    def of(leaf: Any, before: Any = None) -> jax.Array:
        if not trees.is_floating(leaf):
            return jnp.zeros((), jnp.int32)
        bad = ~jnp.isfinite(leaf)
        return jnp.sum(bad if before is None else bad & jnp.isfinite(before), dtype=jnp.int32)

    return jax.tree.map(of, tree) if before is None else jax.tree.map(of, tree, before)


def has_any(tree: PyTree) -> jax.Array:
    """Whether a leaf has an element that isn't finite, a bool scalar.

    Example:
        >>> has_any({"a": jnp.array([1.0, jnp.nan])})
        Array(True, dtype=bool)
    """
    return _any(count(tree))


def clip(gradient: PyTree) -> PyTree:
    """Replaces what is not finite, leaf by leaf.

    A NaN has no direction: it becomes 0. An infinity keeps its sign and becomes as large as the
    largest finite element of its leaf, 0 if there is none. Larger, it would drown the other
    elements, or overflow when an optimizer squares it.

    Example:
        >>> clip(jnp.array([1.0, -3.0, jnp.nan, jnp.inf, -jnp.inf])).tolist()
        [1.0, -3.0, 0.0, 3.0, -3.0]
    """

    def of(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        largest = jnp.max(jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), 0), initial=0)
        return jnp.nan_to_num(leaf, nan=0.0, posinf=largest, neginf=-largest)

    return jax.tree.map(of, gradient)


_MAY_OVERFLOW = ("params", "optimizer_state")


def guard(policy: NonFinite, means_of_step: Callable, update: Update) -> tuple[Callable, Update]:
    """The two halves of an outer step under a policy; without one, as they are.

    Every device decides by the same means over tasks, so all decide alike. Under "raise" both take
    a ``Guarded`` in place of the state, which ``watch`` makes and takes apart.

    Args:
        policy: the policy.
        means_of_step: ``means_of_step(state, constants) -> Means``.
        update: ``update(state, (gradient, metrics)) -> (state, metrics)``.
    """
    if policy is None:
        without = lambda state, constants: means_of_step(state, constants)[:2]
        return without, update

    def guarded(state, means: Means, stopped: jax.Array | bool = False):
        share = lambda leaf: (leaf / means.good).astype(leaf.dtype)
        gradient, metrics = jax.tree.map(share, (means.gradient, means.metrics))
        entered = count((metrics.get("loss", 0.0), gradient))
        gradient = clip(gradient) if policy == "clip" else gradient
        after, reported = update(state, (gradient, metrics))
        # A finite gradient may overflow all the same, in Adam's squares, say.
        fields = [(getattr(after, name), getattr(state, name)) for name in _MAY_OVERFLOW]
        left = [count(now, before) for now, before in fields]
        bad_tasks = (means.bad > 0).astype(jnp.int32)
        numbers = jnp.stack(jax.tree.leaves((entered, left)))
        undo = stopped | (_any(left) if policy == "clip" else numbers.any())
        kept = [
            jax.tree.map(lambda now, before: jnp.where(undo, before, now), *field)
            for field in fields
        ]
        after = after._replace(**dict(zip(_MAY_OVERFLOW, kept, strict=True)))
        counted = numbers.sum() if policy == "clip" else bad_tasks.sum()
        reported = {**reported, "non_finite": counted, "undone": undo.astype(jnp.int32)}
        return after, reported, jnp.concatenate([numbers, bad_tasks]), undo

    if policy != "raise":
        return means_of_step, lambda state, means: guarded(state, means)[:2]

    def update_or_stop(carried: Guarded, means):
        stopped = carried.found.any()
        after, reported, found, undo = guarded(carried.state, means, stopped)
        after = after._replace(step=jnp.where(undo, carried.state.step, after.step))
        return Guarded(after, jnp.where(stopped, carried.found, found)), reported

    return lambda carried, constants: means_of_step(carried.state, constants), update_or_stop


def _any(counts: PyTree) -> jax.Array:
    return jnp.stack(jax.tree.leaves(counts)).any()


def watch(
    policy: NonFinite,
    program: Callable,
    place: Callable[[PyTree], PyTree],
    n_tasks: int,
    trainable: trees.Trainable = None,
) -> Callable:
    """``program(state, ...) -> (state, metrics)`` that raises under the policy "raise".

    Args:
        policy: the policy; under any other, the program is returned as it is.
        program: made of what ``guard`` returned.
        place: puts arrays on the program's devices.
        n_tasks: of a step.
        trainable: which leaves have a gradient.

    Raises:
        NonFiniteError: when run; it waits for the end of the program.
    """
    if policy != "raise":
        return program

    def watched(state, *arguments):
        names = _names(state, trainable)
        carried = Guarded(state, place(np.zeros(len(names) + n_tasks, np.int32)))
        (state, found), metrics = program(carried, *arguments)
        found = np.asarray(found)
        if found.any():
            raise _error(state, found, names)
        return state, metrics

    return watched


def _names(state: Any, trainable: trees.Trainable) -> list[str]:
    """The names of what ``Guarded.found`` counts."""
    learned, _ = trees.partition(state.params, trainable)
    paths = [repr(path) for path in trees.leaf_paths(state.params)]
    inner = [repr(path) for path in trees.leaf_paths(state.optimizer_state)]
    return [
        "the loss",
        *(f"the gradient of {path!r}" for path in trees.leaf_paths(learned)),
        *(f"the parameter {path} after the update" for path in paths),
        *(f"the optimizer's state {path} after the update" for path in inner),
    ]


def _error(state: Any, found: np.ndarray, names: list[str]) -> NonFiniteError:
    step = int(state.step) + 1
    tasks = tuple(np.flatnonzero(found[len(names) :]).tolist())
    numbers = found[: len(names)]
    bad = [f"{name} (elements: {n})" for name, n in zip(names, numbers, strict=True) if n]
    # After a bad loss or gradient, bad parameters are no news.
    bad = [words for words in bad if " after the update " not in words] or bad
    listed = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    which = f" Of its tasks, numbered from 0, these are bad: {_shown(tasks)}." if tasks else ""
    look = f" trainer.episode_at(state.key, {step}, {tasks[0]}) draws one again." if tasks else ""
    return NonFiniteError(
        f"step {step}: not finite: {listed}.{which}{look} The error's .state is the last good one, "
        f"after step {step - 1}. Lower the inner or the outer learning rate, clip the "
        "meta-gradient, or leave such tasks out with non_finite='skip'.",
        state=state,
        step=step,
        tasks=tasks,
    )


def _shown(tasks: tuple[int, ...]) -> str:
    more = f" and {len(tasks) - 10} more" if len(tasks) > 10 else ""
    return ", ".join(map(str, tasks[:10])) + more
