"""CAVIA: only a context, an input of the network, adapts to a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.adapt import adapt
from metajax.learners.base import Learner, episode_loss
from metajax.modes import GradientMode, mode_of
from metajax.types import Episode, Metrics, Params, PyTree

ContextLoss = Callable[[Params, PyTree, PyTree], Any]
"""``loss_fn(params, context, batch) -> scalar``, or ``(scalar, metrics)``."""

ContextOuterLoss = Callable[[Params, PyTree, Episode], jax.Array | tuple[jax.Array, Metrics]]
"""``outer_loss(params, context, episode)``, the same."""


class CAVIAParams(NamedTuple):
    """What CAVIA has after adaptation.

    Attributes:
        params: the network's parameters, unchanged.
        context: the task's context.
    """

    params: Params
    context: PyTree


def cavia(
    loss_fn: ContextLoss,
    optimizer: optax.GradientTransformation,
    *,
    context: PyTree,
    steps: int,
    mode: GradientMode | None = None,
    outer_loss: ContextOuterLoss | None = None,
) -> Learner:
    """CAVIA: φ_{k+1} = φ_k − α ∇_φ L_support(θ, φ_k) from φ_0 = 0; θ is learned by the outer loop.

    Args:
        loss_fn: ``loss_fn(params, context, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer, any Optax transformation.
        context: what every task's context starts from, such as ``jnp.zeros(100)``; any pytree.
        steps: how many inner steps.
        mode: how to differentiate through them; see ``metajax.adapt``.
        outer_loss: ``outer_loss(params, context, episode)``, where the outer loss isn't ``loss_fn``
            on the query set.

    Returns:
        A ``Learner`` whose meta-parameters are the network's parameters, and whose adapted ones are
        a ``CAVIAParams``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, context, batch: (params + context - batch) ** 2
        >>> learner = metajax.cavia(loss_fn, optax.sgd(0.25), context=jnp.zeros(()), steps=1)
        >>> adapted, _ = learner.adapt(jnp.array(1.0), 3.0)
        >>> float(adapted.params), float(adapted.context)
        (1.0, 1.0)

    Source: Zintgraf et al. 2019, "Fast Context Adaptation via Meta-Learning" (arXiv 1810.03642),
    equations 5 and 6.
    """
    _checks.positive_int("steps", steps)
    _checks.function("loss_fn", loss_fn, "loss_fn(params, context, batch)")
    _checks.optimizer("optimizer", optimizer)
    _checks.optional_function("outer_loss", outer_loss, "outer_loss(params, context, episode)")
    _checks.arrays("context", context, some=True)
    mode_of(mode, steps)
    start = jax.tree.map(jnp.asarray, context)

    def joint_loss(adapted: CAVIAParams, batch):
        return loss_fn(adapted.params, adapted.context, batch)

    def adapt_fn(params, support, *, observe=None):
        return adapt(
            joint_loss,
            CAVIAParams(params, start),
            support,
            optimizer=optimizer,
            steps=steps,
            mode=mode,
            trainable=CAVIAParams(params=False, context=True),
            observe=observe,
        )

    joint_outer_loss = (
        None
        if outer_loss is None
        else lambda adapted, episode: outer_loss(adapted.params, adapted.context, episode)
    )
    return Learner(lambda params: params, adapt_fn, episode_loss(joint_loss, joint_outer_loss))
