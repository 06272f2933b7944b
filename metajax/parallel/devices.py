"""Sharing tasks between devices: a CPU's cores, accelerators, those of several processes."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import PyTree

AXIS = "tasks"
"""The name of the mesh axis that tasks are shared along."""

MODEL_AXIS = "model"
"""The name of the axis that parameters may be split along, beside the other."""


def use_every_core() -> None:
    """Makes every core of a CPU a JAX device of its own.

    A program on one device splits each operation between the cores; the operations of few-shot
    learning are too small for that. With a task to each core (``task_mesh``) the second-order
    meta-step of Conv-4 took 168 ms in place of 276 on two cores.

    Call it before JAX is first used: where its devices are already there, or their number was set
    by ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS``, nothing changes; nor after
    ``jax.distributed.initialize``: on CPUs a process is a device then. Accelerators are left as
    they are.

    Example:
        >>> use_every_core()
    """
    chosen = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    if (
        jax.distributed.is_initialized()
        or chosen
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    ):
        return
    with contextlib.suppress(RuntimeError):  # raised where the devices are already there
        jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def task_mesh(n_tasks: int, devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """A mesh of as many devices as can share ``n_tasks`` equally.

    Where several processes run (``jax.distributed``), it takes as many devices of each, and every
    process must make the same mesh and call the same functions with it, in the same order.

    Args:
        n_tasks: how many tasks are computed at a time, such as the meta-batch.
        devices: the devices to choose from; all, those of other processes too, if None.
        model: how many devices share the parameters of each task, for ``shard_params``.

    Returns:
        A mesh with the one axis ``"tasks"``, for ``meta_trainer`` and ``evaluate``; with
        ``model`` > 1, of the axes ``("tasks", "model")``.

    Raises:
        ArgumentError: if ``n_tasks`` or ``model`` isn't a positive integer, there are fewer devices
            than ``model``, or the processes can't take equal parts.

    Example:
        >>> task_mesh(32).axis_names
        ('tasks',)
    """
    n_tasks = _checks.positive_int("n_tasks", n_tasks)
    model = _checks.positive_int("model", model)
    if devices is None:
        devices = jax.devices()
    elif not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise ArgumentTypeError(f"devices must be a list of JAX devices, got {devices!r}.")
    if not devices:
        raise ArgumentError("devices must hold at least one device, got none.")
    of_process: dict[int, list[Any]] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    processes, most = len(of_process), min(map(len, of_process.values()))
    if processes * most < model:
        raise ArgumentError(
            f"model, {model}, needs at least as many devices, but there are {processes * most}."
        )
    counts = [
        own
        for own in range(1, most + 1)
        if processes * own % model == 0 and n_tasks % (processes * own // model) == 0
    ]
    if not counts:
        raise ArgumentError(
            f"n_tasks, {n_tasks}, can't be shared equally by {processes} processes of up to {most} "
            f"devices each with model={model}: take a multiple of {processes} tasks, another "
            "model, or devices=jax.local_devices() for each process to compute everything itself."
        )
    chosen = [device for own in of_process.values() for device in own[: counts[-1]]]
    axes = {AXIS: len(chosen) // model} | ({MODEL_AXIS: model} if model > 1 else {})
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
        devices=chosen,
    )


def size(mesh: Mesh | None) -> int:
    """Between how many the tasks are shared; raises an ArgumentError for a mesh of other axes."""
    if mesh is None:
        return 1
    _checks.instance("mesh", mesh, Mesh, "a mesh from metajax.task_mesh, or None")
    if mesh.axis_names not in ((AXIS,), (AXIS, MODEL_AXIS)):
        raise ArgumentError(
            f"mesh must have the one axis {AXIS!r}, or {MODEL_AXIS!r} after it, got "
            f"{mesh.axis_names}; task_mesh makes one."
        )
    return mesh.shape[AXIS]


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are a CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def meets_on_host(mesh: Mesh | None) -> bool:
    """Whether the devices had better not wait for one another within a program: where they are the
    cores of one process's CPU, and nothing else needs them to."""
    return (
        mesh is not None
        and on_cpu(mesh)
        and mesh.axis_names == (AXIS,)
        and len({device.process_index for device in mesh.devices.flat}) == 1
    )


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
    return own * jax.lax.axis_index(AXIS) if tasks_are_shared(mesh) else 0


def mean(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Within ``share``, the means over those that share the tasks."""
    return jax.lax.pmean(tree, AXIS) if tasks_are_shared(mesh) else tree


def tasks_are_shared(mesh: Mesh | None) -> bool:
    """Whether a program is one for each part of the tasks. Where all devices compute the same tasks
    it isn't: XLA has no sums over an axis of one device beside another axis."""
    return mesh is not None and (mesh.axis_names == (AXIS,) or mesh.shape[AXIS] > 1)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same arrays on every device, of every process; what is split along the mesh's model axis
    stays so.

    Every process must give the same values.
    """
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mesh.axis_names == (AXIS,) and everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda leaf: leaf if is_split(leaf, mesh) else put(leaf, everywhere), tree)


def is_split(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array is on this mesh, and split along its model axis."""
    placed = leaf.sharding if isinstance(leaf, jax.Array) else None
    return (
        isinstance(placed, NamedSharding)
        and placed.mesh == mesh
        and not placed.is_fully_replicated
        and AXIS not in jax.tree.leaves(tuple(placed.spec))
    )


def put(leaf: Any, sharding: Sharding) -> jax.Array:
    """An array that every process has, or that is spread over them, placed as ``sharding`` says."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    if leaf.sharding == sharding:
        return leaf
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Not device_put, which would ask all processes whether they have the same.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(tree: PyTree) -> PyTree:
    """As NumPy arrays, whole, on every process; all of them must call it."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))


def share(fn: Callable, mesh: Mesh | None, *, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """``fn``, run by every device on its part of the tasks; ``fn`` itself without a mesh.

    Along a model axis XLA finds out who computes what, from where the parameters are.
    """
    if not tasks_are_shared(mesh):
        return fn
    # Gradients are taken, and their means over devices, inside fn: there is nothing for the types
    # of varying values to find.
    return jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS}, check_vma=False
    )
