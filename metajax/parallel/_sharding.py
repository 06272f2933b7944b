"""Parameters split between devices, for models too large for one device."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from metajax import _checks, trees
from metajax.errors import ArgumentError
from metajax.parallel import _devices as devices
from metajax.types import Params, PyTree

Rule = Callable[[str, Any], PartitionSpec]
"""``rule(path, leaf) -> PartitionSpec``: which axis of a leaf is split along ``"model"``, if any; a
path looks like ``"params/head/kernel"``."""

Placement = tuple[NamedSharding, ...] | None
"""The shardings of a tree's leaves; None where nothing is split."""


def shard_params(
    params: Params, mesh: Mesh, rule: Rule | None = None, *, min_size: int = 2**14
) -> Params:
    """Splits parameters along the model axis of a mesh: each device holds its part.

    ``meta_trainer`` and ``evaluator`` with the same mesh keep them split, gradients and the
    optimizer's state too; XLA adds the communication.

    Args:
        params: any pytree of arrays, the same on every process.
        mesh: from ``task_mesh(n_tasks, model=...)``.
        rule: which axis of each leaf is split; if None, the largest axis that the model axis
            divides, the last of equal ones.
        min_size: without a rule, leaves of fewer elements are whole on every device.

    Returns:
        The same parameters, split.

    Raises:
        ArgumentError: if the mesh has no model axis, or the rule names another axis, or one of a
            length that the model axis doesn't divide.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> mesh = metajax.task_mesh(4, model=2)
        >>> params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
        >>> placed = shard_params(params, mesh, min_size=12)
        >>> [shard.data.shape for shard in placed["kernel"].addressable_shards]
        [(4, 3), (4, 3)]
        >>> placed["bias"].sharding.is_fully_replicated
        True
    """
    devices.size(mesh)
    if devices.MODEL_AXIS not in mesh.axis_names:
        raise ArgumentError(
            f"mesh must have an axis {devices.MODEL_AXIS!r}, got {mesh.axis_names}; "
            "task_mesh(n_tasks, model=2) makes one."
        )
    min_size = _checks.non_negative_int("min_size", min_size)
    parts = mesh.shape[devices.MODEL_AXIS]

    def spec(path: str, leaf: Any) -> PartitionSpec:
        if rule is None:
            return _largest_axis(jnp.shape(leaf), parts, min_size)
        return _checked(rule(path, leaf), path, jnp.shape(leaf), parts)

    leaves, structure = jax.tree.flatten(params)
    specs = [spec(*of) for of in zip(trees.leaf_paths(params), leaves, strict=True)]
    placed = [
        devices.put(leaf, NamedSharding(mesh, of_leaf))
        for leaf, of_leaf in zip(leaves, specs, strict=True)
    ]
    return structure.unflatten(placed)


def _largest_axis(shape: tuple[int, ...], parts: int, min_size: int) -> PartitionSpec:
    axes = [axis for axis, length in enumerate(shape) if length and length % parts == 0]
    if not axes or math.prod(shape) < min_size:
        return PartitionSpec()
    chosen = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * chosen, devices.MODEL_AXIS)


def _checked(spec: PartitionSpec, path: str, shape: tuple[int, ...], parts: int) -> PartitionSpec:
    """What a rule returned, or an ArgumentError that says what is wrong with it."""
    wrong = None
    if len(spec) > len(shape):
        wrong = f"which has more entries than the shape {shape}"
    elif any(name not in (None, devices.MODEL_AXIS) for name in spec):
        wrong = f"but only {devices.MODEL_AXIS!r} can split parameters"
    elif any(name and length % parts for name, length in zip(spec, shape, strict=False)):
        wrong = f"but the {parts} devices of the model axis don't divide that axis of {shape}"
    if wrong:
        raise ArgumentError(f"rule returned {spec!r} for {path!r}, {wrong}.")
    return spec


def placed_like(init: Callable[[Params], PyTree], params: Params, mesh: Mesh | None) -> PyTree:
    """``init(params)``, such as an optimizer's state, whose leaves are split as the parameters are.

    A leaf belongs to the parameter that its path ends with, if both have one shape.
    """
    if mesh is None or placement_of(params, mesh) is None:
        return init(params)
    known = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: Any) -> Sharding:
        for start in range(len(path) + 1):  # the longest end of the path first
            param = known.get(path[start:])
            if param is not None:
                same = param.shape == leaf.shape and devices.is_split(param, mesh)
                return param.sharding if same else everywhere
        return everywhere

    shapes = jax.eval_shape(init, params)
    placement = jax.tree_util.tree_map_with_path(place, shapes)
    return jax.jit(init, out_shardings=placement)(devices.replicate(params, mesh))


def placement_of(tree: PyTree, mesh: Mesh | None) -> Placement:
    """The leaves' shardings, if any leaf is split along the mesh's model axis."""
    if mesh is None or devices.MODEL_AXIS not in mesh.axis_names:
        return None
    leaves = jax.tree.leaves(tree)
    if not any(devices.is_split(leaf, mesh) for leaf in leaves):
        return None
    return tuple(leaf.sharding for leaf in leaves)


def keep(tree: PyTree, placement: Placement, mesh: Mesh | None) -> PyTree:
    """Within ``devices.share``: the same leaves, which XLA must keep where they are."""
    if placement is None or mesh is None:
        return tree
    # A device that computes a part of the tasks sees the other axes alone.
    part = devices.tasks_are_shared(mesh)
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        jax.lax.with_sharding_constraint(leaf, place.spec if part else place)
        for leaf, place in zip(leaves, placement, strict=True)
    )


def kept_by_program(
    outcome: tuple[PyTree, PyTree], placement: Placement, mesh: Mesh | None
) -> tuple[PyTree, PyTree]:
    """A program's state and metrics: the state where it was, the metrics on every device."""
    if placement is None or mesh is None:
        return outcome
    state, metrics = outcome
    leaves, structure = jax.tree.flatten(state)
    leaves = jax.tree.map(jax.lax.with_sharding_constraint, leaves, list(placement))
    metrics = jax.lax.with_sharding_constraint(metrics, NamedSharding(mesh, PartitionSpec()))
    return structure.unflatten(leaves), metrics
