"""Tasks shared between devices: a CPU's cores, accelerators, devices of several processes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.types import PyTree

AXIS = "tasks"
"""The mesh axis that tasks are shared along."""

MODEL_AXIS = "model"
"""The mesh axis that parameters may be split along."""


def task_mesh(n_tasks: int, devices: Sequence[Any] | None = None, *, model: int = 1) -> Mesh:
    """A mesh of as many devices as can share ``n_tasks`` equally.

    With several processes (``jax.distributed``) it takes equally many devices of each. Every
    process must make the same mesh and call the same functions with it, in the same order.

    Args:
        n_tasks: how many tasks are computed at a time, such as the meta-batch.
        devices: JAX devices to choose from; all devices of all processes if None.
        model: how many devices share the parameters of each task, for ``shard_params``.

    Returns:
        A mesh for ``meta_trainer`` and ``evaluator`` with the axis ``"tasks"``, or with the axes
        ``("tasks", "model")`` if ``model`` > 1.

    Raises:
        ArgumentError: if ``n_tasks`` or ``model`` isn't a positive integer, there are fewer devices
            than ``model``, or the processes can't take equal shares.

    Example:
        >>> task_mesh(32).axis_names
        ('tasks',)
    """
    n_tasks = _checks.positive_int("n_tasks", n_tasks)
    model = _checks.positive_int("model", model)
    if devices is None:
        devices = jax.devices()
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
        count
        for count in range(1, most + 1)
        if processes * count % model == 0 and n_tasks % (processes * count // model) == 0
    ]
    if not counts:
        raise ArgumentError(
            f"n_tasks, {n_tasks}, can't be shared equally by {processes} processes of up to {most} "
            f"devices each with model={model}. Take a multiple of {processes} tasks, another "
            "model, or devices=jax.local_devices(), with which each process computes all tasks."
        )
    chosen = [device for local in of_process.values() for device in local[: counts[-1]]]
    axes = {AXIS: len(chosen) // model} | ({MODEL_AXIS: model} if model > 1 else {})
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
        devices=chosen,
    )


def size(mesh: Mesh | None) -> int:
    """Between how many the tasks are shared; an ArgumentError for a mesh of other axes."""
    if mesh is None:
        return 1
    if mesh.axis_names not in ((AXIS,), (AXIS, MODEL_AXIS)):
        raise ArgumentError(
            f"mesh must have the axis {AXIS!r}, or the axes {AXIS!r} and {MODEL_AXIS!r}, got "
            f"{mesh.axis_names}; metajax.task_mesh makes one."
        )
    return mesh.shape[AXIS]


def equal_share(name: str, n_tasks: int, mesh: Mesh | None) -> int:
    """How many tasks each device computes; an ArgumentError unless they can share equally."""
    n_devices = size(mesh)
    if n_tasks % n_devices:
        raise ArgumentError(
            f"{name}, {n_tasks}, can't be shared equally by the {n_devices} devices of mesh; "
            f"task_mesh({n_tasks}) chooses as many as can."
        )
    return n_tasks // n_devices


def first_task(per_device: int, mesh: Mesh | None) -> jax.Array | int:
    """Within ``share``, the index of this device's first task."""
    return per_device * jax.lax.axis_index(AXIS) if tasks_are_shared(mesh) else 0


def mean(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Within ``share``, the means over the devices that share the tasks."""
    return jax.lax.pmean(tree, AXIS) if tasks_are_shared(mesh) else tree


def tasks_are_shared(mesh: Mesh | None) -> bool:
    """Whether each device computes a part of the tasks.

    Not where a model axis leaves a single part: XLA can't sum over an axis of one device beside
    another axis.
    """
    return mesh is not None and (mesh.axis_names == (AXIS,) or mesh.shape[AXIS] > 1)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same arrays on every device of every process; the processes must give the same values.

    What is split along the mesh's model axis stays so.
    """
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mesh.axis_names == (AXIS,) and everywhere.is_fully_addressable:
        return jax.device_put(tree, everywhere)
    return jax.tree.map(lambda leaf: leaf if is_split(leaf, mesh) else put(leaf, everywhere), tree)


def is_split(leaf: Any, mesh: Mesh) -> bool:
    """Whether an array is on this mesh and split along its model axis."""
    placed = leaf.sharding if isinstance(leaf, jax.Array) else None
    return (
        isinstance(placed, NamedSharding)
        and placed.mesh == mesh
        and not placed.is_fully_replicated
        and AXIS not in jax.tree.leaves(tuple(placed.spec))
    )


def put(leaf: Any, sharding: Sharding) -> jax.Array:
    """Places an array, on devices of other processes too.

    Unlike ``jax.device_put`` it doesn't compare the processes' values.

    Args:
        leaf: an array that every process has, or one that is spread over them.
        sharding: where it goes.

    Example:
        >>> sharding = NamedSharding(task_mesh(1), PartitionSpec())
        >>> put(np.ones(3), sharding).sharding == sharding
        True
    """
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
    """Arrays as whole NumPy arrays on every process; all processes must call it.

    Example:
        >>> to_host({"a": jnp.arange(2)})
        {'a': array([0, 1], dtype=int32)}
    """

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))


def on_this_process(tree: PyTree) -> PyTree:
    """Whole arrays on this process's devices; all processes that share them must call it.

    Example:
        >>> on_this_process((jnp.arange(2),))
        (Array([0, 1], dtype=int32),)
    """
    own = lambda leaf: leaf if leaf.is_fully_addressable else jnp.asarray(to_host(leaf))
    return jax.tree.map(own, tree)


def share(fn: Callable, mesh: Mesh | None, *, in_specs: PyTree, out_specs: PyTree) -> Callable:
    """``fn``, run by every device on its part of the tasks; ``fn`` itself without a mesh.

    Along a model axis XLA divides the work by where the parameters are.
    """
    if not tasks_are_shared(mesh):
        return fn
    # fn itself takes gradients and their means over devices, so types of varying values have
    # nothing to check.
    return jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS}, check_vma=False
    )
