"""Body only in the inner loop: the head stays as it is."""

from collections.abc import Callable
from typing import Any

import optax

from metajax.learners.anil import in_head
from metajax.learners.base import Learner, OuterLoss
from metajax.learners.maml import maml
from metajax.modes import GradientMode
from metajax.trees import Trainable
from metajax.types import LossFn, PyTree


def boil(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    in_body: Trainable = None,
    mode: GradientMode | None = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """BOIL: MAML in which only the body adapts; the head is learned by the outer loop alone.

    ANIL's opposite: since the head doesn't move, the features must come to it.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer, any Optax transformation.
        steps: how many inner steps.
        in_body: which leaves are the body: a predicate of a leaf's path or a pytree of bools; by
            default all that don't lie in a submodule called ``head``.
        mode: how to differentiate through the inner steps; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer; when run, if ``in_body`` selects
            nothing.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda p, batch: jnp.sum((p["head"] * p["body"] - batch) ** 2)
        >>> learner = metajax.boil(loss_fn, optax.sgd(0.25), steps=1)
        >>> adapted, _ = learner.adapt({"body": jnp.array(0.0), "head": jnp.array(1.0)}, 1.0)
        >>> float(adapted["body"]), float(adapted["head"])
        (0.5, 1.0)

    Source: Oh et al. 2021, "BOIL: Towards Representation Change for Few-shot Learning"
    (arXiv 2008.08882), equation 2.
    """
    body = (lambda path: not in_head(path)) if in_body is None else in_body
    return maml(
        loss_fn,
        optimizer,
        steps=steps,
        mode=mode,
        trainable=body,
        outer_loss=outer_loss,
        select=select,
        predict=predict,
    )
