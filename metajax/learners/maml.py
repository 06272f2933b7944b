"""Model-agnostic meta-learning, second and first order."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from metajax._inner_update import check_differentiable
from metajax.learners.base import Learner, OuterLoss
from metajax.learners.gradient import gradient_learner
from metajax.modes import GradientMode, default_mode
from metajax.trees import Trainable
from metajax.types import LossFn, PyTree


def maml(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    mode: GradientMode | None = None,
    trainable: Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """MAML: learns an initialisation from which few inner steps suffice.

    The outer gradient is that of L_query(θ_K) with respect to θ_0, where
    θ_{k+1} = θ_k − α ∇L_support(θ_k) for plain gradient descent. With
    ``mode=metajax.first_order()`` it is FOMAML.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``. A keyed one
            (``metajax.keyed``) makes the learner keyed.
        optimizer: the inner optimizer, any Optax transformation.
        steps: how many inner steps.
        mode: how to differentiate through them; see ``metajax.adapt``.
        trainable: which leaves adapt; see ``metajax.adapt``. The others are learned by the outer
            loop alone.
        outer_loss: ``outer_loss(adapted, episode)``, where the outer loss isn't ``loss_fn`` on the
            query set.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network, for ``learner.predict``. A loss of
            ``metajax.losses`` knows its network; for one of your own, pass it.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer, or the optimizer's update can't be
            differentiated (a line search), or has no finite derivative under a mode that needs it
            (Adam with ``eps_root=0``).

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.maml(loss_fn, optax.sgd(0.25), steps=1)
        >>> gradient = metajax.meta_gradient(learner)
        >>> tasks = metajax.Episode(support=jnp.array([1.0, 3.0]), query=jnp.array([1.0, 3.0]))
        >>> gradient(jnp.array(0.0), tasks)[0]  # mean of (1 − 2α)² · 2 (θ − c) with α = 0.25
        Array(-1., dtype=float32)

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks"
    (arXiv 1703.03400).
    """
    learner = gradient_learner(
        loss_fn,
        optimizer,
        steps=steps,
        mode=mode,
        trainable=trainable,
        outer_loss=outer_loss,
        select=select,
        predict=predict,
    )
    check_differentiable(optimizer, jnp.zeros(2), default_mode(steps) if mode is None else mode)
    return learner
