"""Means over tasks of meta-gradients and metrics, and which tasks aren't finite."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks, _non_finite, trees
from metajax.learners._checked import check_labels
from metajax.learners.base import Learner, task_gradient, task_outcome
from metajax.parallel import TasksPerChunk
from metajax.parallel import _chunks as chunks
from metajax.types import Episode, Metrics, Params, PyTree


class TaskMeans(NamedTuple):
    """Means over tasks, and which of these were bad.

    Attributes:
        gradient: the meta-gradient.
        metrics: of the tasks.
        bad: whether a task's loss or gradient has a NaN or an infinity, bool ``[tasks]``; None
            unless it is watched.
    """

    gradient: Params
    metrics: Metrics
    bad: jax.Array | None


def task_means(
    learner: Learner,
    *,
    trainable: trees.Trainable = None,
    tasks_per_chunk: TasksPerChunk = None,
    memory_budget: int | None = None,
    watch: Literal["mark", "leave out"] | None = None,
) -> Callable[[Params, Episode], TaskMeans]:
    """What ``meta_gradient`` computes, and which tasks aren't finite.

    Args:
        learner: see ``meta_gradient``.
        trainable: the same.
        tasks_per_chunk: the same.
        memory_budget: the same.
        watch: whether to mark bad tasks, or to let them count as zeros too.

    Example:
        >>> import optax, metajax
        >>> learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=1)
        >>> episodes = metajax.Episode(jnp.array([1.0, jnp.nan]), jnp.ones(2))
        >>> found = task_means(learner, watch="leave out")(jnp.array(0.0), episodes)
        >>> found.bad.tolist(), found.metrics["loss"].item()
        ([False, True], 0.125)
    """
    chunks.check(tasks_per_chunk, memory_budget)

    outcome, gradient_of_task = task_outcome(learner), task_gradient(learner)

    def one_gradient(learned, fixed, episode):
        gradient, metrics = gradient_of_task(trees.combine(learned, fixed), episode)
        of_learned = lambda like, leaf: None if like is None else leaf
        is_none = lambda leaf: leaf is None
        found = jax.tree.map(of_learned, learned, gradient, is_leaf=is_none), metrics
        if watch is None:
            return found, None
        bad = _non_finite.has_any((found[0], metrics.get("loss", 0.0)))
        if watch == "leave out":
            found = jax.tree.map(lambda leaf: jnp.where(bad, jnp.zeros_like(leaf), leaf), found)
        return found, bad

    def mean(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)

    def chunk_gradient(learned, fixed, episodes):
        """The means over a chunk of tasks, gradient and metrics; and which tasks are bad."""
        if learner.gradient is not None or watch is not None:
            of_tasks = jax.vmap(one_gradient, in_axes=(None, None, 0))
            found, bad = of_tasks(learned, fixed, episodes)
            return mean(found), bad

        def mean_outcome(learned):
            params = trees.combine(learned, fixed)
            loss, metrics = jax.vmap(outcome, in_axes=(None, 0))(params, episodes)
            return loss.mean(), mean(metrics)

        return jax.grad(mean_outcome, has_aux=True)(learned), None

    def resolve(learned, fixed, episodes, n_tasks: int) -> int:
        if tasks_per_chunk == "auto":
            of_chunk = lambda both, episodes: chunk_gradient(both[0], both[1], episodes)
            both = learned, fixed
            choice = chunks.choose(of_chunk, both, episodes, memory_budget=memory_budget)
            return choice.tasks_per_chunk
        return chunks.at_once(tasks_per_chunk, n_tasks)

    def means_of(params: Params, episodes: Episode) -> TaskMeans:
        _checks.arrays("params", params, some=True)
        learned, fixed = trees.partition(params, trainable)
        n_tasks = chunks.count_tasks(episodes)
        of_task = outcome if learner.gradient is None else gradient_of_task
        check_labels(lambda episode: of_task(params, episode), episodes)
        chunk = resolve(learned, fixed, episodes, n_tasks)
        if n_tasks == 1:
            # Without a task axis, since XLA splits an operation between a CPU's cores along its
            # first axis.
            alone = jax.tree.map(lambda leaf: leaf[0], episodes)
            (gradient, metrics), bad = one_gradient(learned, fixed, alone)
            return TaskMeans(gradient, metrics, None if bad is None else bad[None])
        if chunk == n_tasks:
            (gradient, metrics), bad = chunk_gradient(learned, fixed, episodes)
            return TaskMeans(gradient, metrics, bad)
        n_chunks, remainder = divmod(n_tasks, chunk)
        # Jitted, to be traced once for both its shapes and the scan.
        body = jax.jit(one_gradient if chunk == 1 else chunk_gradient, inline=True)
        head = jax.tree.map(lambda leaf: leaf[: n_chunks * chunk], episodes)
        if chunk > 1:
            head = jax.tree.map(lambda leaf: leaf.reshape(n_chunks, chunk, *leaf.shape[1:]), head)

        first = jax.tree.map(lambda leaf: leaf[0], head)
        shapes, _ = jax.eval_shape(body, learned, fixed, first)

        def accumulate(total, episodes):
            means, bad = body(learned, fixed, episodes)
            return jax.tree.map(jnp.add, total, means), bad

        # Sums of many tasks are kept in float32 at least, whatever the parameters' type.
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes
        )
        total, bad = jax.lax.scan(accumulate, zeros, head)
        total = jax.tree.map(lambda leaf: leaf * (chunk / n_tasks), total)
        if remainder:
            tail = jax.tree.map(lambda leaf: leaf[n_chunks * chunk :], episodes)
            rest, more = chunk_gradient(learned, fixed, tail)
            bad = jax.tree.map(lambda a, b: jnp.concatenate([a.reshape(-1), b]), bad, more)
            total = jax.tree.map(lambda a, b: a + b * (remainder / n_tasks), total, rest)
        gradient, metrics = total
        like = jax.tree.map(lambda leaf, p: leaf.astype(jnp.result_type(p)), gradient, learned)
        return TaskMeans(like, metrics, None if bad is None else bad.reshape(-1))

    return means_of
