"""Tasks in chunks: how many are computed together."""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.types import PyTree

TasksPerChunk = int | Literal["auto"] | None
"""How many tasks are computed together: a number; ``"auto"`` for the largest that fits the cache or
the memory; or None for the backend's default."""

CACHE_BYTES = 6 * 2**20
"""Temporary memory up to which larger chunks were no slower on a CPU. Measured with Conv-4 of 16,
32, 64 filters and with fully connected networks, on one core with 1 MiB of second-level cache."""

DEVICE_FRACTION = 0.8
"""How much of an accelerator's free memory a chunk may take."""

_log = logging.getLogger("metajax.parallel")


class ChunkSize(NamedTuple):
    """What ``choose`` picked.

    Attributes:
        tasks_per_chunk: how many tasks are computed together.
        temporary_bytes: the temporary memory that XLA plans for it; None without a budget.
        budget_bytes: the budget; None if there is none.
        reason: why this number.
    """

    tasks_per_chunk: int
    temporary_bytes: int | None
    budget_bytes: int | None
    reason: str


def check(tasks_per_chunk: Any, memory_budget: Any = None) -> None:
    """Raises an ArgumentError unless both are what ``meta_gradient`` accepts."""
    if isinstance(tasks_per_chunk, str):
        if tasks_per_chunk != "auto":
            raise ArgumentError(
                "tasks_per_chunk must be a positive integer, 'auto' or None, got "
                f"{tasks_per_chunk!r}."
            )
    elif tasks_per_chunk is not None:
        _checks.positive_int("tasks_per_chunk", tasks_per_chunk)
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)
        if tasks_per_chunk != "auto":
            raise ArgumentError(
                f"memory_budget={memory_budget} needs tasks_per_chunk='auto', but "
                f"tasks_per_chunk={tasks_per_chunk!r}."
            )


def count_tasks(tasks: PyTree) -> int:
    """The length of the leading axis that all leaves share, or an ArgumentError."""
    return _checks.leading_axis("episodes", tasks, "task")


def at_once(tasks_per_chunk: int | None, n_tasks: int) -> int:
    """How many tasks that is, never more than there are.

    If None, what was fastest: one on a CPU, where a task's working set then stays in cache; all
    elsewhere, which fills the device.
    """
    if tasks_per_chunk is None:
        return 1 if jax.default_backend() == "cpu" else n_tasks
    return min(tasks_per_chunk, n_tasks)


def map_chunks(
    fn: Callable[[PyTree], PyTree], tasks: PyTree, *, tasks_per_chunk: int | None
) -> PyTree:
    """``vmap``s a function over the leading axis, ``tasks_per_chunk`` at a time.

    Args:
        fn: a function of one task.
        tasks: pytree with a leading task axis.
        tasks_per_chunk: how many are computed together; the backend's default if None.

    Returns:
        What ``jax.vmap(fn)(tasks)`` returns.
    """
    n_tasks = count_tasks(tasks)
    chunk = at_once(tasks_per_chunk, n_tasks)
    if chunk == n_tasks:
        return jax.vmap(fn)(tasks)
    return jax.lax.map(fn, tasks, batch_size=None if chunk == 1 else chunk)


def choose(
    fn: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    tasks: PyTree,
    *,
    memory_budget: int | None = None,
) -> ChunkSize:
    """Picks the largest power of two, or all tasks, whose temporary memory fits a budget.

    On a CPU a chunk should also fit the cache; one task within the budget is accepted even if it
    doesn't. The choice is logged at level INFO. Nothing is run; the function is compiled for one to
    three sizes of a chunk.

    Args:
        fn: ``fn(params, chunk)``, computed for each chunk, whose leaves have a leading task axis.
        params: its first argument, or the shapes of it.
        tasks: all tasks ``[tasks, ...]``, or the shapes of them.
        memory_budget: bytes; if None, 80 % of what is free on an accelerator, no limit on a CPU.

    Returns:
        A ``ChunkSize``.

    Raises:
        ArgumentError: if not even one task fits.

    Example:
        >>> fn = lambda params, chunk: (jnp.sin(params * chunk) ** 2).sum()
        >>> choose(fn, jnp.zeros(()), jnp.zeros((4, 10))).tasks_per_chunk
        4
    """
    n_tasks = count_tasks(tasks)
    on_cpu = jax.default_backend() == "cpu"
    limit = memory_budget
    if limit is None and not on_cpu:
        limit = _free_device_bytes()
    budget = min(CACHE_BYTES, limit or CACHE_BYTES) if on_cpu else limit

    shapes = lambda tree: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )
    measured: dict[int, int] = {}

    def temporary_bytes(size: int) -> int:
        if size not in measured:
            chunk = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype),
                shapes(tasks),
            )
            memory = jax.jit(fn).lower(shapes(params), chunk).compile().memory_analysis()
            measured[size] = 0 if memory is None else int(memory.temp_size_in_bytes)
        return measured[size]

    def decided(size: int, reason: str) -> ChunkSize:
        chosen = ChunkSize(size, measured.get(size), budget, reason)
        _log.info("tasks_per_chunk: %d of %d tasks (%s)", size, n_tasks, reason)
        return chosen

    def fitting(size: int, budget: int) -> int:
        """What fits if memory is proportional to the number of tasks."""
        number = size * budget // max(temporary_bytes(size), 1)
        return n_tasks if number >= n_tasks else 1 << max(number.bit_length() - 1, 0)

    if budget is None:
        return decided(n_tasks, "all: the device doesn't report its memory")
    # One task is the usual choice on a CPU, all of them elsewhere: that size is compiled first.
    size = 1 if on_cpu else n_tasks
    if temporary_bytes(size) <= budget:
        size = fitting(size, budget)
    while size > 1 and temporary_bytes(size) > budget:
        size = min(fitting(size, budget), 1 << ((size - 1).bit_length() - 1))
    used = temporary_bytes(size)
    if used <= budget:
        return decided(size, f"{_mib(used)} of temporary memory, within {_mib(budget)}")
    if limit is not None and used > limit:
        raise ArgumentError(
            f"memory_budget: one task takes {_mib(used)} of temporary memory, more than "
            f"{_mib(limit)}; a mode that keeps less, such as "
            "metajax.mixed(checkpoint_levels=1), takes less."
        )
    return decided(1, f"one takes {_mib(used)} of temporary memory, more than the cache")


def _mib(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"


def _free_device_bytes() -> int | None:
    statistics = jax.local_devices()[0].memory_stats() or {}
    limit = statistics.get("bytes_limit")
    if limit is None:
        return None
    return int(DEVICE_FRACTION * (limit - statistics.get("bytes_in_use", 0)))
