"""Which leaves of a pytree adapt: splitting it, and joining the halves again."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.types import Params, PyTree

__all__ = [
    "Trainable",
    "check_factors_read",
    "combine",
    "is_floating",
    "is_key",
    "leaf_paths",
    "partition",
    "selected",
    "strongly_typed",
]

Trainable = Callable[[str], bool] | PyTree | None
"""Which leaves adapt, or which the outer loop learns.

``None`` for all floating-point leaves; of a dict of Flax collections, for those of ``"params"`` and
``"lora"`` alone. Or a predicate of the leaf's path, such as
``lambda path: path.startswith("params/head")``; or a pytree of bools that is a prefix of the
parameters.
"""


def is_floating(leaf: Any) -> bool:
    """Whether a leaf has a derivative: real or complex floating point.

    Example:
        >>> is_floating(1.0), is_floating(1)
        (True, False)
    """
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, or an array of them.

    Example:
        >>> is_key(jax.random.key(0)), is_key(jnp.zeros(2))
        (True, False)
    """
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def leaf_paths(tree: PyTree) -> list[str]:
    """The path of every leaf, its keys joined by slashes.

    Example:
        >>> leaf_paths({"head": {"kernel": 1.0, "bias": 2.0}})
        ['head/bias', 'head/kernel']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


_PARAMETERS = ("params", "lora")
"""The Flax collections that hold parameters; others hold statistics, counters and keys."""


def _is_collections(tree: Any) -> bool:
    """Whether it is a dict of Flax collections: dicts, one of which is ``"params"``."""
    return (
        isinstance(tree, Mapping)
        and "params" in tree
        and all(isinstance(part, Mapping) for part in tree.values())
    )


def _floating_params(params: Params) -> list[bool]:
    """Of each leaf, whether it is chosen by default: running statistics, for example, aren't."""

    def of(node: Any) -> PyTree:
        if not _is_collections(node):
            return is_floating(node)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: path[0].key in _PARAMETERS and is_floating(leaf), node
        )

    return jax.tree.leaves(jax.tree.map(of, params, is_leaf=_is_collections))


def _selection(params: Params, trainable: Trainable) -> list[bool]:
    if trainable is None:
        return _floating_params(params)
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    floating = [is_floating(leaf) for leaf in leaves]
    if callable(trainable):
        selected = [trainable(path) for path in paths]
    else:
        _check_no_pattern(trainable, paths)
        try:
            selected = jax.tree.leaves(jax.tree.broadcast(trainable, params))
        except ValueError as error:
            raise ArgumentError(
                "trainable must be a predicate of a leaf's path or a pytree of bools that is a "
                f"prefix of params, got {trainable!r}, which does not fit the structure of "
                f"params, whose paths are {paths}: {error}"
            ) from error
    for path, flag in zip(paths, selected, strict=True):
        if not isinstance(flag, bool | np.bool_):
            what = "return True or False" if callable(trainable) else "hold bools only"
            raise ArgumentError(f"trainable must {what}, got {flag!r} for the leaf {path!r}.")
    for path, leaf, chosen, has_derivative in zip(paths, leaves, selected, floating, strict=True):
        if chosen and not has_derivative:
            raise ArgumentError(
                f"trainable selects {path!r}, which is {jnp.result_type(leaf)} and has no "
                "derivative; leave it out."
            )
    return list(map(bool, selected))


def _check_no_pattern(trainable: Any, paths: list[str]) -> None:
    """An ArgumentError for names of leaves and regular expressions, which aren't bools."""
    items = trainable if isinstance(trainable, list | tuple | set | frozenset) else [trainable]
    for item in items:
        if isinstance(item, str | re.Pattern):
            test = f"{item!r} in path"
            if isinstance(item, re.Pattern):
                test = f"bool(re.search({item.pattern!r}, path))"
            raise ArgumentError(
                "trainable must be a predicate of a leaf's path or a pytree of bools, got "
                f"{trainable!r}: a name selects nothing by itself. Pass a predicate, such as "
                f"lambda path: {test}; the paths are {paths}."
            )


def selected(params: Params, trainable: Trainable) -> PyTree:
    """Whether each leaf is selected: bools in the structure of ``params``.

    Example:
        >>> selected({"body": 1.0, "head": 2.0}, lambda path: path == "head")
        {'body': False, 'head': True}
    """
    return jax.tree.unflatten(jax.tree.structure(params), _selection(params, trainable))


def partition(params: Params, trainable: Trainable) -> tuple[Params, Params]:
    """Splits parameters into the leaves that adapt and those that stay.

    Args:
        params: any pytree of arrays.
        trainable: which leaves adapt; see ``Trainable``.

    Returns:
        ``(adapted, frozen)``, both of the structure of ``params``, with ``None`` where a leaf
        belongs to the other. ``combine`` undoes it.

    Raises:
        ArgumentError: if nothing is selected, or a leaf without a derivative is.

    Example:
        >>> partition({"body": 1.0, "head": 2.0}, lambda path: path == "head")
        ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
    """
    selected = _selection(params, trainable)
    if not any(selected):
        if trainable is None:
            raise ArgumentError(
                f"params has no floating-point leaf to adapt: {leaf_paths(params)}."
            )
        raise ArgumentError(
            f"trainable selects no leaf of params ({trainable!r}); their paths are "
            f"{leaf_paths(params)}."
        )
    leaves, treedef = jax.tree.flatten(params)
    adapted = [leaf if chosen else None for leaf, chosen in zip(leaves, selected, strict=True)]
    frozen = [None if chosen else leaf for leaf, chosen in zip(leaves, selected, strict=True)]
    return treedef.unflatten(adapted), treedef.unflatten(frozen)


def combine(adapted: Params, frozen: Params) -> Params:
    """Joins the two halves of ``partition``.

    Example:
        >>> combine({"body": None, "head": 3.0}, {"body": 1.0, "head": None})
        {'body': 1.0, 'head': 3.0}
    """
    return jax.tree.map(
        lambda a, f: f if a is None else a, adapted, frozen, is_leaf=lambda leaf: leaf is None
    )


def strongly_typed(params: Params) -> Params:
    """The parameters without weak types, as they are after an update.

    ``jnp.array(0.1)`` has a weak type, as Python's numbers have. Its first update has none, so the
    second call would be compiled again.

    Example:
        >>> strongly_typed(jnp.array(0.1)).weak_type
        False
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)


def check_factors_read(function: Callable[[Params], Any], params: Params) -> None:
    """Raises an ArgumentError for low-rank factors that a function of Flax collections ignores.

    The function is only traced, and that only where there is a collection ``"lora"``.

    Example:
        >>> params = {"params": {"kernel": jnp.ones(3)}, "lora": {"kernel": jnp.ones(3)}}
        >>> check_factors_read(lambda variables: variables["lora"]["kernel"].sum(), params)
    """
    paths = leaf_paths(params)
    is_factor = [path.startswith("lora/") for path in paths]
    if not any(is_factor) or not _is_collections(params):
        return
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    unread = [
        path for path, *how in zip(paths, is_factor, used, strict=True) if how == [True, False]
    ]
    if unread:
        raise ArgumentError(
            f"lora: no layer reads the factors at {_checks.shown(unread)}. Those of metajax.models "
            "do, but not flax.linen.Dense, for example. Give any other model merged parameters: "
            "metajax.lm.lora.merge(params, lora), or lora.frozen_base(apply) with the apply of "
            "metajax.from_linen or from_nnx."
        )
