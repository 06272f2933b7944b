"""How to differentiate through the inner loop, as a value that ``adapt`` is given.

A mode says how the gradient of the inner loss is computed, and so what its derivative is; and how
the steps are looped over, and so what is kept for the backward pass.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.trees import is_floating
from metajax.types import PyTree

__all__ = [
    "GradientMode",
    "default_mode",
    "first_order",
    "mixed",
    "rematerialised",
    "truncated",
    "unrolled",
]

InnerLoss = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
"""``inner_loss(adapted, frozen, batch) -> (loss, aux)``."""

InnerGradient = Callable[[PyTree, PyTree, PyTree], tuple[tuple[jax.Array, PyTree], PyTree]]
"""``inner_gradient(adapted, frozen, batch) -> ((loss, aux), gradient)``."""

Loop = Callable[[Callable[[Any, jax.Array], tuple[Any, Any]], Any, int], tuple[Any, Any]]
"""``loop(step, carry, steps) -> (carry, outputs)`` with ``step(carry, index)``, as in a scan."""


class GradientMode(NamedTuple):
    """A way to differentiate through adaptation.

    Attributes:
        name: what reports call it.
        inner_gradient: turns the inner loss into the function that computes its gradient.
        loop: runs the inner steps.
        differentiates_update: whether the outer gradient passes through the inner optimizer's
            update as a function of the inner gradient, so that the update needs a finite
            derivative.
    """

    name: str
    inner_gradient: Callable[[InnerLoss], InnerGradient]
    loop: Loop
    differentiates_update: bool


_INNER_GRADIENT = "metajax.inner_gradient"  # its name for checkpoints that choose by name
_KEEP_GRADIENTS = jax.checkpoint_policies.save_only_these_names(_INNER_GRADIENT)


def _scan(step, carry, steps):
    return jax.lax.scan(step, carry, jnp.arange(steps))


def _lean_step(step):
    """The step with only its inner gradient kept beside the carry.

    The rest of the optimizer's update (Adam's corrected moments, their roots and quotients) is
    cheap to compute again.
    """
    return jax.checkpoint(step, prevent_cse=False, policy=_KEEP_GRADIENTS)


def _rematerialised_scan(step, carry, steps):
    return _scan(jax.checkpoint(step, prevent_cse=False), carry, steps)


def _checkpointed_scan(levels: int, keep_gradients: bool) -> Loop:
    """A scan over segments that keep only their first carry, and are such scans themselves.

    Without levels it is a scan over the steps.
    """
    policy = _KEEP_GRADIENTS if keep_gradients else None

    def over(step, carry, indices, levels):
        n = indices.shape[0]
        if levels == 0 or n <= 2:
            return jax.lax.scan(step, carry, indices)
        length = _segment_length(n, levels)
        segments, remainder = divmod(n, length)
        segment = jax.checkpoint(
            lambda c, i: over(step, c, i, levels - 1), prevent_cse=False, policy=policy
        )
        head = indices[: segments * length].reshape(segments, length)
        carry, outputs = jax.lax.scan(segment, carry, head)
        outputs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)
        if remainder:
            carry, rest = segment(carry, indices[segments * length :])
            outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, rest)
        return carry, outputs

    return lambda step, carry, steps: over(_lean_step(step), carry, jnp.arange(steps), levels)


def _segment_length(steps: int, levels: int) -> int:
    """How many steps the outermost segments have, where ``levels`` levels of them are nested.

    About steps^(levels / (levels + 1)), so that all levels have as many; a divisor of ``steps`` if
    one is near, since a remainder is compiled for itself.
    """
    ideal = steps ** (levels / (levels + 1))
    near = [n for n in range(1, steps + 1) if steps % n == 0 and 2 / 3 <= n / ideal <= 3 / 2]
    return min(near, key=lambda n: abs(n - ideal), default=math.ceil(ideal))


def _ordinary_gradient(loss: InnerLoss) -> InnerGradient:
    return jax.value_and_grad(loss, has_aux=True)


def _stopped_gradient(loss: InnerLoss) -> InnerGradient:
    def inner_gradient(adapted, frozen, batch):
        value, gradient = jax.value_and_grad(loss, has_aux=True)(adapted, frozen, batch)
        return value, jax.lax.stop_gradient(gradient)

    return inner_gradient


def _forward_over_reverse_gradient(loss: InnerLoss) -> InnerGradient:
    """The inner gradient with a backward pass that is one ``jvp`` of the loss's pull-back.

    Let P(x, c) be the pull-back of x -> (loss, aux) at x with cotangent c, so that the inner
    gradient is the adapted part of P(x, (1, 0)). With the cotangent v of the inner gradient and the
    cotangents c' of loss and aux, symmetry of second derivatives gives the cotangent of x as the
    derivative of P in the direction (x: v, c: c'): the Hessian-vector product and the loss's own
    pull-back in one forward-over-reverse pass, which keeps nothing but x between the passes.
    """

    def inner_gradient(adapted, frozen, batch):
        # What the loss closes over may be differentiated too (a learned loss weight, say).
        converted, closed_over = jax.closure_convert(loss, adapted, frozen, batch)
        adapted_leaves, adapted_tree = jax.tree.flatten(adapted)
        rest, rest_tree = jax.tree.flatten((frozen, batch, closed_over))
        smooth = [is_floating(leaf) for leaf in rest]

        def outputs(adapted_leaves, smooth_leaves, other_leaves):
            smooth_iter, other_iter = iter(smooth_leaves), iter(other_leaves)
            leaves = [next(smooth_iter if is_smooth else other_iter) for is_smooth in smooth]
            frozen, batch, closed_over = rest_tree.unflatten(leaves)
            return converted(adapted_tree.unflatten(adapted_leaves), frozen, batch, *closed_over)

        def smooth_outputs(adapted_leaves, smooth_leaves, other_leaves):
            value, aux = outputs(adapted_leaves, smooth_leaves, other_leaves)
            return [value, *(leaf for leaf in jax.tree.leaves(aux) if is_floating(leaf))]

        @jax.custom_vjp
        def gradient_fn(adapted_leaves, smooth_leaves, other_leaves):
            return jax.value_and_grad(outputs, has_aux=True)(
                adapted_leaves, smooth_leaves, other_leaves
            )

        def forward(adapted_leaves, smooth_leaves, other_leaves):
            primal = (adapted_leaves, smooth_leaves, other_leaves)
            return gradient_fn(*primal), primal

        def backward(primal, cotangents):
            adapted_leaves, smooth_leaves, other_leaves = primal
            (value_bar, aux_bar), direction = cotangents
            output_bars = [
                value_bar,
                *(bar for bar in jax.tree.leaves(aux_bar) if bar.dtype != jax.dtypes.float0),
            ]

            def pull_back(adapted_leaves, output_bars):
                _, transpose = jax.vjp(
                    lambda a, s: smooth_outputs(a, s, other_leaves), adapted_leaves, smooth_leaves
                )
                return transpose(output_bars)

            ones = [jnp.ones_like(value_bar), *map(jnp.zeros_like, output_bars[1:])]
            _, (adapted_bar, smooth_bar) = jax.jvp(
                pull_back, (adapted_leaves, ones), (direction, output_bars)
            )
            return adapted_bar, smooth_bar, None

        gradient_fn.defvjp(forward, backward)
        smooth_leaves = [leaf for leaf, is_smooth in zip(rest, smooth, strict=True) if is_smooth]
        other_leaves = [leaf for leaf, is_smooth in zip(rest, smooth, strict=True) if not is_smooth]
        (value, aux), gradient = gradient_fn(adapted_leaves, smooth_leaves, other_leaves)
        # An optimizer may use the loss too: without its name it would be computed again.
        value = checkpoint_name(value, _INNER_GRADIENT)
        gradient = checkpoint_name(adapted_tree.unflatten(gradient), _INNER_GRADIENT)
        return (value, aux), gradient

    return inner_gradient


def unrolled() -> GradientMode:
    """Exact: ordinary reverse-mode differentiation through every inner step.

    Keeps each step's intermediate values, so memory grows with the number of steps.

    Example:
        >>> unrolled().name
        'unrolled'
    """
    return GradientMode("unrolled", _ordinary_gradient, _scan, differentiates_update=True)


def rematerialised() -> GradientMode:
    """Exact: keeps only the parameters between steps, and computes each step again.

    Trades one more forward and backward pass of each inner step for memory.

    Example:
        >>> rematerialised().name
        'rematerialised'
    """
    return GradientMode(
        "rematerialised", _ordinary_gradient, _rematerialised_scan, differentiates_update=True
    )


def mixed(*, checkpoint_levels: int = 0, keep_gradients: bool = False) -> GradientMode:
    """Exact: forward over reverse, the inner gradient's pull-back as one ``jvp`` of it.

    Keeps each step's parameters, optimizer state and, where the update isn't linear in it, inner
    gradient only. Where the loss has a ``jax.custom_vjp``
    of its own, that function's rules must admit forward-mode differentiation. Another mode is
    needed where adaptation is itself differentiated forward (``jax.jvp``) or more than once, as
    by another adaptation around it.

    Args:
        checkpoint_levels: levels of checkpoints. With L levels, K steps keep parameters and
            optimizer state about (L + 1) · K^(1 / (L + 1)) times, as 2 √K with one, and compute
            the inner gradients L more times. With 0 they are kept K times.
        keep_gradients: with checkpoints, keep all K inner gradients, so that only the updates are
            computed again: for an optimizer with a large state, such as Adam, most of the saving
            at hardly any time; for plain gradient descent none.

    Raises:
        ArgumentError: if ``checkpoint_levels`` isn't an integer of at least 0, or
            ``keep_gradients`` is asked for without checkpoints.

    Source: Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation"
    (arXiv 2505.00793); for the checkpoints, Griewank 1992, "Achieving logarithmic growth of
    temporal and spatial complexity in reverse automatic differentiation".

    Example:
        >>> mixed().name, mixed(checkpoint_levels=1).name
        ('mixed', 'mixed, 1 level of checkpoints')
    """
    levels = _checks.non_negative_int("checkpoint_levels", checkpoint_levels)
    if keep_gradients and not levels:
        raise ArgumentError("keep_gradients=True needs checkpoints: checkpoint_levels is 0.")
    name = "mixed"
    if levels:
        name += f", {levels} level{'s' if levels > 1 else ''} of checkpoints"
    if keep_gradients:
        name += " and all inner gradients"
    return GradientMode(
        name,
        _forward_over_reverse_gradient,
        _checkpointed_scan(levels, keep_gradients),
        differentiates_update=True,
    )


def first_order() -> GradientMode:
    """Approximate: the inner gradient is taken as a constant, so no second derivatives.

    With it MAML is FOMAML. Learned rates and other parameters of the update still get their exact
    gradient given that constant.

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning" (arXiv 1703.03400), section 5.2.

    Example:
        >>> first_order().differentiates_update
        False
    """
    return GradientMode("first_order", _stopped_gradient, _scan, differentiates_update=False)


def truncated(last: int, *, mode: GradientMode | None = None) -> GradientMode:
    """Approximate: only the last steps are differentiated, as truncated back-propagation does.

    What the steps before them add to the initialisation counts as a constant. So the gradient of
    the initialisation passes through them unchanged, and that of anything else that enters them
    (learned rates, leaves that don't adapt) is left out. It is exact if ``last`` is at least the
    number of steps.

    Args:
        last: how many steps are differentiated.
        mode: how; ``mixed()`` if None.

    Raises:
        ArgumentError: if ``last`` isn't a positive integer.

    Source: Shaban et al. 2019, "Truncated Back-propagation for Bilevel Optimization"
    (arXiv 1810.10667).

    Example:
        >>> truncated(2).name
        'mixed, truncated to the last 2 steps'
    """
    last = _checks.positive_int("last", last)
    of_last = mixed() if mode is None else mode

    def loop(step, carry, steps):
        before = max(steps - last, 0)
        if not before:
            return of_last.loop(step, carry, steps)
        moved, first = jax.lax.stop_gradient(_scan(step, carry, before))

        def shifted(start, end):
            return start + jax.lax.stop_gradient(end - start) if is_floating(start) else end

        carry = jax.tree.map(shifted, carry, moved)
        carry, rest = of_last.loop(
            lambda carry, index: step(carry, index + before), carry, steps - before
        )
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)

    name = f"{of_last.name}, truncated to the last {last} step{'s' if last > 1 else ''}"
    return of_last._replace(name=name, loop=loop)


def default_mode(steps: int) -> GradientMode:
    """What ``adapt`` takes where no mode is given: ``unrolled()`` for one step, else ``mixed()``.

    Conv-4's 5-way 1-shot meta-step took 58 ms of one core for 8 tasks unrolled and 67 ms mixed,
    which computes the step's forward pass again; with more steps, unrolling keeps the residuals of
    them all.

    Example:
        >>> default_mode(1).name, default_mode(5).name
        ('unrolled', 'mixed')
    """
    return unrolled() if steps == 1 else mixed()
