"""Networks of image classifiers, and what they give a learner by gradients."""

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
    """An image classifier, with its two ways to normalise.

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
    module = models.Conv4(
        n_way, features=features, head_init=nn.initializers.normal(head_std), **options
    )
    return network_of(module, key, (size, size, 1))


def network_of(
    module: models.Conv4 | models.ResNet12, key: jax.Array, shape: tuple[int, int, int]
) -> Network:
    """A module's network for images of one shape."""
    params, apply = metajax.from_linen(module, key, jnp.zeros((1, *shape)))
    by_support = module.copy(norm="support")  # which has the same parameters

    def apply_with(params: Params, images: jax.Array, **options: Any) -> Any:
        return by_support.apply({"params": params}, images, **options)

    return Network(params, apply, metajax.masked(apply_with))


def inner_options(network: Network, *, transductive: bool = True) -> dict[str, Any]:
    """The loss of a network and what MAML's experiments ask of a learner by gradients.

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
