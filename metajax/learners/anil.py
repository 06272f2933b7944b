"""Almost no inner loop: only the head adapts."""

from collections.abc import Callable
from typing import Any

import optax

from metajax.learners.base import Learner, OuterLoss
from metajax.learners.maml import maml
from metajax.modes import GradientMode
from metajax.trees import Trainable
from metajax.types import LossFn, PyTree


def in_head(path: str) -> bool:
    """Whether a leaf lies in a submodule called ``head``, as in metajax's own models.

    Example:
        >>> in_head("params/head/kernel"), in_head("params/conv_0/kernel")
        (True, False)
    """
    return "head" in path.split("/")


def anil(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    head: Trainable = in_head,
    mode: GradientMode | None = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """ANIL: MAML in which only the head adapts; the body is learned by the outer loop alone.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer, any Optax transformation.
        steps: how many inner steps.
        head: which leaves are the head: a predicate of a leaf's path or a pytree of bools; by
            default those in a submodule called ``head``.
        mode: how to differentiate through the inner steps; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer; when run, if ``head`` selects nothing.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda p, batch: jnp.sum((p["head"] * p["body"] - batch) ** 2)
        >>> learner = metajax.anil(loss_fn, optax.sgd(0.25), steps=1)
        >>> adapted, _ = learner.adapt({"body": jnp.array(1.0), "head": jnp.array(0.0)}, 1.0)
        >>> adapted["body"], adapted["head"]
        (Array(1., dtype=float32, weak_type=True), Array(0.5, dtype=float32))

    Source: Raghu et al. 2020, "Rapid Learning or Feature Reuse?" (arXiv 1909.09157).
    """
    return maml(
        loss_fn,
        optimizer,
        steps=steps,
        mode=mode,
        trainable=head,
        outer_loss=outer_loss,
        select=select,
        predict=predict,
    )
