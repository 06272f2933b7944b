"""Adaptation to one task: a pure function that jit, vmap, grad and scan all accept."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, trees
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.modes import GradientMode, mode_of
from metajax.types import LossFn, Params, PyTree


class AdaptInfo(NamedTuple):
    """What adaptation computed on its way.

    Attributes:
        loss: the support loss before each step, ``[steps]``.
        aux: what the loss returned beside its value, every leaf ``[steps, ...]``; None if nothing.
        observed: what ``observe`` returned before the first and after every step, every leaf
            ``[steps + 1, ...]``; None without ``observe``.
    """

    loss: jax.Array
    aux: PyTree
    observed: PyTree


def value_and_aux(output: Any, *, name: str) -> tuple[jax.Array, PyTree]:
    """Splits a loss's result, ``loss`` or ``(loss, aux)``, and checks that it is a float scalar."""
    value, aux = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not _checks.is_array(value):
        raise ArgumentTypeError(
            f"{name} must return a scalar, or a pair (scalar, aux), got {type(value).__name__}."
        )
    _checks.arrays(f"what {name} returns beside its value", aux)
    value = jnp.asarray(value)
    if value.shape != ():
        raise ArgumentError(
            f"{name} must return a scalar, got shape {value.shape}; average over the examples."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ArgumentError(f"{name} must return a real floating-point scalar, got {value.dtype}.")
    return value, aux


@functools.lru_cache(maxsize=256)
def _has_finite_derivative(optimizer: optax.GradientTransformation, treedef: Any, ranks) -> bool:
    """Whether the update has a finite derivative where an element of the gradient is zero.

    Probed on two elements a leaf, one of them zero: sqrt(v) in Adam's denominator has no finite
    derivative at v = 0, and a rectified unit that is off makes just that gradient. (A gradient that
    is zero throughout, where clipping by norm has none either, doesn't come up.)
    """
    leaves = [jnp.array([0.0, 1.0]).reshape(2, *(1,) * (rank - 1)) for rank in ranks]
    params = treedef.unflatten(leaves)

    def total_update(gradient):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return sum(jnp.sum(update) for update in jax.tree.leaves(updates))

    derivative = jax.grad(total_update)(params)
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(derivative))


def check_differentiable(optimizer: optax.GradientTransformation, params: Params) -> None:
    """Raises an ArgumentError if the update has no finite derivative at a zero gradient."""
    leaves, treedef = jax.tree.flatten(params)
    try:
        with jax.ensure_compile_time_eval():
            finite = _has_finite_derivative(optimizer, treedef, tuple(map(jnp.ndim, leaves)))
    except Exception:
        # An optimizer that depends on traced values, or on its parameters' shapes, can't be probed.
        return
    if not finite:
        raise ArgumentError(
            "optimizer: its update has no finite derivative where the inner gradient is zero (as "
            "Adam's with eps_root=0), so the meta-gradient would be NaN. Pass eps_root, as in "
            "optax.adam(1e-3, eps_root=1e-8), or mode=metajax.first_order()."
        )


def adapt(
    loss_fn: LossFn,
    params: Params,
    support: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    mode: GradientMode | None = None,
    trainable: trees.Trainable = None,
    select: Callable[[PyTree, jax.Array], PyTree] | None = None,
    observe: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, AdaptInfo]:
    """Takes ``steps`` optimizer steps on the loss over one task's support set.

    Differentiable with respect to everything that enters it: the parameters, whether they adapt or
    not, the support set, what the loss closes over, and the optimizer's own learned quantities.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or a pair ``(scalar, aux)``.
        params: any pytree of arrays.
        support: the task's batch, any pytree that ``loss_fn`` accepts.
        optimizer: any Optax transformation; its state starts afresh for the task.
        steps: how many steps, at least 1.
        mode: how the outer gradient passes through the loop; if None, ``unrolled()`` for one step
            and ``mixed()`` for more.
        trainable: which leaves adapt: a predicate of a leaf's path (its keys joined by slashes), or
            a pytree of bools that is a prefix of ``params``; all floating-point leaves if None.
            Only these are differentiated in the inner loop and held once per task.
        select: ``select(support, index)`` returns the batch of step ``index`` (int32 scalar), for
            inner minibatches; the whole support set at every step if None.
        observe: ``observe(params)``, called before the first and after every step, its results
            returned in ``info.observed``.

    Returns:
        ``(adapted, info)``: parameters of the structure of ``params``, and an ``AdaptInfo``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer, ``trainable`` selects nothing, the
            loss isn't a floating-point scalar, or the optimizer's update has no finite derivative
            under a mode that needs it.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> adapted, info = metajax.adapt(
        ...     loss_fn, jnp.zeros(2), jnp.ones(2), optimizer=optax.sgd(0.25), steps=2
        ... )
        >>> adapted
        Array([0.75, 0.75], dtype=float32)
        >>> info.loss
        Array([2. , 0.5], dtype=float32)

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning" (arXiv 1703.03400), equation 1.
    """
    steps = _checks.positive_int("steps", steps)
    mode = mode_of(mode, steps)
    _checks.function("loss_fn", loss_fn, "loss_fn(params, batch)")
    _checks.optimizer("optimizer", optimizer)
    _checks.optional_function("select", select, "select(support, index)")
    _checks.optional_function("observe", observe, "observe(params)")
    _checks.arrays("params", params, some=True)
    _checks.arrays("support", support)
    adapted, frozen = trees.partition(params, trainable)
    if mode.differentiates_update:
        check_differentiable(optimizer, adapted)

    def inner_loss(adapted, frozen, batch):
        return value_and_aux(loss_fn(trees.combine(adapted, frozen), batch), name="loss_fn")

    inner_gradient = mode.inner_gradient(inner_loss)

    def observed(adapted):
        if observe is None:
            return None
        return _checks.arrays("what observe returns", observe(trees.combine(adapted, frozen)))

    def step(carry, index):
        adapted, optimizer_state = carry
        batch = support if select is None else select(support, index)
        before = observed(adapted)
        (loss, aux), gradient = inner_gradient(adapted, frozen, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, adapted)
        adapted = optax.apply_updates(adapted, updates)
        return (adapted, optimizer_state), (loss, aux, before)

    carry = (adapted, optimizer.init(adapted))
    (adapted, _), (loss, aux, before) = mode.loop(step, carry, steps)
    history = jax.tree.map(
        lambda rows, last: jnp.concatenate([rows, jnp.asarray(last)[None]]),
        before,
        observed(adapted),
    )
    return trees.combine(adapted, frozen), AdaptInfo(loss, aux, history)
