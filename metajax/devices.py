"""Sharing tasks between devices, the cores of a CPU among them."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import PyTree

AXIS = "tasks"
"""The name of the mesh axis that tasks are shared along."""


def use_every_core() -> None:
    """Makes every core of a CPU a JAX device of its own.

    A program on one device splits each operation between the cores; the operations of few-shot
    learning are too small for that. With a task to each core (``task_mesh``) the second-order
    meta-step of Conv-4 took 168 ms in place of 276 on two cores.

    Call it before JAX is first used: where its devices are already there, or their number was set
    by ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS``, nothing changes. Accelerators are left as they are.

    Example:
        >>> use_every_core()
    """
    chosen = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # raised where the devices are already there
        jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def task_mesh(n_tasks: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of as many devices as can share ``n_tasks`` equally.

    Args:
        n_tasks: how many tasks are computed at a time, such as the meta-batch.
        devices: the devices to choose from; all of this process if None.

    Returns:
        A mesh with the one axis ``"tasks"``, for ``meta_trainer`` and ``evaluate``.

    Raises:
        ArgumentError: if ``n_tasks`` isn't a positive integer, or ``devices`` are none.

    Example:
        >>> task_mesh(32).axis_names
        ('tasks',)
    """
    n_tasks = _checks.positive_int("n_tasks", n_tasks)
    if devices is None:
        devices = jax.local_devices()
    elif not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise ArgumentTypeError(f"devices must be a list of JAX devices, got {devices!r}.")
    if not devices:
        raise ArgumentError("devices must hold at least one device, got none.")
    count = max(n for n in range(1, len(devices) + 1) if n_tasks % n == 0)
    return jax.make_mesh(
        (count,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:count]
    )


def size(mesh: Mesh | None) -> int:
    """How many devices share the tasks; raises an ArgumentError for a mesh of other axes."""
    if mesh is None:
        return 1
    _checks.instance("mesh", mesh, Mesh, "a mesh from metajax.task_mesh, or None")
    if mesh.axis_names != (AXIS,):
        raise ArgumentError(
            f"mesh must have the one axis {AXIS!r}, got {mesh.axis_names}; task_mesh makes one."
        )
    return mesh.size


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are a CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def equal_share(name: str, n_tasks: int, mesh: Mesh | None) -> int:
    """How many tasks each device computes; an ArgumentError unless they can share equally."""
    n_devices = size(mesh)
    if n_tasks % n_devices:
        raise ArgumentError(
            f"{name}, {n_tasks}, can't be shared equally by the {n_devices} devices of mesh; "
            f"task_mesh({n_tasks}) chooses as many as can."
        )
    return n_tasks // n_devices


def first_task(own: int, mesh: Mesh | None) -> jax.Array | int:
    """Within ``share``, the index of this device's first task, where each has ``own`` of them."""
    return 0 if mesh is None else own * jax.lax.axis_index(AXIS)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same arrays on every device."""
    if mesh is None:
        return tree
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def share(fn: Callable, mesh: Mesh | None, *, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """``fn``, run by every device on its part; ``fn`` itself without a mesh."""
    if mesh is None:
        return fn
    # Gradients are taken, and their means over devices, inside fn: there is nothing for the types
    # of varying values to find.
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
