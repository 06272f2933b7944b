"""The update of an inner step, and whether it can be differentiated."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, jaxprs_in_params

from metajax.errors import ArgumentError
from metajax.modes import GradientMode
from metajax.trees import is_floating
from metajax.types import Params, PyTree

_UNFIT = (TypeError, ValueError, LookupError, AttributeError)
"""What an optimizer raises that was made for other shapes or another structure than the probe's."""

_INFINITE = (
    "optimizer: its update has no finite derivative where the inner gradient is zero (as Adam's "
    "with eps_root=0), so the meta-gradient would be NaN. Pass eps_root, as in "
    "optax.adam(1e-3, eps_root=1e-8), or mode=metajax.first_order()."
)
_INFINITE_IN_HALF = (
    "optimizer: its update has no finite derivative where the inner gradient is zero, so the "
    "meta-gradient would be NaN. The parameters are float16, in which eps_root=1e-8 is 0 and the "
    "square of a small norm too: pass eps_root=1e-4 to Adam, adapt in float32 or bfloat16, or pass "
    "mode=metajax.first_order()."
)
_NO_DERIVATIVE = (
    "optimizer: its update can't be differentiated, as that of a line search, which loops until it "
    "is satisfied. Take an optimizer without one, or a learner that doesn't differentiate the "
    "inner steps, such as metajax.reptile."
)


class Nudge(NamedTuple):
    """What must be moved off zero, by far less than rounding, for an update to have a derivative.

    The norm of a vector has none at zero, so neither has an update that clips by norm, although
    near zero it is the gradient itself.

    Attributes:
        gradient: each zero of the gradient becomes the dtype's smallest number to this power; 0
            leaves it.
        params: the same of the parameters.
    """

    gradient: float = 0.0
    params: float = 0.0


NO_NUDGE = Nudge()
_POWER = 0.3  # 4e-12 in float32, whose cube is no zero


def update(
    optimizer: optax.GradientTransformation,
    gradient: PyTree,
    state: PyTree,
    params: Params,
    *,
    value: jax.Array,
    value_fn: Callable[[Params], jax.Array],
    nudge: Nudge = NO_NUDGE,
) -> tuple[PyTree, PyTree]:
    """The optimizer's update; one that needs the loss gets it, and the loss function.

    With a ``nudge`` the update's value is the same, and its derivative is that of a point beside
    zero.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def at(gradient: PyTree, params: Params) -> tuple[PyTree, PyTree]:
        extra = {"value": value, "grad": gradient, "value_fn": value_fn}
        return optimizer.update(gradient, state, params, **extra)

    exact = at(gradient, params)
    if not any(nudge):
        return exact
    beside = at(_off_zero(gradient, nudge.gradient), _off_zero(params, nudge.params))
    return jax.tree.map(_with_derivative_of, exact, beside)


def _off_zero(tree: PyTree, power: float) -> PyTree:
    """The tree with a tiny number for each zero, whose square isn't zero."""

    def of(leaf: Any) -> Any:
        limits = jnp.finfo(leaf.dtype)
        tiny = float(limits.smallest_normal) ** power
        if tiny >= float(limits.eps):
            return leaf  # float16 has no number so small that its square isn't 0
        return jnp.where(leaf == 0, leaf + jnp.asarray(tiny, leaf.dtype), leaf)

    return jax.tree.map(of, tree) if power else tree


def _with_derivative_of(exact: Any, beside: Any) -> Any:
    if not is_floating(exact):
        return exact
    return jax.lax.stop_gradient(exact) + (beside - jax.lax.stop_gradient(beside))


def nudge_for(optimizer: optax.GradientTransformation, params: Params, mode: GradientMode) -> Nudge:
    """What the update needs, so that its derivative is finite wherever it is differentiated."""
    return _probed(optimizer, params, mode)[1]


def check_differentiable(
    optimizer: optax.GradientTransformation, params: Params, mode: GradientMode
) -> Nudge:
    """The same, or an ArgumentError if the outer gradient can't pass through the update.

    Under ``first_order`` the inner gradient is a constant, and the update only needs a derivative
    with respect to the parameters.
    """
    flaw, nudge = _probed(optimizer, params, mode)
    if flaw is not None:
        raise ArgumentError(flaw)
    return nudge


_FOUND: weakref.WeakKeyDictionary[Any, dict[Any, tuple[str | None, Nudge]]] = (
    weakref.WeakKeyDictionary()
)
"""What was found, for as long as the optimizer lives: it may hold arrays."""


