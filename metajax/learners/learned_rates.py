"""What learners share whose inner learning rates are meta-parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, trees
from metajax.adapt import adapt
from metajax.learners.base import Learner, OuterLoss, episode_loss
from metajax.modes import GradientMode, mode_of
from metajax.types import LossFn, PyTree


def learner_of_rates(
    meta_params: type[Any],
    loss_fn: LossFn,
    *,
    first: Callable[[jax.Array], PyTree],
    descent: Callable[[PyTree], optax.GradientTransformation],
    learning_rate: float,
    steps: int,
    mode: GradientMode | None,
    trainable: trees.Trainable,
    outer_loss: OuterLoss | None,
) -> Learner:
    """A learner of an initialisation and of the rates of the descent that adapts it.

    Args:
        meta_params: a named tuple of the initialisation, ``params``, and what makes the rates.
        loss_fn: as in ``metajax.maml``, like all that isn't named here.
        first: of a leaf that adapts, what its rates are made from at first.
        descent: of what makes the rates, the inner optimizer.
        learning_rate: what the rates start from; only checked here.
    """
    _checks.positive_int("steps", steps)
    _checks.positive_float("learning_rate", learning_rate)
    mode_of(mode, steps)
    loss = episode_loss(loss_fn, outer_loss)
    wanted = f"a {meta_params.__name__}"

    def init(params):
        params = jax.tree.map(jnp.asarray, _checks.arrays("params", params, some=True))
        adapted, _ = trees.partition(params, trainable)
        return meta_params(params, jax.tree.map(first, adapted))

    def adapt_fn(params, support, *, observe=None):
        _checks.instance("params", params, meta_params, f"{wanted}, which learner.init makes")
        initial, rates = params
        adapted, info = adapt(
            loss_fn,
            initial,
            support,
            optimizer=descent(rates),
            steps=steps,
            mode=mode,
            trainable=trainable,
            observe=None if observe is None else lambda p: observe(meta_params(p, rates)),
        )
        return meta_params(adapted, rates), info

    return Learner(init, adapt_fn, lambda adapted, episode: loss(adapted.params, episode))
