"""Low-rank adaptation: a task adapts the factors of an update to some matrices, ``W + s A B``.

All tasks share the base weights W, and each task has small factors A and B. The factors are a
collection ``"lora"`` beside the parameters, and ``metajax.adapt`` trains them alone. Under ``vmap``
over tasks every product with W stays one product with the shared matrix:

    >>> import optax
    >>> import metajax
    >>> from metajax.lm import lora
    >>> from metajax.models import Dense
    >>> model = Dense(3)
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    >>> factors = lora.init(params, jax.random.key(1), rank=2, targets="kernel")
    >>> def loss_fn(variables, batch):
    ...     return jnp.mean((model.apply(variables, batch["x"]) - batch["y"]) ** 2)
    >>> def adapted_factors(task):
    ...     variables, _ = metajax.adapt(
    ...         loss_fn,
    ...         {"params": params, "lora": factors},
    ...         task,
    ...         optimizer=optax.sgd(0.1),
    ...         steps=2,
    ...         trainable=lora.is_factor,
    ...     )
    ...     return variables["lora"]
    >>> tasks = {"x": jnp.ones((5, 2, 4)), "y": jnp.ones((5, 2, 3))}
    >>> jax.vmap(adapted_factors)(tasks)["kernel"].a.shape
    (5, 4, 2)

The task's function returns the factors, or a loss of them. If it returned the base weights too,
``vmap`` would make a copy of these for each task.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from metajax import _checks, trees
from metajax.errors import ArgumentError
from metajax.losses import Apply
from metajax.types import Params

__all__ = ["Factors", "frozen_base", "init", "is_factor", "merge", "unmerge"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """An update ``scale * a @ b`` of one matrix, or of each layer's in a stack.

    Attributes:
        a: ``[..., in, rank]``; A transposed in the paper, where it multiplies from the left.
        b: ``[..., rank, out]``; B transposed in the paper.
        scale: alpha / rank, static: a constant of the compiled program, not adapted.

    Example:
        >>> factors = Factors(jnp.ones((4, 1)), jnp.zeros((1, 3)), 2.0)
        >>> len(jax.tree.leaves(factors)), factors.rank
        (2, 1)
    """

    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[-1]


def is_factor(path: str) -> bool:
    """Whether a leaf is in the collection ``"lora"``: a predicate for ``trainable``.

    Example:
        >>> trees.selected({"lora": {"kernel": 0.0}, "params": {"kernel": 1.0}}, is_factor)
        {'lora': {'kernel': True}, 'params': {'kernel': False}}
    """
    return path.startswith("lora/")


def frozen_base(model: Any) -> Apply:
    """A model as a function of ``{"params": ..., "lora": ...}`` with no gradient for ``"params"``.

    Where the base weights stay as they are, this spares the work of their gradient, which is zero.
    For ``lm.next_token_loss``, with ``trainable=is_factor``.

    Args:
        model: a Flax module that reads the collection ``"lora"``, such as a ``Transformer``.

    Returns:
        ``apply(variables, inputs, **options)``, with the model's options.

    Example:
        >>> from metajax.models import Dense
        >>> kernel = {"params": {"kernel": jnp.ones((2, 1))}}
        >>> factors = {"kernel": Factors(jnp.ones((2, 1)), jnp.zeros((1, 1)), 1.0)}
        >>> apply = frozen_base(Dense(1, use_bias=False))
        >>> loss = lambda variables: apply(variables, jnp.ones((1, 2))).sum()
        >>> gradient = jax.grad(loss)(kernel | {"lora": factors})
        >>> gradient["params"]["kernel"].tolist(), gradient["lora"]["kernel"].b.tolist()
        ([[0.0], [0.0]], [[2.0]])
    """

    def apply(variables: Params, inputs: Any, **options: Any) -> Any:
        base = jax.lax.stop_gradient(variables["params"])
        return model.apply({"params": base, "lora": variables["lora"]}, inputs, **options)

    return apply


def init(
    params: Params,
    key: jax.Array,
    *,
    rank: int,
    targets: str | Sequence[str],
    alpha: float | None = None,
    b_std: float = 0.0,
) -> dict[str, Any]:
    """Factors for the matrices that ``targets`` names.

    A is uniform in +-1/sqrt(in), as PEFT's default is (Kaiming's with a = sqrt(5)). B is zero, so
    that the update starts at zero. Then A's gradient is zero too at the first step, and a task that
    takes one step adapts B alone. A meta-learned start, which moves away from zero anyway, may
    want ``b_std > 0``: both then have a gradient from the first step on.

    Args:
        params: nested dicts of arrays.
        key: for A, and B where it is random.
        rank: of the update.
        targets: a regular expression, or several, searched in a leaf's path (its keys joined by
            slashes), such as ``r"attention/(query|value)/kernel"``. The last two axes of a leaf
            that matches are (in, out); those before are of stacked layers.
        alpha: the update is multiplied by ``alpha / rank``; ``rank`` if None.
        b_std: standard deviation of the initial B.

    Returns:
        Nested dicts with only the matrices' paths, and ``Factors`` in their place: in float32, or
        the matrix's dtype if that is wider.

    Raises:
        ArgumentError: ``rank`` isn't a positive integer, or is more than in or out; ``alpha`` isn't
            positive, or ``b_std`` negative; a pattern matches nothing; a leaf that matches isn't a
            matrix of floats.

    Example:
        >>> params = {"head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
        >>> factors = init(params, jax.random.key(0), rank=2, targets="kernel", alpha=16)
        >>> factors["head"]["kernel"].b.shape, factors["head"]["kernel"].scale
        ((2, 3), 8.0)

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """
    rank = _checks.positive_int("rank", rank)
    scale = _checks.positive_float("alpha", rank if alpha is None else alpha) / rank
    b_std = _checks.non_negative_float("b_std", b_std)
    paths = trees.leaf_paths(params)
    leaves = dict(zip(paths, jax.tree.leaves(params), strict=True))
    targeted = _targeted(targets, paths)
    flat: dict[str, Factors] = {}
    for path, matrix_key in zip(targeted, jax.random.split(key, len(targeted)), strict=True):
        leaf = leaves[path]
        _check_matrix(path, leaf, rank)
        *layers, n_in, n_out = leaf.shape
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        a_key, b_key = jax.random.split(matrix_key)
        bound = 1 / math.sqrt(n_in)
        a = jax.random.uniform(a_key, (*layers, n_in, rank), dtype, -bound, bound)
        b = jnp.zeros((*layers, rank, n_out), dtype)
        if b_std:
            b = b_std * jax.random.normal(b_key, b.shape, dtype)
        flat[path] = Factors(a, b, scale)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _targeted(targets: str | Sequence[str], paths: list[str]) -> list[str]:
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise ArgumentError(f"targets must have at least one pattern, got {targets!r}.")
    matched: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if re.search(pattern, path)}
        if not found:
            raise ArgumentError(
                f"targets: {pattern!r} matches no leaf of params, whose paths are {paths}."
            )
        matched |= found
    return [path for path in paths if path in matched]


def _check_matrix(path: str, leaf: Any, rank: int) -> None:
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ArgumentError(f"targets match {path!r}, which is {dtype}, not floating point.")
    if len(shape) < 2:
        raise ArgumentError(
            f"targets match {path!r}, which has shape {shape}; a matrix has at least two axes."
        )
    if rank > min(shape[-2:]):
        raise ArgumentError(
            f"rank must be at most the sides of the matrices, got {rank} for {path!r} of shape "
            f"{shape}."
        )


def merge(params: Params, lora: Mapping[str, Any]) -> Params:
    """Adds every update to its matrix: ``W + scale * A B``, which then costs nothing to apply.

    Args:
        params: nested dicts of arrays.
        lora: what ``init`` gives for them.

    Returns:
        Parameters of the same structure, shapes and dtypes. The sum is computed in float32, or W's
        dtype if that is wider; leaves without factors are the same objects.

    Raises:
        ArgumentError: a path of ``lora`` isn't in ``params``, or factors don't fit their matrix.

    Example:
        >>> factors = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), 3.0)
        >>> merge({"kernel": jnp.eye(2)}, {"kernel": factors})["kernel"]
        Array([[4., 3.],
               [3., 4.]], dtype=float32)
    """
    return _add(params, lora, 1.0)


def unmerge(params: Params, lora: Mapping[str, Any]) -> Params:
    """Subtracts the updates that ``merge`` added; W is then as it was, within rounding.

    Rounding is that of W's dtype: below float32, keep W instead where it matters.

    Args:
        params: nested dicts of arrays.
        lora: what was merged.

    Returns:
        Parameters of the same structure, shapes and dtypes.

    Raises:
        ArgumentError: as ``merge``.

    Example:
        >>> factors = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), 3.0)
        >>> params, lora = {"kernel": jnp.eye(2)}, {"kernel": factors}
        >>> unmerge(merge(params, lora), lora)["kernel"]
        Array([[1., 0.],
               [0., 1.]], dtype=float32)
    """
    return _add(params, lora, -1.0)


def _add(params: Params, lora: Mapping[str, Any], sign: float) -> Params:
    updates, paths = _flat_factors(lora), trees.leaf_paths(params)
    unknown = sorted(updates.keys() - set(paths))
    if unknown:
        raise ArgumentError(
            f"lora has factors at {unknown[0]!r}, which isn't a leaf of params; there are {paths}."
        )

    def added(path: str, kernel: Any) -> Any:
        if path not in updates:
            return kernel
        factors = updates[path]
        _check_fits(factors, jnp.shape(kernel), path)
        dtype = jnp.result_type(kernel)
        wide = jnp.promote_types(dtype, jnp.float32)
        a, b = factors.a.astype(wide), factors.b.astype(wide)
        # An accelerator's default for float32 products has fewer bits than the sum would keep.
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (jnp.asarray(kernel, wide) + sign * factors.scale * update).astype(dtype)

    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(map(added, paths, leaves))


def _flat_factors(lora: Any) -> dict[str, Factors]:
    """Factors by their path; an ArgumentError where nested dicts hold something else."""
    is_factors = lambda node: isinstance(node, Factors)
    found = {}
    for keys, factors in jax.tree.leaves_with_path(lora, is_leaf=is_factors):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not is_factors(factors):
            raise ArgumentError(
                f"lora must hold Factors in nested dicts, got {type(factors).__name__} at {path!r}."
            )
        found[path] = factors
    return found


def _check_fits(factors: Factors, shape: tuple[int, ...], path: str) -> None:
    """An ArgumentError unless factors are of a matrix, or a stack of them, of this shape."""
    rank = factors.rank
    wanted = [(*shape[:-1], rank), (*shape[:-2], rank, *shape[-1:])]
    if len(shape) < 2 or [factors.a.shape, factors.b.shape] != wanted:
        what = f"of shape {shape}" if shape else "which the model doesn't have"
        raise ArgumentError(
            f"lora: factors of shapes {factors.a.shape} and {factors.b.shape} don't fit {path!r} "
            f"{what}."
        )