def _probed(
    optimizer: optax.GradientTransformation, params: Params, mode: GradientMode
) -> tuple[str | None, Nudge]:
    """What is wrong with the update's derivative, if anything, and what mends it."""
    leaves, treedef = jax.tree.flatten(params)
    types = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    by_gradient = mode.differentiates_update
    try:
        known = _FOUND.setdefault(optimizer.update, {})
    except TypeError:  # an update that can't be referred to weakly
        known = {}
    small = tuple(((2, *(1,) * (len(shape) - 1)), dtype) for shape, dtype in types)
    for case in dict.fromkeys((small, types)):
        try:
            if (treedef, case, by_gradient) not in known:
                found = _probe(optimizer, treedef, case, by_gradient)
                known[treedef, case, by_gradient] = found
            return known[treedef, case, by_gradient]
        except _UNFIT:
            continue
    return None, NO_NUDGE


def _probe(
    optimizer: optax.GradientTransformation, treedef: Any, types: tuple, by_gradient: bool
) -> tuple[str | None, Nudge]:
    """Differentiates the update where an element of the gradient is zero, and where all are.

    One element: sqrt(v) in Adam's denominator has no finite derivative at v = 0, and a rectified
    unit that is off makes just that gradient. All of them, beside parameters that are zero or not:
    the norms by which an optimizer clips have none there.
    """

    def point(first: float, others: float) -> PyTree:
        def leaf(shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.full(shape, others, dtype).ravel().at[:1].set(first).reshape(shape)

        return treedef.unflatten([leaf(*each) for each in types])

    def loss(params: Params) -> jax.Array:
        return sum((0.5 * jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def total_update(
        params: Params, gradient: PyTree, value: jax.Array, *, nudge: Nudge = NO_NUDGE
    ) -> jax.Array:
        state = optimizer.init(params)
        found, _ = update(
            optimizer, gradient, state, params, value=value, value_fn=loss, nudge=nudge
        )
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(found)), jnp.zeros(()))

    def derivatives(at: tuple[PyTree, PyTree], nudge: Nudge = NO_NUDGE) -> list[np.ndarray]:
        arguments = *at, loss(at[0])
        program = _program(functools.partial(total_update, nudge=nudge), *arguments)
        found = jax.grad(program, argnums=(0, 1, 2) if by_gradient else 0)(*arguments)
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]

    def finite(found: list[np.ndarray]) -> bool:
        return all(np.isfinite(leaf).all() for leaf in found)

    def helps(nudge: Nudge, at: tuple[PyTree, PyTree]) -> bool:
        """Whether the derivative beside zero is finite, and the same a little further off."""
        near = derivatives(at, nudge)
        if not finite(near):
            return False
        further = derivatives(at, Nudge(0.875 * nudge.gradient, 0.875 * nudge.params))
        same = lambda a, b: np.allclose(a, b, rtol=1e-2, atol=1e-6)
        return all(map(same, near, further))

    with jax.ensure_compile_time_eval():
        one, zeros, ones = point(0.0, 1.0), point(0.0, 0.0), point(1.0, 1.0)
        value = loss(one)
    # What an unfit optimizer raises, it raises here. That of a line search may have a derivative,
    # but finite differences say another.
    whole = jax.make_jaxpr(total_update)(one, one, value)
    primitives = _primitives(whole.jaxpr)
    if "while" in primitives:
        return _NO_DERIVATIVE, NO_NUDGE
    halves = any(dtype == jnp.float16 for _, dtype in types)
    infinite = _INFINITE_IN_HALF if halves else _INFINITE
    # A step that depends on the loss, as Polyak's, or on earlier gradients, as that of L-BFGS, has
    # no limit where these vanish too.
    by_loss = any(whole.jaxpr.invars[-1] in equation.invars for equation in whole.jaxpr.eqns)
    vanishing = ((zeros, zeros), (ones, zeros)) if not by_loss and "scan" not in primitives else ()
    nudge = NO_NUDGE
    with jax.ensure_compile_time_eval():
        if by_gradient and not finite(derivatives((one, one))):
            return infinite, NO_NUDGE
        for at in vanishing:
            if finite(derivatives(at, nudge)):
                continue
            tried = (Nudge(_POWER, 0.0), Nudge(0.0, _POWER), Nudge(_POWER, _POWER))
            found = next((each for each in tried if helps(each, at)), None)
            if found is None:
                return infinite if by_gradient else None, NO_NUDGE
            nudge = Nudge(max(nudge.gradient, found.gradient), max(nudge.params, found.params))
    return None, nudge


def _program(function: Callable[..., Any], *args: PyTree) -> Callable[..., Any]:
    """The function on its own: with ones for what it closes over that is being traced, such as
    learned rates."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    consts = [
        jnp.ones(const.shape, const.dtype) if isinstance(const, jax.core.Tracer) else const
        for const in closed.consts
    ]
    run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
    outputs = jax.tree.structure(shape)
    return lambda *args: outputs.unflatten(run(*jax.tree.leaves(args)))


def _primitives(jaxpr: Any) -> set[str]:
    """The names of a program's operations."""
    found = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            found |= _primitives(inner)
    return found
