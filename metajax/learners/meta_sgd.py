"""Meta-SGD: the inner learning rate of every weight is learned too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.learners._learned_rates import learner_of_rates
from metajax.learners.base import Learner, OuterLoss
from metajax.modes import GradientMode
from metajax.types import LossFn, Params, PyTree


class MetaSGDParams(NamedTuple):
    """The meta-parameters of Meta-SGD.

    Attributes:
        params: the initialisation.
        rates: a learning rate for every element of every leaf that adapts, in the structure of
            ``params``, with None at the leaves that don't.
    """

    params: Params
    rates: PyTree


def scale_by_rates(rates: PyTree) -> optax.GradientTransformation:
    """Gradient descent with a rate for every element: the update is −rates · gradient.

    Args:
        rates: arrays of the structure and shapes of the gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> descent = scale_by_rates(jnp.array([0.1, 1.0]))
        >>> descent.update(jnp.array([2.0, 2.0]), descent.init(None))[0]
        Array([-0.2, -2. ], dtype=float32)
    """

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda rate, gradient: -rate * gradient, rates, updates), state

    return optax.GradientTransformation(init, update)


def meta_sgd(
    loss_fn: LossFn,
    *,
    learning_rate: float,
    steps: int,
    mode: GradientMode | None = None,
    trainable: trees.Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """Meta-SGD: learns the initialisation θ and the rates α of θ' = θ − α ∘ ∇L_support(θ).

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        learning_rate: the initial value of every rate.
        steps: how many inner steps (the paper takes 1); the rates are the same in each.
        mode: how to differentiate through them; see ``metajax.adapt``.
        trainable: which leaves adapt; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are a ``MetaSGDParams``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer or ``learning_rate`` isn't positive.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.meta_sgd(loss_fn, learning_rate=0.25, steps=1)
        >>> meta_params = learner.init(jnp.zeros(2))
        >>> learner.adapt(meta_params, jnp.array([1.0, 2.0]))[0].params
        Array([0.5, 1. ], dtype=float32)

    Source: Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning"
    (arXiv 1707.09835).
    """
    return learner_of_rates(
        MetaSGDParams,
        loss_fn,
        first=lambda leaf: jnp.full_like(leaf, learning_rate),
        descent=scale_by_rates,
        learning_rate=learning_rate,
        steps=steps,
        mode=mode,
        trainable=trainable,
        outer_loss=outer_loss,
        select=select,
        predict=predict,
    )
