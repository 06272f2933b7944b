"""MAML++: learned inner rates, and parameters of each inner step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _marks, trees
from metajax.errors import ArgumentError
from metajax.learners._learned_rates import learner_of_rates
from metajax.learners.base import Learner, OuterLoss
from metajax.modes import GradientMode
from metajax.types import LossFn, Params, PyTree


class MAMLPlusPlusParams(NamedTuple):
    """The meta-parameters of MAML++.

    Attributes:
        params: the initialisation; ``[steps + 1, ...]`` at the leaves of ``per_step``. After
            adaptation, the network's parameters.
        log_rates: logarithms of the learning rates, in the structure of ``params`` with None at the
            leaves that don't descend: a scalar a leaf, or ``[steps]``.
    """

    params: Params
    log_rates: PyTree


def scale_by_log_rates(log_rates: PyTree) -> optax.GradientTransformation:
    """Gradient descent with a rate for each leaf, and for each step where there are as many.

    Args:
        log_rates: in the structure of the gradient, logarithms of the rates: scalars, or
            ``[steps]``.

    Example:
        >>> import jax.numpy as jnp
        >>> descent = scale_by_log_rates(jnp.log(jnp.array([0.5, 0.25])))
        >>> first, state = descent.update(jnp.array([2.0, 4.0]), descent.init(None))
        >>> second, state = descent.update(jnp.array([2.0, 4.0]), state)
        >>> first, second
        (Array([-1., -2.], dtype=float32), Array([-0.5, -1. ], dtype=float32))
    """
    rates = jax.tree.map(jnp.exp, log_rates)

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params

        def descend(rate, gradient):
            at = rate if rate.ndim == 0 else rate[state.count]
            return -at.astype(gradient.dtype) * gradient

        updates = jax.tree.map(descend, rates, updates)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def maml_plus_plus(
    loss_fn: LossFn,
    *,
    learning_rate: float,
    steps: int,
    rates_per_step: bool = True,
    per_step: trees.Trainable = None,
    mode: GradientMode | None = None,
    trainable: trees.Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """MAML++: learns the initialisation θ and a rate for each leaf l, and each step k, of
    θ_{k+1,l} = θ_{k,l} − α_{k,l} ∇_l L_support(θ_k).

    The paper learns α, this its logarithm: rates stay positive, and a step of the outer optimizer
    changes them in proportion. The paper's other changes are separate: ``per_step`` here (shift and
    scale of the normalisation), ``metajax.learners.multi_step_loss`` with ``annealed_weights``,
    ``warm_start``, and the outer optimizer's schedule.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        learning_rate: the initial value of every rate.
        steps: how many inner steps.
        rates_per_step: whether each step has its own rates, as in the paper. If not, the
            meta-parameters serve any number of steps.
        per_step: leaves that each inner step, and the query pass after the last, has a copy of.
            They don't descend. Chosen as by ``trainable``; none if None.
        mode: how to differentiate through the steps; see ``metajax.adapt``.
        trainable: which leaves adapt; see ``metajax.adapt``. Those of ``per_step`` don't.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are a ``MAMLPlusPlusParams``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer or ``learning_rate`` isn't positive, or
            meta-parameters have rates or leaves for another number of steps.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.maml_plus_plus(loss_fn, learning_rate=0.25, steps=1)
        >>> meta_params = learner.init(jnp.zeros(2))
        >>> learner.adapt(meta_params, jnp.array([1.0, 2.0]))[0].params
        Array([0.5, 1. ], dtype=float32)

    Source: Antoniou et al. 2019, "How to train your MAML" (arXiv 1810.09502), section 4.
    """

    def descent(log_rates: PyTree) -> optax.GradientTransformation:
        for path, leaf in jax.tree_util.tree_flatten_with_path(log_rates)[0]:
            if leaf.shape not in ((), (steps,)):
                raise ArgumentError(
                    f"steps is {steps}, but log_rates{jax.tree_util.keystr(path)} has shape "
                    f"{leaf.shape}: rates of a step each serve as many steps as they were made "
                    "for; with rates_per_step=False they serve any number."
                )
        return scale_by_log_rates(log_rates)

    def build(loss_fn: LossFn, descent, trainable: trees.Trainable) -> Learner:
        return learner_of_rates(
            MAMLPlusPlusParams,
            loss_fn,
            first=lambda leaf: jnp.full(
                (steps,) if rates_per_step else (), jnp.log(learning_rate), leaf.dtype
            ),
            descent=descent,
            learning_rate=learning_rate,
            steps=steps,
            mode=mode,
            trainable=trainable,
            outer_loss=outer_loss,
            select=select,
            predict=predict,
        )

    plain = build(loss_fn, descent, trainable)
    if per_step is None:
        return plain

    def init(params):
        versions = trees.selected(params, per_step)
        adapts = trees.selected(params, trainable)
        descends = jax.tree.map(lambda adapts, many: adapts and not many, adapts, versions)
        start = build(loss_fn, descent, descends).init(params)
        stack = lambda many, leaf: jnp.stack([leaf] * (steps + 1)) if many else leaf
        return start._replace(params=jax.tree.map(stack, versions, params))

    def adapt_fn(params, support, *, observe=None, key=None):
        versions = trees.selected(params.params, per_step)
        _check_versions(params.params, versions, steps)

        def current(params):
            return jax.tree.map(lambda many, leaf: leaf[0] if many else leaf, versions, params)

        def now(meta_params):
            return meta_params._replace(params=current(meta_params.params))

        adapts = trees.selected(params.params, trainable)
        moving = jax.tree.map(lambda adapts, many: adapts or many, adapts, versions)
        learner = build(
            _marks.like(loss_fn, lambda params, *rest: loss_fn(current(params), *rest)),
            lambda log_rates: _next_versions(descent(log_rates), versions),
            moving,
        )
        seen = None if observe is None else lambda p: observe(now(p))
        adapted, info = learner.adapt(params, support, observe=seen, key=key)
        return now(adapted), info

    return plain._replace(init=init, adapt=adapt_fn)


def _next_versions(
    descent: optax.GradientTransformation, versions: PyTree
) -> optax.GradientTransformation:
    """The descent, which also rolls the leaves of ``per_step``, so that the next version is first.

    Args:
        descent: for the other leaves.
        versions: bools, True at leaves ``[versions, ...]``.
    """

    def update(updates, state, params=None):
        others = jax.tree.map(lambda many, leaf: None if many else leaf, versions, updates)
        descended, state = descent.update(others, state)
        turned = jax.tree.map(
            lambda many, leaf: jnp.roll(leaf, -1, axis=0) - leaf if many else None,
            versions,
            params,
        )
        return trees.combine(descended, turned), state

    return optax.GradientTransformation(descent.init, update)


def _check_versions(params: Params, versions: PyTree, steps: int) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for (path, leaf), has_versions in zip(leaves, jax.tree.leaves(versions), strict=True):
        if has_versions and (leaf.ndim == 0 or leaf.shape[0] != steps + 1):
            raise ArgumentError(
                f"steps is {steps}, but params{jax.tree_util.keystr(path)} has shape {leaf.shape}:"
                " per_step leaves are [steps + 1, ...]; learner.init makes them."
            )
