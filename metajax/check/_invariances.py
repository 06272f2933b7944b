"""Checks that compilation, batching, types and another run don't change a learner's numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.check._perturb import alike, labelled, leaf_changed, parting, with_targets
from metajax.check._subject import N_TASKS, Seen, Subject
from metajax.learners.base import adapt_to
from metajax.meta_gradient import meta_gradient
from metajax.types import Episode, MaskedBatch, Params, PyTree


def jit(subject: Subject) -> Seen:
    compiled = subject.compiled(subject.params, subject.tasks[0])
    apart = parting(subject.uncompiled, compiled, subject.rtol)
    if apart:
        return False, (
            f"compiled, the numbers differ ({apart}): Python state, or NumPy's random numbers, "
            "would be frozen into the program"
        )
    return True, "compiled or not, the same numbers"


def vmap(subject: Subject) -> Seen:
    together = jax.jit(jax.vmap(subject.outcome, in_axes=(None, 0)))
    rows = together(subject.params, subject.stacked)
    for index, task in enumerate(subject.tasks):
        row = jax.tree.map(lambda leaf, i=index: leaf[i], rows)
        apart = parting(row, subject.compiled(subject.params, task), subject.rtol)
        if apart:
            return False, f"task {index} has other numbers among {N_TASKS} than alone: {apart}"
    return True, f"{N_TASKS} tasks at once, the same numbers as one by one"


def chunks(subject: Subject) -> Seen:
    by_two = jax.jit(meta_gradient(subject.learner, tasks_per_chunk=2))
    one, two = subject.first_gradient, by_two(subject.params, subject.stacked)
    apart = parting(one, two, subject.rtol)
    if apart:
        return False, f"tasks_per_chunk=1 and 2 give other meta-gradients: {apart}"
    return True, "tasks_per_chunk=1 and 2 give one meta-gradient"


def tasks(subject: Subject) -> Seen:
    turned = jax.tree.map(lambda leaf: leaf[::-1], subject.stacked)
    apart = parting(subject.first_gradient, subject.gradient(subject.params, turned), subject.rtol)
    if apart:
        return False, f"in another order the tasks have another meta-gradient: {apart}"
    return True, "the tasks in another order, one meta-gradient"


def examples(subject: Subject) -> Seen:
    def turned(batch: PyTree) -> PyTree:
        if not isinstance(batch, MaskedBatch):
            return jax.tree.map(lambda leaf: leaf[::-1], batch)
        parts = {name: jax.tree.map(lambda x: x[::-1], getattr(batch, name)) for name in _OF_EACH}
        return batch._replace(**parts)

    return _alike_in(subject, turned, "order of the examples")


_OF_EACH = ("inputs", "targets", "mask")
"""What a ``MaskedBatch`` has for each example."""


def classes(subject: Subject) -> Seen:
    def renumbered(batch: PyTree) -> PyTree:
        return with_targets(batch, (batch[1] + 1 - low) % (high + 1 - low) + low)

    task = subject.tasks[0]
    if not all(labelled(batch) for batch in (task.support, task.query)):
        return None, "no targets can be told apart"
    targets = [np.asarray(leaf) for batch in (task.support, task.query) for leaf in [batch[1]]]
    if not all(np.issubdtype(leaf.dtype, np.integer) for leaf in targets):
        return None, "the targets are no classes"
    if getattr(task.support, "classes", None) is not None:
        return None, "the classes of a task are masked"
    low, high = min(leaf.min() for leaf in targets), max(leaf.max() for leaf in targets)
    return _alike_in(subject, renumbered, "numbers of the classes")


def _alike_in(subject: Subject, other: Callable[[PyTree], PyTree], what: str) -> Seen:
    """Whether the loss stays where support and query sets are changed alike. A learner may mean
    it not to."""
    task = subject.tasks[0]
    if not all(labelled(batch) for batch in (task.support, task.query)):
        return None, "no examples can be told apart"
    changed = task._replace(support=other(task.support), query=other(task.query))
    of = lambda episode: subject.compiled(subject.near, episode)[1]
    apart = parting(of(task), of(changed), subject.rtol)
    if apart:
        return None, f"the {what} counts ({apart}), as it does for some algorithms"
    return True, f"another {what}, the same loss"


def padding(subject: Subject) -> Seen:
    for task in subject.tasks:
        other = task._replace(
            support=_other_padding(task.support), query=_other_padding(task.query)
        )
        if alike(other, task):
            continue
        of = lambda episode: subject.compiled(subject.near, episode)[1]
        apart = parting(of(task), of(other), 1e-4)
        if apart:
            return False, (
                f"with other padding the loss is another ({apart}): a statistic of the batch, such "
                "as batch normalisation's, counts padded examples. metajax.masked marks a network "
                "that takes their mask"
            )
        return True, "other padding, the same loss"
    return None, "no batch has padding"


def _other_padding(batch: PyTree) -> PyTree:
    """The batch with other inputs where its mask is False."""
    if not isinstance(batch, MaskedBatch) or batch.mask is None:
        return batch
    mask = batch.mask.astype(bool).reshape(-1, *(1,) * (batch.inputs.ndim - 1))
    other = leaf_changed(batch.inputs, jax.random.key(0), 1.0)
    return batch._replace(inputs=jnp.where(mask, batch.inputs, other))


def _in_type(subject: Subject, dtype: Any) -> tuple[Callable, tuple[Params, Episode]]:
    cast = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(dtype) if trees.is_floating(leaf) else leaf, tree
    )
    inner = meta_gradient(subject.learner, tasks_per_chunk=1)

    def both(params, episodes):
        adapted, _ = adapt_to(subject.learner, params, jax.tree.map(lambda x: x[0], episodes))
        return adapted, inner(params, episodes)[0]

    return both, (cast(subject.params), cast(subject.stacked))


def _other_types(found: PyTree, params: Params, dtype: Any) -> list[str]:
    names = ("adapted parameters", "meta-gradient")
    return [
        f"leaf {path!r} of the {name} is {leaf.dtype}"
        for name, tree in zip(names, found, strict=True)
        if jax.tree.structure(tree) == jax.tree.structure(params)
        for path, leaf in zip(trees.leaf_paths(tree), jax.tree.leaves(tree), strict=True)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype != dtype
    ]


def float32(subject: Subject) -> Seen:
    both, arguments = _in_type(subject, jnp.float32)
    others = _other_types(jax.eval_shape(both, *arguments), arguments[0], jnp.float32)
    return (not others, others[0] if others else "float32 in, float32 out")


def bfloat16(subject: Subject) -> Seen:
    both, arguments = _in_type(subject, jnp.bfloat16)
    try:
        found = jax.jit(both)(*arguments)
    except Exception as error:  # whatever a user's function makes of it
        line = (str(error).strip().splitlines() or [""])[0]
        return None, f"doesn't work: {type(error).__name__}: {line}"
    others = _other_types(found, arguments[0], jnp.bfloat16)
    if others:
        return None, f"works, but {others[0]}"
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found[1])):
        return None, "runs, but its meta-gradient isn't finite"
    return True, "bfloat16 in, bfloat16 out, and finite"


def retrace(subject: Subject) -> Seen:
    found, _ = subject.first_gradient
    params = subject.params
    for _ in range(2):
        # A leaf that isn't learned has no gradient.
        params = jax.tree.map(
            lambda slope, leaf: leaf if slope is None else (leaf - 1e-3 * slope).astype(leaf.dtype),
            found,
            params,
            is_leaf=lambda slope: slope is None,
        )
        found, _ = subject.gradient(params, subject.stacked)
    if len(subject.traces) > 1:
        return False, (
            f"three meta-steps were traced {len(subject.traces)} times: the parameters change "
            "their type or structure, so every step may compile anew"
        )
    return True, "three meta-steps, traced once"


def determinism(subject: Subject) -> Seen:
    again = subject.outcome(subject.params, subject.tasks[0])
    if not alike(subject.uncompiled, again):
        return False, (
            "called twice with the same arguments, adapt and loss give other numbers: let them "
            "keep no Python state and draw no random number but from a fixed jax.random.key"
        )
    pair = [subject.compiled(subject.params, subject.tasks[0]) for _ in range(2)]
    if not alike(*pair):
        return False, "the compiled program, run twice, gives other bits"
    return True, "twice the same bits"


def improvement(subject: Subject) -> Seen:
    def curve(params, task):
        on_support = task._replace(query=task.support)
        score = lambda adapted: subject.learner.loss(adapted, on_support)[0]
        return adapt_to(subject.learner, params, task, observe=score)[1].observed

    program = jax.jit(curve)
    rows = np.mean([program(subject.params, task) for task in subject.tasks], axis=0)
    if len(rows) < 2:
        return None, "it takes no inner steps"
    if not rows[-1] < rows[0]:
        return False, (
            f"the loss on the support set goes from {rows[0]:.4g} to {rows[-1]:.4g} by adaptation: "
            "the inner learning rate is too large, or the steps go uphill"
        )
    return True, f"the loss on the support set goes from {rows[0]:.4g} to {rows[-1]:.4g}"
