"""A user's gradient against finite differences, in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from metajax import _checks, trees
from metajax.errors import ArgumentError, CheckError
from metajax.types import LossFn, Params, PyTree

_STEPS = (1e-7, 1e-8)
"""Steps of the differences, times a leaf's largest element where that is above 1. In float64 the
first is good to about 1e-9 of the loss. Where it crosses a kink, such as ReLU's, the second may
not."""


class Slope(NamedTuple):
    """A derivative of the loss, computed in two ways.

    Attributes:
        leaf: the path of the leaf of ``params``, its keys joined by slashes.
        along: ``"a random direction"``, or the element, such as ``"element (0, 2)"``.
        gradient: by automatic differentiation.
        difference: by a central difference.
        agrees: whether they do.
    """

    leaf: str
    along: str
    gradient: float
    difference: float
    agrees: bool

    def __str__(self) -> str:
        relation = "agrees with" if self.agrees else "differs from"
        return (
            f"leaf {self.leaf!r}, along {self.along}: the gradient, {self.gradient:.9g}, "
            f"{relation} the finite difference, {self.difference:.9g}"
        )


def check_gradient(
    loss_fn: LossFn,
    params: Params,
    batch: PyTree = None,
    *,
    gradient: Callable[[Params, PyTree], Params] | None = None,
    rtol: float = 1e-4,
    elements: int = 2,
    seed: int = 0,
) -> tuple[Slope, ...]:
    """Compares a loss's gradient with central differences, in float64.

    Of every floating-point leaf: along a random direction, at the element where the gradient is
    largest, and at random elements. Parameters and batch are cast to float64 for it, which JAX
    allows inside this call only; nothing of the caller's changes.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or a pair ``(scalar, aux)``.
        params: where; a pytree of arrays. Its integer leaves stay as they are.
        batch: what the loss takes beside them.
        gradient: ``gradient(params, batch)``, a gradient of your own, in the structure of
            ``params``; JAX's of ``loss_fn`` if None.
        rtol: how far they may differ, relative to the larger of the two; and by what rounding may
            come to, 1e-7 of the loss.
        elements: how many elements of each leaf, at least 1.
        seed: of the random directions and elements.

    Returns:
        Every ``Slope`` that was compared.

    Raises:
        CheckError: if two differ; it names the leaf and gives both numbers.
        ArgumentError: if no leaf is floating-point, one is complex, the loss isn't a scalar or not
            finite, or is computed in float32 whatever the parameters are.

    Example:
        >>> import jax, jax.numpy as jnp, metajax
        >>> params, batch = {"w": jnp.array([1.0, 2.0])}, jnp.array([3.0, 4.0])
        >>> loss_fn = lambda params, x: jnp.sum(jnp.sin(params["w"] * x))
        >>> slopes = metajax.check_gradient(loss_fn, params, batch)
        >>> slopes[1].along, round(slopes[1].gradient, 4), round(slopes[1].difference, 4)
        ('element (0,)', -2.97, -2.97)
        >>> cut = lambda params, _: jnp.sum(params["w"] * jax.lax.stop_gradient(params["w"]))
        >>> try:
        ...     metajax.check_gradient(cut, params)
        ... except metajax.CheckError as error:
        ...     print(str(error).split(":")[0])
        leaf 'w', along a random direction
    """
    elements = _checks.positive_int("elements", elements)
    with jax.enable_x64(True):
        slopes = _compare(loss_fn, _wide(params), _wide(batch), gradient, rtol, elements, seed)
    bad = [slope for slope in slopes if not slope.agrees]
    if bad:
        more = f" ({len(bad)} of {len(slopes)} comparisons differ.)" if len(bad) > 1 else ""
        raise CheckError(f"{bad[0]}.{more}")
    return slopes


def _wide(tree: PyTree) -> PyTree:
    """The tree with its real floating-point leaves in float64."""

    def of(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if real else leaf

    return jax.tree.map(of, tree)


def _compare(loss_fn, params, batch, gradient, rtol, elements, seed) -> tuple[Slope, ...]:
    leaves, treedef = jax.tree.flatten(params)
    chosen = [i for i, leaf in enumerate(leaves) if trees.is_floating(leaf) and jnp.size(leaf)]
    paths = trees.leaf_paths(params)
    for i in chosen:
        if jnp.issubdtype(leaves[i].dtype, jnp.complexfloating):
            raise ArgumentError(
                f"params: leaf {paths[i]!r} is complex; only real ones are checked."
            )
    if not chosen:
        raise ArgumentError(f"params has no floating-point leaf: {paths}.")

    def loss_of(floating):
        full = list(leaves)
        for i, leaf in zip(chosen, floating, strict=True):
            full[i] = leaf
        return _checks.value_and_aux(loss_fn(treedef.unflatten(full), batch), name="loss_fn")[0]

    floating = [leaves[i] for i in chosen]
    narrow = _narrow_types(jax.make_jaxpr(loss_of)(floating).jaxpr)
    loss, slopes = jax.jit(jax.value_and_grad(loss_of))(floating)
    if loss.dtype != jnp.float64:
        raise ArgumentError(
            f"loss_fn returns {loss.dtype} for parameters in float64, too coarse for a finite "
            "difference: let it cast nothing, and close over no array of a narrower type that "
            "everything is cast to."
        )
    if not jnp.isfinite(loss):
        raise ArgumentError(f"loss_fn is {loss} at these parameters; there is no gradient.")
    if gradient is not None:
        given = jax.tree.leaves(gradient(params, batch))
        slopes = [given[i] for i in chosen]

    compiled = jax.jit(loss_of)
    random = np.random.default_rng(seed)

    def compared(index: int, direction: np.ndarray, along: str) -> Slope:
        leaf = floating[index]
        expected = float(np.vdot(np.asarray(slopes[index], np.float64), direction))
        scale = max(float(jnp.abs(leaf).max()), 1.0)
        found = []
        for step in (scale * step for step in _STEPS):
            ends = [
                compiled(
                    [*floating[:index], leaf + side * step * direction, *floating[index + 1 :]]
                )
                for side in (1, -1)
            ]
            found.append(float(ends[0] - ends[1]) / (2 * step))
            rounding = 1e-14 * max(abs(float(loss)), 1e-3) / step
            allowed = rtol * max(abs(expected), abs(found[-1])) + rounding
            if abs(expected - found[-1]) <= allowed:
                return Slope(paths[chosen[index]], along, expected, found[-1], True)
        return Slope(paths[chosen[index]], along, expected, found[0], False)

    rows = []
    for index, leaf in enumerate(floating):
        direction = random.normal(size=leaf.shape)
        rows.append(compared(index, direction / np.linalg.norm(direction), "a random direction"))
        largest = int(np.nanargmax(np.abs(np.nan_to_num(slopes[index]))))
        others = random.choice(leaf.size, size=min(elements, leaf.size), replace=False).tolist()
        for flat in [largest, *(other for other in others if other != largest)][:elements]:
            one = np.zeros(leaf.size)
            one[flat] = 1.0
            where = tuple(int(i) for i in np.unravel_index(flat, leaf.shape))
            along = f"element {where}" if where else "its one element"
            rows.append(compared(index, one.reshape(leaf.shape), along))
    if narrow and not all(row.agrees for row in rows):
        bad = next(row for row in rows if not row.agrees)
        raise CheckError(
            f"{bad}. The loss casts float64 to {', '.join(sorted(narrow))} on its way, so that its "
            "differences are rounding: let it cast nothing, and close over no narrower array."
        )
    return tuple(rows)


def _narrow_types(jaxpr: Any) -> set[str]:
    """The narrower floating-point types that a program casts float64 to."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
            narrower = jnp.issubdtype(after, jnp.floating) and jnp.finfo(after).bits < 64
            if before == jnp.float64 and narrower:
                found.add(str(after))
        for inner in jaxprs_in_params(equation.params):
            found |= _narrow_types(inner)
    return found
