"""How to differentiate through the inner loop, as a value that ``adapt`` is given.

A mode answers two questions: how the gradient of the inner loss is computed (and so what its
derivative is), and how the steps are looped over (and so what is kept for the backward pass).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.trees import is_floating
from metajax.types import PyTree

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


def _scan(step, carry, steps):
    return jax.lax.scan(step, carry, jnp.arange(steps))


def _rematerialised_scan(step, carry, steps):
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, jnp.arange(steps))


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
        value, gradient = gradient_fn(adapted_leaves, smooth_leaves, other_leaves)
        return value, adapted_tree.unflatten(gradient)

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


def mixed() -> GradientMode:
    """Exact: forward over reverse, the inner gradient's pull-back as one ``jvp`` of it.

    Keeps each step's parameters and optimizer state only. Where the loss has a ``jax.custom_vjp``
    of its own, that function's rules must admit forward-mode differentiation. Another mode is
    needed where adaptation is itself differentiated forward (``jax.jvp``) or more than once, as
    by another adaptation around it.

    Source: Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode Differentiation"
    (arXiv 2505.00793).

    Example:
        >>> mixed().name
        'mixed'
    """
    return GradientMode("mixed", _forward_over_reverse_gradient, _scan, differentiates_update=True)


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
