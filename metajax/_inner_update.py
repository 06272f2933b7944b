"""The update of an inner step, and whether it can be differentiated."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxprs_in_params

from metajax.errors import ArgumentError
from metajax.modes import GradientMode
from metajax.types import Params, PyTree

_UNFIT = (TypeError, ValueError, LookupError, AttributeError)
"""What an optimizer raises that was made for other shapes or another structure than the probe's, or
whose rates are traced: the probe says nothing of it."""

_INFINITE = (
    "optimizer: its update has no finite derivative where the inner gradient is zero (as Adam's "
    "with eps_root=0), so the meta-gradient would be NaN. Pass eps_root, as in "
    "optax.adam(1e-3, eps_root=1e-8), or mode=metajax.first_order()."
)
_NO_DERIVATIVE = (
    "optimizer: its update can't be differentiated, as that of a line search, which loops until it "
    "is satisfied. Take an optimizer without one, or a learner that doesn't differentiate the "
    "inner steps, such as metajax.reptile."
)


def update(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    state: PyTree,
    params: Params,
    *,
    value: jax.Array,
    value_fn: Callable[[Params], jax.Array],
) -> tuple[PyTree, PyTree]:
    """The optimizer's update; one that needs the loss gets it, and the loss function."""
    optimizer = optax.with_extra_args_support(optimizer)
    extra = {"value": value, "grad": gradient, "value_fn": value_fn}
    return optimizer.update(gradient, state, params, **extra)


def check_differentiable(
    optimizer: optax.GradientTransformation, params: Params, mode: GradientMode
) -> None:
    """Raises an ArgumentError if the outer gradient can't pass through the update.

    Under ``first_order`` the inner gradient is a constant, and the update only needs a derivative
    with respect to the parameters.
    """
    leaves, treedef = jax.tree.flatten(params)
    case = treedef, tuple(map(jnp.ndim, leaves)), mode.differentiates_update
    try:
        known = _FLAWS.setdefault(optimizer.update, {})
    except TypeError:  # an update that can't be referred to weakly
        known = {}
    try:
        if case not in known:
            with jax.ensure_compile_time_eval():
                known[case] = _flaw(optimizer, *case)
    except _UNFIT:
        return
    if known[case] is not None:
        raise ArgumentError(known[case])


_FLAWS: weakref.WeakKeyDictionary[Any, dict[Any, str | None]] = weakref.WeakKeyDictionary()
"""What was found, for as long as the optimizer lives: it may hold arrays."""


def _flaw(
    optimizer: optax.GradientTransformation,
    treedef: Any,
    ranks: tuple[int, ...],
    by_gradient: bool,
) -> str | None:
    """What is wrong with the update's derivative, if anything.

    Probed on two elements a leaf, one of them zero: sqrt(v) in Adam's denominator has no finite
    derivative at v = 0, and a rectified unit that is off makes just that gradient. (A gradient that
    is zero throughout, where clipping by norm has none either, doesn't come up.)
    """
    leaves = [jnp.array([0.0, 1.0]).reshape(2, *(1,) * (rank - 1)) for rank in ranks]
    start = treedef.unflatten(leaves)

    def loss(params: Params) -> jax.Array:
        return sum((0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def total_update(params: Params, gradient: PyTree) -> jax.Array:
        state = optimizer.init(params)
        value = loss(params)
        if not by_gradient:
            value = jax.lax.stop_gradient(value)
        found, _ = update(optimizer, gradient, state, params, value=value, value_fn=loss)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(found)), jnp.zeros(()))

    # What an unfit optimizer raises, it raises here. That of a line search may have a derivative,
    # but finite differences say another.
    if "while" in _primitives(jax.make_jaxpr(total_update)(start, start).jaxpr):
        return _NO_DERIVATIVE
    derivatives = jax.grad(total_update, argnums=(0, 1) if by_gradient else 0)(start, start)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(derivatives))
    return _INFINITE if by_gradient and not finite else None


def _primitives(jaxpr: Any) -> set[str]:
    """The names of a program's operations."""
    found = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found |= _primitives(inner)
    return found
