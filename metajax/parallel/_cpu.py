"""Tasks shared between the cores of a CPU, each a JAX device of its own."""

import functools
import os
import warnings
from collections.abc import Callable

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from metajax.parallel import _devices as devices
from metajax.types import PyTree


def use_every_core() -> None:
    """Makes every core of a CPU a JAX device of its own.

    A program on one device splits each operation between the cores; the operations of few-shot
    learning are too small for that. With a task on each core (``task_mesh``) the second-order
    meta-step of Conv-4 took 168 ms instead of 276 ms on two cores.

    Call it before JAX is first used; later it warns and changes nothing. It also changes nothing
    where ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` set the number of devices, and after
    ``jax.distributed.initialize``, where each process is one device. Accelerators stay as they are.

    Example:
        >>> use_every_core()
    """
    if (
        jax.distributed.is_initialized()
        or getattr(jax.config, "jax_num_cpu_devices", -1) != -1
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    ):
        return
    cores = _cores()
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # the devices are there already
        if cores > 1 and jax.default_backend() == "cpu":
            warnings.warn(
                "use_every_core() changes nothing: JAX has its devices already, so one CPU device "
                "computes all tasks. Call it before anything uses JAX, or set "
                f"JAX_NUM_CPU_DEVICES={cores}.",
                stacklevel=2,
            )


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are a CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def meets_on_host(mesh: Mesh) -> bool:
    """Whether the gradients of the devices meet on the host, by ``a_program_a_device``.

    They do where the devices are the cores of one process's CPU and share nothing but the tasks.
    """
    return (
        on_cpu(mesh)
        and mesh.axis_names == (devices.AXIS,)
        and len({device.process_index for device in mesh.devices.flat}) == 1
    )


def a_program_a_device(means_of_step: Callable, update: Callable, mesh: Mesh):
    """``step`` and ``run`` of a trainer whose devices meet on the host after each step.

    A program that sums over CPU devices waits for the others inside XLA's few threads, and was seen
    to hang. Here no device waits for another.

    Args:
        means_of_step: ``means_of_step(state, arrays) -> (gradient, metrics)`` of a device's tasks.
        update: ``update(state, (gradient, metrics)) -> (state, metrics)``.
        mesh: the devices.

    Returns:
        ``step(state, arrays)`` and ``run(state, arrays, steps)``.
    """
    everywhere, each = PartitionSpec(), PartitionSpec(devices.AXIS)
    # Vector to gradient and metrics. A state's first program sets it when it is traced, and only
    # its second program, traced later, uses it.
    unravel: Callable[[jax.Array], PyTree] = lambda vector: vector

    @jax.jit
    def means_of_devices(state, arrays):
        def means_of_device(state, arrays):
            nonlocal unravel
            # One array to copy, not one for each leaf: that takes half a millisecond, not two.
            vector, unravel = ravel_pytree(means_of_step(state, arrays))
            return vector[None]

        shared = devices.share(means_of_device, mesh, in_specs=everywhere, out_specs=each)
        return shared(state, arrays)

    @functools.partial(jax.jit, donate_argnums=0)
    def update_everywhere(state, vector):
        def update_of_device(state, vector):
            return update(state, unravel(vector))

        shared = devices.share(update_of_device, mesh, in_specs=everywhere, out_specs=everywhere)
        return shared(state, vector)

    def step(state, arrays):
        vectors = jax.device_get(means_of_devices(state, arrays))
        return update_everywhere(state, devices.replicate(vectors.mean(axis=0), mesh))

    def run(state, arrays, steps):
        history = []
        for _ in range(steps):
            state, metrics = step(state, arrays)
            history.append(metrics)
        history = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(history))
        return state, devices.replicate(history, mesh)

    return step, run
