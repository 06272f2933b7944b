"""What learners with learned inner rates share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, trees
from metajax.learners.base import Learner
from metajax.learners.gradient import gradient_learner
from metajax.types import LossFn, PyTree


def learner_of_rates(
    meta_params: type[Any],
    loss_fn: LossFn,
    *,
    first: Callable[[jax.Array], PyTree],
    descent: Callable[[PyTree], optax.GradientTransformation],
    learning_rate: float,
    trainable: trees.Trainable,
    **options: Any,
) -> Learner:
    """A learner of an initialisation and of the inner optimizer's rates.

    Args:
        meta_params: a named tuple of the initialisation, ``params``, and the rates.
        loss_fn: as in ``metajax.maml``.
        first: the initial rates of a leaf that adapts.
        descent: makes the inner optimizer of the rates.
        learning_rate: the initial rate; only checked here.
        trainable: which leaves adapt.
        **options: of ``gradient_learner``.
    """
    _checks.positive_float("learning_rate", learning_rate)

    def build(optimizer: optax.GradientTransformation) -> Learner:
        return gradient_learner(loss_fn, optimizer, trainable=trainable, **options)

    plain = build(optax.identity())

    def init(params):
        params = jax.tree.map(jnp.asarray, params)
        adapted, _ = trees.partition(params, trainable)
        return meta_params(params, jax.tree.map(first, adapted))

    def adapt_fn(params, support, *, observe=None, key=None):
        # Any other pair would be taken for parameters and rates.
        wanted = f"a {meta_params.__name__}, which learner.init makes"
        _checks.instance("params", params, meta_params, wanted)
        initial, rates = params
        seen = None if observe is None else lambda p: observe(meta_params(p, rates))
        adapted, info = build(descent(rates)).adapt(initial, support, observe=seen, key=key)
        return meta_params(adapted, rates), info

    predict_by_network: Any = plain.predict

    def predict(adapted, support, inputs, *, key=None):
        return predict_by_network(adapted.params, support, inputs, key=key)

    loss = lambda adapted, episode: plain.loss(adapted.params, episode)
    return plain._replace(init=init, adapt=adapt_fn, loss=loss, predict=predict)
