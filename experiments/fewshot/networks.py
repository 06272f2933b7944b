"""MAML's network for small images, and what it gives a learner by gradients."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import metajax
from metajax import losses, models
from metajax.types import Params

HEAD_STD = 0.125
"""Standard deviation of the head's initial weights in our own schedules: Flax's default for 64
features. From the paper's 1 the first thousand meta-steps go into unlearning the head."""


class Network(NamedTuple):
    """MAML's four-layer network, with its two ways to normalise.

    Attributes:
        params: initial parameters.
        apply: ``apply(params, images) -> logits``, with the statistics of all images given
            (transductive).
        apply_with: ``apply_with(params, images, reference=n) -> logits``, with the statistics of
            the first n images.
    """

    params: Params
    apply: losses.Apply
    apply_with: losses.Apply


def conv4(
    n_way: int,
    key: jax.Array,
    *,
    head_std: float = 1.0,
    features: int = 64,
    size: int = 28,
    **options: Any,
) -> Network:
    """The network of MAML's Omniglot experiments, for ``size`` × ``size`` images.

    ``head_std`` is the standard deviation of the head's initial weights; ``options`` are others of
    ``models.Conv4``.
    """
    example = jnp.zeros((1, size, size, 1))
    network = models.Conv4(
        n_way, features=features, head_init=nn.initializers.normal(head_std), **options
    )
    params, apply = metajax.from_linen(network, key, example)
    by_support = network.copy(norm="support")  # which has the same parameters

    def apply_with(params: Params, images: jax.Array, **options: Any) -> Any:
        return by_support.apply({"params": params}, images, **options)

    return Network(params, apply, apply_with)


def inner_options(network: Network, *, transductive: bool = True) -> dict[str, Any]:
    """The loss of a network and what MAML's Omniglot experiments ask of a learner by gradients.

    All but the normalisation's shift and scale adapts.

    Args:
        network: from ``conv4``.
        transductive: whether a query batch is normalised with its own statistics; if not, with the
            support set's.
    """
    return {
        "loss_fn": losses.cross_entropy(network.apply),
        "trainable": models.adapts_in_maml,
        "outer_loss": None
        if transductive
        else losses.cross_entropy_given_support(network.apply_with),
    }
