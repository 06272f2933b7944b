"""Other values for a task's arrays, and whether two results are the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax import trees
from metajax.types import Batch, MaskedBatch, PyTree


def leaf_changed(leaf: Any, key: jax.Array, scale: float = 0.5) -> jax.Array:
    """The leaf with noise, if floating-point; integers moved on by one among those it has, the
    largest to the smallest, so that class indices stay class indices; anything else as it is.

    Example:
        >>> leaf_changed(jnp.array([0, 2, 1]), jax.random.key(0)).tolist()
        [1, 0, 2]
    """
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        spread = scale * (jnp.std(leaf) + 0.2)
        noise = jax.random.normal(key, leaf.shape, jnp.float32)
        return leaf + (spread * noise).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.size:
        low, high = int(leaf.min()), int(leaf.max())
        return ((leaf.astype(jnp.int32) - low + 1) % (high - low + 1) + low).astype(leaf.dtype)
    return leaf


def changed(
    tree: PyTree,
    key: jax.Array,
    scale: float = 0.5,
    *,
    integers: bool = True,
) -> PyTree:
    """The tree with all its leaves changed; integers only where asked."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        leaf_changed(leaf, jax.random.fold_in(key, i), scale)
        if integers or trees.is_floating(leaf)
        else leaf
        for i, leaf in enumerate(leaves)
    )


def labelled(batch: PyTree) -> bool:
    """Whether it is clear which arrays are inputs and which are targets."""
    return isinstance(batch, Batch | MaskedBatch) or (type(batch) is tuple and len(batch) == 2)


def with_targets(batch: PyTree, targets: Any) -> PyTree:
    """A labelled batch with other targets."""
    if hasattr(batch, "_replace"):
        return batch._replace(targets=targets)
    return (batch[0], targets)


def parts(batch: PyTree, key: jax.Array) -> dict[str, PyTree]:
    """The batch with all of it changed, and, where it is labelled, with its targets alone; without
    what can't be changed, such as targets that are all of one class."""
    if labelled(batch):
        targets = changed(batch[1], key)
        found = {"targets": with_targets(batch, targets)}
        inputs = changed(batch[0], jax.random.fold_in(key, 1))
        both = with_targets(batch, targets)
        found["all"] = (
            both._replace(inputs=inputs) if hasattr(both, "_replace") else (inputs, targets)
        )
    else:
        found = {"all": changed(batch, key)}
    return {name: other for name, other in found.items() if not alike(other, batch)}


def sameness(batch: PyTree) -> str | None:
    """What is the same in all of a batch, or not finite, so that it tells nothing of a learner.

    Example:
        >>> sameness(Batch(jnp.zeros((2, 3)), jnp.array([0, 1])))
        'inputs are all 0.0'
        >>> sameness(Batch(jnp.eye(2), jnp.array([1, 1])))
        'targets are all 1'
    """
    leaves = lambda tree: [np.asarray(x) for x in jax.tree.leaves(tree) if not trees.is_key(x)]
    parts = {"arrays": leaves(batch)}
    if labelled(batch):
        mask = getattr(batch, "mask", None)
        real = ... if mask is None else np.asarray(mask).astype(bool)
        parts = {
            name: [array[real] for array in leaves(part)]
            for name, part in (("inputs", batch[0]), ("targets", batch[1]))
        }
    for name, arrays in parts.items():
        if not all(np.isfinite(array).all() for array in arrays if trees.is_floating(array)):
            return f"{name} have a NaN or an infinity"
        arrays = [array for array in arrays if array.size > 1]
        if arrays and all((array == array.ravel()[0]).all() for array in arrays):
            return f"{name} are all {arrays[0].ravel()[0]!s}"
        if arrays and all(len(array) > 1 and (array == array[0]).all() for array in arrays):
            return f"{name} are the same in every example"
    return None


def alike(a: PyTree, b: PyTree) -> bool:
    """Whether two results are the same, bit for bit; a NaN is like a NaN.

    Example:
        >>> alike({"a": jnp.array(jnp.nan)}, {"a": jnp.array(jnp.nan)}), alike(0.0, 1.0)
        (True, False)
    """
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(_equal(_host(x), _host(y)) for x, y in pairs)


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def _host(leaf: Any) -> np.ndarray:
    if trees.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def parting(a: PyTree, b: PyTree, rtol: float) -> str | None:
    """The leaf where two trees part, with both numbers; None where they agree.

    Args:
        a: any pytree.
        b: another of its structure.
        rtol: what is allowed, of a leaf's largest element.

    Example:
        >>> parting({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.0, 3.0])}, 0.1)
        'w: 2 and 3'
    """
    for path, x, y in zip(trees.leaf_paths(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if not trees.is_floating(x):
            continue
        x, y = (np.asarray(leaf).astype(np.float64) for leaf in (x, y))
        off = np.where(np.isnan(x) & np.isnan(y), 0, np.abs(x - y))
        allowed = rtol * np.nanmax(np.abs([x, y]), initial=0) + 1e-6
        if not (off <= allowed).all():
            at = np.unravel_index(int(np.argmax(np.nan_to_num(off, nan=np.inf))), off.shape)
            return f"{path or 'the value'}: {x[at]:.6g} and {y[at]:.6g}"
    return None
