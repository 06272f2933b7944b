"""The meta-gradient: the mean over a batch of tasks, in chunks that suit the machine."""

from collections.abc import Callable

from metajax import trees
from metajax._task_means import task_means
from metajax.learners.base import Learner
from metajax.parallel import TasksPerChunk
from metajax.types import Episode, Metrics, Params

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
    means_of = task_means(
        learner,
        trainable=trainable,
        tasks_per_chunk=tasks_per_chunk,
        memory_budget=memory_budget,
    )

    def gradient_fn(params: Params, episodes: Episode) -> tuple[Params, Metrics]:
        gradient, metrics, _ = means_of(params, episodes)
        return gradient, metrics

    return gradient_fn
