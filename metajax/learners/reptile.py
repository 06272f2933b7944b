"""Reptile: moves the initialisation towards the adapted parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, OuterLoss, adapt_to
from metajax.learners.gradient import gradient_learner
from metajax.modes import first_order
from metajax.trees import Trainable, is_floating
from metajax.types import LossFn, MaskedBatch, PyTree


def reptile(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int | None = None,
    trainable: Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """Reptile: the outer gradient is θ − θ_K, so that SGD of rate ε interpolates towards θ_K.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer; the paper's is Adam with b1=0. Nothing is differentiated
            through it, so that any serves, such as ``optax.lbfgs()``.
        steps: how many inner steps.
        batch_size: how many of the support set's examples (rows of every leaf) each step takes:
            step i takes the i-th ``batch_size`` rows of the support set in a fixed random order,
            which starts again when it ends. All of them if None.
        trainable: which leaves adapt; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``; for evaluation only.
        select: ``select(support, index)``, the batch of an inner step, in place of ``batch_size``;
            see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves. Training reads the
        support set only and reports its loss before the last inner step.

    Raises:
        ArgumentError: if ``steps`` or ``batch_size`` isn't a positive integer, or ``select`` is
            given too; when run, if the support set is smaller than ``batch_size``.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.reptile(loss_fn, optax.sgd(0.25), steps=2)
        >>> gradient, _ = learner.gradient(jnp.array(0.0), metajax.Episode(1.0, None))
        >>> gradient
        Array(-0.75, dtype=float32)

    Source: Nichol et al. 2018, "On First-Order Meta-Learning Algorithms" (arXiv 1803.02999).
    """
    size = 0 if batch_size is None else _checks.positive_int("batch_size", batch_size)
    if size and select is not None:
        raise ArgumentError("batch_size and select are two ways to choose batches: pass one.")

    def minibatch(support, index):
        classes = support.classes if isinstance(support, MaskedBatch) else None
        examples = support if classes is None else support._replace(classes=None)
        rows = _checks.leading_axis("the support set", examples, "example")
        if rows < size:
            raise ArgumentError(
                f"batch_size={size} is more than the support set's {rows} examples."
            )
        order = jax.random.permutation(jax.random.key(0), rows)
        taken = order[(index * size + jnp.arange(size)) % rows]
        batch = jax.tree.map(lambda leaf: leaf[taken], examples)
        return batch if classes is None else batch._replace(classes=classes)

    learner = gradient_learner(
        loss_fn,
        optimizer,
        steps=steps,
        mode=first_order(),
        trainable=trainable,
        outer_loss=outer_loss,
        select=minibatch if size else select,
        predict=predict,
    )

    def gradient(params, episode):
        adapted, info = adapt_to(learner, params, episode)
        difference = jax.tree.map(
            lambda start, end: start - end if is_floating(start) else jnp.zeros_like(start),
            params,
            adapted,
        )
        return difference, {"loss": info.loss[-1]}

    return learner._replace(gradient=gradient)
