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

The matrices of ``metajax.models.Dense``, and so of ``Transformer``, read factors. Any other model
takes the sum instead, which is then computed for each task: ``merge(params, factors)``, or
``frozen_base(apply)`` with what ``metajax.from_linen`` and ``from_nnx`` return. ``metajax.adapt``
refuses factors that its loss doesn't read.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from metajax import _checks, _marks, trees
from metajax.errors import ArgumentError
from metajax.lm._matrices import Target, matrices
from metajax.losses import Apply
from metajax.models.dense import _check_fits
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
        dropout: the share of the inputs that the update doesn't see where the model gets the random
            stream ``"dropout"``, as in ``model.apply(variables, x, rngs={"dropout": key})``; the
            rest is divided by 1 - dropout. Static too. Without the stream, as in evaluation, all
            inputs are seen.

    Example:
        >>> factors = Factors(jnp.ones((4, 1)), jnp.zeros((1, 3)), 2.0)
        >>> len(jax.tree.leaves(factors)), factors.rank
        (2, 1)
    """

    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

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


def frozen_base(model: nn.Module | Apply) -> Apply:
    """A model as a function of ``{"params": ..., "lora": ...}`` with no gradient for ``"params"``.

    Where the base weights stay as they are, this spares the work of their gradient, which is zero.
    For ``lm.next_token_loss``, with ``trainable=is_factor``.

    Args:
        model: a Flax module that reads the collection ``"lora"``, such as a ``Transformer``. Or
            ``apply(params, inputs)``, as ``metajax.from_linen`` and ``from_nnx`` return it, of any
            model: it gets the merged parameters, which takes memory for them in each task.

    Returns:
        ``apply(variables, inputs, **options)``, with the model's options; keyed if ``model`` is.

    Raises:
        ArgumentError: from ``apply``, if the module doesn't read some factors, or they don't fit,
            or factors with dropout would be merged.

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
    module = getattr(model, "__self__", model)  # of its method apply
    is_module = isinstance(module, nn.Module)
    function: Any = module.apply if is_module else model
    checked: set[Any] = set()

    def apply(variables: Params, *args: Any, **options: Any) -> Any:
        base = jax.lax.stop_gradient(variables["params"])
        if not is_module:
            given = {name: part for name, part in variables.items() if name != "lora"}
            given["params"] = merge(base, variables["lora"])
            if any(factors.dropout for factors in _flat_factors(variables["lora"]).values()):
                raise ArgumentError("lora: factors with dropout need a module that reads them.")
            return function(given if len(given) > 1 else given["params"], *args, **options)
        beside = lambda variables: function(variables, *args, **options)
        variables = {**variables, "params": base}
        structure = jax.tree.structure(variables)
        if structure not in checked:
            trees.check_factors_read(beside, variables)
            checked.add(structure)
        return beside(variables)

    return _marks.marked(
        _marks.like(model, apply), at_places=is_module and _marks.has(module, "at_places")
    )


def init(
    params: Params,
    key: jax.Array,
    *,
    rank: int,
    targets: Target | Sequence[Target],
    alpha: float | None = None,
    b_std: float = 0.0,
    dropout: float = 0.0,
    layer_axes: int | None = None,
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
            slashes), such as ``r"attention/(query|value)"``; or predicates of the path. The
            matrices that match are adapted; biases and norms' scales are left out.
        alpha: the update is multiplied by ``alpha / rank``; ``rank`` if None.
        b_std: standard deviation of the initial B.
        dropout: see ``Factors``.
        layer_axes: how many axes of layers come before a matrix's (in, out), as 1 under
            ``nn.scan``. If None, the shapes tell: the layers are the first axis that all arrays
            below a key share, where these are matrices and vectors alike.

    Returns:
        Nested dicts with only the matrices' paths, and ``Factors`` in their place: in float32, or
        the matrix's dtype if that is wider.

    Raises:
        ArgumentError: ``rank`` isn't a positive integer, or is more than in or out; ``alpha`` isn't
            positive, ``b_std`` negative, or ``dropout`` not in [0, 1); a target matches nothing, or
            vectors alone; a leaf that matches isn't of floats, or has more axes than a matrix and
            its layers, as the kernels of convolutions and of heads have.

    Example:
        >>> params = {"head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
        >>> factors = init(params, jax.random.key(0), rank=2, targets="head", alpha=16)
        >>> factors["head"]["kernel"].b.shape, factors["head"]["kernel"].scale
        ((2, 3), 8.0)

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """
    rank = _checks.positive_int("rank", rank)
    scale = _checks.positive_float("alpha", rank if alpha is None else alpha) / rank
    b_std = _checks.non_negative_float("b_std", b_std)
    dropout = _checks.between("dropout", dropout, 0, 1, ends="[)")
    targeted = matrices(params, targets, layer_axes)
    flat: dict[tuple[Any, ...], Factors] = {}
    random_keys = jax.random.split(key, len(targeted))
    for (keys, leaf), matrix_key in zip(targeted.items(), random_keys, strict=True):
        *layers, n_in, n_out = leaf.shape
        if rank > min(n_in, n_out):
            raise ArgumentError(
                f"rank must be at most the sides of the matrices, got {rank} for "
                f"{'/'.join(map(str, keys))!r} of shape {leaf.shape}."
            )
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        a_key, b_key = jax.random.split(matrix_key)
        bound = 1 / math.sqrt(n_in)
        a = jax.random.uniform(a_key, (*layers, n_in, rank), dtype, -bound, bound)
        b = jnp.zeros((*layers, rank, n_out), dtype)
        if b_std:
            b = b_std * jax.random.normal(b_key, b.shape, dtype)
        flat[keys] = Factors(a, b, scale, dropout)
    return flax.traverse_util.unflatten_dict(flat)


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
