"""The meta-gradient: the mean over a batch of tasks, in chunks that suit the machine."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks, trees
from metajax.learners._checked import check_labels
from metajax.learners.base import Learner, task_gradient, task_outcome
from metajax.parallel import TasksPerChunk
from metajax.parallel import _chunks as chunks
from metajax.types import Episode, Metrics, Params, PyTree

MetaGradient = Callable[[Params, Episode], tuple[Params, Metrics]]


def meta_gradient(
    learner: Learner,
    *,
    trainable: trees.Trainable = None,
    tasks_per_chunk: TasksPerChunk = None,
    memory_budget: int | None = None,
) -> MetaGradient:
    """The gradient of the mean over tasks of the loss after adaptation.

    Within a chunk, tasks are ``vmap``ped and differentiated together. A ``scan`` over the chunks
    sums their gradients, so that memory is that of one chunk whatever the number of tasks. The
    result doesn't depend on the chunking beyond rounding.

    Args:
        learner: the algorithm.
        trainable: which leaves are differentiated; all parameters if None, so that running
            statistics, counters and keys of Flax collections are not. See
            ``metajax.trees.Trainable``.
        tasks_per_chunk: how many tasks are computed together, at least 1; it need not divide their
            number. If None, one on a CPU, where a task's working set then stays in cache, and all
            elsewhere. ``"auto"`` compiles a chunk, picks the largest that fits the cache on a CPU
            or the memory elsewhere, and logs it (logger ``metajax.parallel``).
        memory_budget: with ``"auto"``, bytes of temporary memory that a chunk may take; if None,
            80 % of what is free on an accelerator.

    Returns:
        ``gradient_fn(params, episodes) -> (gradient, metrics)``: ``episodes`` is an ``Episode``
        with a leading task axis ``[tasks, ...]``, with a key for each task if the learner is keyed;
        ``gradient`` has the structure of ``params``, with None at the leaves that aren't
        differentiated; ``metrics`` are the means over tasks of ``"loss"`` and of what the learner's
        loss reports.

    Raises:
        ArgumentError: if ``tasks_per_chunk`` or ``memory_budget`` isn't a positive integer, or,
            when the function is called, if no leaf is differentiated, not even one task fits the
            budget, or a label whose value is known is no class.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=1)
        >>> episodes = metajax.Episode(jnp.ones(4), jnp.ones(4))
        >>> gradient, metrics = metajax.meta_gradient(learner)(jnp.array(0.0), episodes)
        >>> metrics["loss"]
        Array(0.25, dtype=float32)
    """
    chunks.check(tasks_per_chunk, memory_budget)

    outcome, gradient_of_task = task_outcome(learner), task_gradient(learner)

    def one_gradient(learned, fixed, episode):
        gradient, metrics = gradient_of_task(trees.combine(learned, fixed), episode)
        of_learned = lambda like, leaf: None if like is None else leaf
        is_none = lambda leaf: leaf is None
        return jax.tree.map(of_learned, learned, gradient, is_leaf=is_none), metrics

    def mean(tree: PyTree) -> Any:
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)

    def chunk_gradient(learned, fixed, episodes):
        """The means over a chunk of tasks: gradient and metrics."""
        if learner.gradient is not None:
            return mean(jax.vmap(one_gradient, in_axes=(None, None, 0))(learned, fixed, episodes))

        def mean_outcome(learned):
            params = trees.combine(learned, fixed)
            loss, metrics = jax.vmap(outcome, in_axes=(None, 0))(params, episodes)
            return loss.mean(), mean(metrics)

        return jax.grad(mean_outcome, has_aux=True)(learned)

    def resolve(learned, fixed, episodes, n_tasks: int) -> int:
        if tasks_per_chunk == "auto":
            of_chunk = lambda both, episodes: chunk_gradient(both[0], both[1], episodes)
            both = learned, fixed
            choice = chunks.choose(of_chunk, both, episodes, memory_budget=memory_budget)
            return choice.tasks_per_chunk
        return chunks.at_once(tasks_per_chunk, n_tasks)

    def gradient_fn(params: Params, episodes: Episode) -> tuple[Params, Metrics]:
        _checks.arrays("params", params, some=True)
        learned, fixed = trees.partition(params, trainable)
        n_tasks = chunks.count_tasks(episodes)
        of_task = outcome if learner.gradient is None else gradient_of_task
        check_labels(lambda episode: of_task(params, episode), episodes)
        chunk = resolve(learned, fixed, episodes, n_tasks)
        if n_tasks == 1:
            # Without a task axis, since XLA splits an operation between a CPU's cores along its
            # first axis.
            return one_gradient(learned, fixed, jax.tree.map(lambda leaf: leaf[0], episodes))
        if chunk == n_tasks:
            return chunk_gradient(learned, fixed, episodes)
        n_chunks, remainder = divmod(n_tasks, chunk)
        # Jitted, to be traced once for both its shapes and the scan.
        body = jax.jit(one_gradient if chunk == 1 else chunk_gradient, inline=True)
        head = jax.tree.map(lambda leaf: leaf[: n_chunks * chunk], episodes)
        if chunk > 1:
            head = jax.tree.map(lambda leaf: leaf.reshape(n_chunks, chunk, *leaf.shape[1:]), head)

        shapes = jax.eval_shape(body, learned, fixed, jax.tree.map(lambda leaf: leaf[0], head))

        def accumulate(total, episodes):
            return jax.tree.map(jnp.add, total, body(learned, fixed, episodes)), None

        # Sums of many tasks are kept in float32 at least, whatever the parameters' type.
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes
        )
        total, _ = jax.lax.scan(accumulate, zeros, head)
        total = jax.tree.map(lambda leaf: leaf * (chunk / n_tasks), total)
        if remainder:
            tail = jax.tree.map(lambda leaf: leaf[n_chunks * chunk :], episodes)
            rest = chunk_gradient(learned, fixed, tail)
            total = jax.tree.map(lambda a, b: a + b * (remainder / n_tasks), total, rest)
        gradient, metrics = total
        like = jax.tree.map(lambda leaf, p: leaf.astype(jnp.result_type(p)), gradient, learned)
        return like, metrics

    return gradient_fn
