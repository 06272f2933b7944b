"""CAVIA: only a context, an input of the network, adapts to a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _marks
from metajax.learners.base import Learner
from metajax.learners.maml import maml
from metajax.modes import GradientMode
from metajax.types import Params, PyTree

ContextLoss = Callable[..., Any]
"""``loss_fn(params, context, batch) -> scalar``, or ``(scalar, metrics)``."""

ContextOuterLoss = Callable[..., Any]
"""``outer_loss(params, context, episode)``, the same."""


class CAVIAParams(NamedTuple):
    """The result of CAVIA's adaptation.

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
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
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
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, context, inputs)``, the network, for ``learner.predict``.

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

    def joint(function: Any) -> Any:
        """The function of params and context as one of a ``CAVIAParams``."""
        if function is None:
            return None
        return _marks.like(
            function, lambda adapted, *rest: function(adapted.params, adapted.context, *rest)
        )

    learner = maml(
        joint(loss_fn),
        optimizer,
        steps=steps,
        mode=mode,
        trainable=CAVIAParams(params=False, context=True),
        outer_loss=joint(outer_loss),
        select=select,
        predict=joint(predict),
    )

    def adapt_fn(params, support, *, observe=None, key=None):
        start = CAVIAParams(params, jax.tree.map(jnp.asarray, context))
        return learner.adapt(start, support, observe=observe, key=key)

    return learner._replace(adapt=adapt_fn)
