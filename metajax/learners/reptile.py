"""Reptile: moves the initialisation towards the adapted parameters."""

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.adapt import adapt
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, OuterLoss, episode_loss
from metajax.modes import first_order
from metajax.trees import Trainable, is_floating
from metajax.types import LossFn


def reptile(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int | None = None,
    trainable: Trainable = None,
    outer_loss: OuterLoss | None = None,
) -> Learner:
    """Reptile: the outer gradient is θ − θ_K, so that SGD of rate ε interpolates towards θ_K.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        optimizer: the inner optimizer; the paper's is Adam with b1=0.
        steps: how many inner steps.
        batch_size: how many of the support set's examples (rows of every leaf) each step takes:
            step i takes the i-th run of ``batch_size`` rows of the support set in a fixed random
            order, which starts again from its head when it ends. All of them if None.
        trainable: which leaves adapt; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``; for evaluation only.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves. Training reads the
        support set only and reports its loss before the last inner step.

    Raises:
        ArgumentError: if ``steps`` or ``batch_size`` isn't a positive integer; when run, if the
            support set is smaller than ``batch_size``.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.reptile(loss_fn, optax.sgd(0.25), steps=2)
        >>> gradient, _ = learner.gradient(jnp.array(0.0), metajax.Episode(1.0, None))
        >>> gradient
        Array(-0.75, dtype=float32)

    Source: Nichol et al. 2018, "On First-Order Meta-Learning Algorithms" (arXiv 1803.02999).
    """
    _checks.positive_int("steps", steps)
    _checks.optimizer("optimizer", optimizer)
    size = 0 if batch_size is None else _checks.positive_int("batch_size", batch_size)

    def minibatch(support, index):
        rows = _checks.leading_axis("the support set", support, "example")
        if rows < size:
            raise ArgumentError(
                f"batch_size={size} is more than the support set's {rows} examples."
            )
        order = jax.random.permutation(jax.random.key(0), rows)
        taken = order[(index * size + jnp.arange(size)) % rows]
        return jax.tree.map(lambda leaf: leaf[taken], support)

    def adapt_fn(params, support, *, observe=None):
        return adapt(
            loss_fn,
            params,
            support,
            optimizer=optimizer,
            steps=steps,
            mode=first_order(),
            trainable=trainable,
            select=None if batch_size is None else minibatch,
            observe=observe,
        )

    def gradient(params, episode):
        adapted, info = adapt_fn(params, episode.support)
        difference = jax.tree.map(
            lambda start, end: start - end if is_floating(start) else jnp.zeros_like(start),
            params,
            adapted,
        )
        return difference, {"loss": info.loss[-1]}

    return Learner(lambda params: params, adapt_fn, episode_loss(loss_fn, outer_loss), gradient)
