"""The matrices among a model's parameters, by what a user says of their paths."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.types import Params

Target = str | re.Pattern[str] | Callable[[str], Any]
"""A regular expression that is searched in a leaf's path, or a predicate of the path."""

Keys = tuple[Any, ...]
"""The keys of nested dicts (of lists and objects: index and name) that lead to a leaf."""


def matrices(
    params: Params, targets: Target | Sequence[Target], layer_axes: int | None = None
) -> dict[Keys, Any]:
    """The matrices that match, and stacks of them; see ``lora.init``, which has these arguments.

    Example:
        >>> params = {"up": {"kernel": jnp.ones((5, 2, 3)), "bias": jnp.ones((5, 3))}}
        >>> {keys: leaf.shape for keys, leaf in matrices(params, "up").items()}
        {('up', 'kernel'): (5, 2, 3)}
    """
    leaves = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): (tuple(map(_own, keys)), leaf)
        for keys, leaf in jax.tree.leaves_with_path(params)
    }
    patterns: list[Any] = [targets]
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        patterns = list(targets)
    if not patterns:
        raise ArgumentError(f"targets must have at least one pattern, got {targets!r}.")
    shapes = {keys: jnp.shape(leaf) for keys, leaf in leaves.values()}
    if layer_axes is None:
        layers = _layers(shapes)
    else:
        layers = dict.fromkeys(shapes, _checks.non_negative_int("layer_axes", layer_axes))

    def is_vector(path: str) -> bool:
        keys, leaf = leaves[path]
        axes = jnp.ndim(leaf) - (layers[keys] if layer_axes is None else 0)
        return axes < 2 or _name(keys) in ("bias", "scale")  # as Flax names them

    matched: set[str] = set()
    for pattern in patterns:
        matches = _matcher(pattern)
        found = [path for path in leaves if matches(path)]
        if not found:
            raise ArgumentError(
                f"targets: {pattern!r} matches no leaf of params, whose paths are {list(leaves)}."
            )
        among = {path for path in found if not is_vector(path)}
        if not among:
            shape = jnp.shape(leaves[found[0]][1])
            raise ArgumentError(
                f"targets: {pattern!r} matches no matrix: {found[0]!r}, which has shape {shape}, "
                "is a bias, a norm's scale or a vector."
            )
        matched |= among
    chosen = {path: leaf for path, leaf in leaves.items() if path in matched}
    for path, (keys, leaf) in chosen.items():
        _check_matrix(path, leaf, layers[keys], shapes.get((*keys[:-1], "bias")))
    return dict(chosen.values())


def _own(key: Any) -> Any:
    """A key of a dict, a list or an object, as it is written there."""
    return next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def _name(keys: Keys) -> Any:
    """What a leaf is called; in an ``nnx.State`` there is a "value" below that."""
    return next((key for key in reversed(keys) if key != "value"), None)


def _matcher(pattern: Any) -> Callable[[str], Any]:
    try:
        return pattern if callable(pattern) else re.compile(pattern).search
    except (re.error, TypeError) as error:
        raise ArgumentError(
            "targets must be regular expressions, or predicates of a path, got "
            f"{pattern!r}: {error}."
        ) from None


def _layers(shapes: Mapping[Keys, tuple[int, ...]]) -> dict[Keys, int]:
    """How many of each leaf's leading axes are of layers.

    Where all leaves below a key have the same first axis, and matrices and vectors of other names
    are left without it, this axis is of layers. Kernels of heads ``[in, heads, out]`` are no such
    stack: their bias is ``[heads, out]``, and a kernel beside them ``[in, out]``.
    """
    names: dict[int, set[Any]] = {}
    for keys, shape in shapes.items():
        names.setdefault(len(shape), set()).add(_name(keys))
    least, most = min(names, default=0), max(names, default=0)
    one_size = 2 <= least < most and len({shape[0] for shape in shapes.values()}) == 1
    if one_size and names[least].isdisjoint(names[most]):
        inner = _layers({keys: shape[1:] for keys, shape in shapes.items()})
        return {keys: 1 + count for keys, count in inner.items()}
    parts: dict[Any, dict[Keys, tuple[int, ...]]] = {}
    for (first, *rest), shape in ((keys, shape) for keys, shape in shapes.items() if keys):
        parts.setdefault(first, {})[tuple(rest)] = shape
    below = {
        (first, *keys): count
        for first, part in parts.items()
        for keys, count in _layers(part).items()
    }
    return below or dict.fromkeys(shapes, 0)


def _check_matrix(path: str, leaf: Any, layers: int, bias: tuple[int, ...] | None) -> None:
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ArgumentError(f"targets match {path!r}, which is {dtype}, not floating point.")
    of_layers = bias is None or not layers or bias == (*shape[:layers], shape[-1])
    if len(shape) != layers + 2 or not of_layers:
        beside = "" if bias is None else f" beside a bias of shape {bias}"
        raise ArgumentError(
            f"targets match {path!r}, which has shape {shape}{beside}: not (in, out) after "
            f"{layers} axes of layers, perhaps a kernel of a convolution or of heads. Leave it out "
            "of targets, or say with layer_axes= how many of its first axes are of layers."
        )
