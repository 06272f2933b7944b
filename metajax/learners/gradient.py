"""What learners that adapt by inner steps share."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from metajax import _checks, _marks, keys
from metajax.adapt import adapt
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, OuterLoss, PredictFn, episode_loss
from metajax.modes import GradientMode
from metajax.trees import Trainable
from metajax.types import LossFn, Params, PyTree


def gradient_learner(
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
    """A learner whose adaptation is ``metajax.adapt``: what MAML and its kin are made of.

    An algorithm of your own changes a part of it, as in
    ``gradient_learner(...)._replace(gradient=...)``.

    Args:
        loss_fn: ``loss_fn(params, batch)``; it and the next five as in ``metajax.adapt``.
        optimizer: the inner optimizer.
        steps: how many inner steps.
        mode: how to differentiate through them.
        trainable: which leaves adapt.
        outer_loss: ``outer_loss(adapted, episode)``; ``loss_fn`` on the query set if None.
        select: ``select(support, index)``, the batch of an inner step.
        predict: ``predict(params, inputs)``, the network; that of ``loss_fn`` if None, which a loss
            of ``metajax.losses`` knows.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters themselves. It is keyed if one of
        these functions is.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = gradient_learner(loss_fn, optax.sgd(0.25), steps=1)
        >>> learner.adapt(jnp.zeros(2), jnp.ones(2))[0].tolist()
        [0.5, 0.5]
    """
    steps = _checks.positive_int("steps", steps)

    def adapt_fn(params, support, *, observe=None, key=None):
        return adapt(
            loss_fn,
            params,
            support,
            optimizer=optimizer,
            steps=steps,
            mode=mode,
            trainable=trainable,
            select=select,
            observe=observe,
            key=key,
        )

    return Learner(
        lambda params: params,
        adapt_fn,
        episode_loss(loss_fn, outer_loss),
        predict=_predictor(loss_fn, outer_loss, predict),
        keyed=any(map(keys.is_keyed, (loss_fn, outer_loss, select))),
    )


def _predictor(
    loss_fn: LossFn, outer_loss: OuterLoss | None, predict: Callable[..., Any] | None
) -> PredictFn:
    """``Learner.predict`` by ``predict``, or by the network that a loss was built from."""
    given_support = getattr(outer_loss, "predict_given_support", None)

    def predict_fn(
        adapted: Params, support: PyTree, inputs: Any, *, key: jax.Array | None = None
    ) -> Any:
        if predict is not None:
            return _with_key(predict, key, adapted, inputs)
        if given_support is not None:
            return _with_key(_marks.like(outer_loss, given_support), key, adapted, support, inputs)
        network = getattr(loss_fn, "predict", None)
        if network is None:
            raise ArgumentError(
                "this learner can't predict, since its loss_fn doesn't say what the network is: "
                "pass predict=, as predict(params, inputs), or a loss of metajax.losses."
            )
        return _with_key(_marks.like(loss_fn, network), key, adapted, inputs)

    return predict_fn


def _with_key(function: Callable[..., Any], key: jax.Array | None, *args: Any) -> Any:
    if keys.is_keyed(function) and key is None:
        raise ArgumentError(
            "the network is keyed: pass key= to predict; or, to predict without dropout, build the "
            "learner with predict=, as predict(params, inputs)."
        )
    return keys._call("predict", function, key, *args)
