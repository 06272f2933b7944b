"""Optimizers for a transformer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from metajax.types import Params


def muon(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Muon for the matrices of a ``Transformer``'s blocks, Adam for the rest, both at this rate.

    The momentum of a matrix is replaced by the nearest orthogonal one, scaled to the size of an
    Adam update. Embedding, head, norms and biases are Adam's, as usual, with a second moment that
    forgets as 0.99: batches of text are small here.

    Args:
        rate: learning rate, or its schedule.

    Returns:
        The optimizer, for parameters whose blocks are stacked or not.

    Example:
        >>> from metajax.models import Transformer, TransformerConfig
        >>> config = TransformerConfig.llama(vocab_size=8, width=8, n_layers=2, n_heads=2)
        >>> init = jax.jit(Transformer(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> gradient = jax.tree.map(jnp.ones_like, params)
        >>> optimizer = muon(1e-2)
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> updates["blocks"]["mlp"]["up"]["kernel"].shape
        (2, 8, 32)

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the
    scale, Liu et al. 2025 (arXiv 2502.16982), section 2.2.
    """

    def dimension_numbers(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(_in_and_out, params)

    return optax.contrib.muon(
        rate, consistent_rms=0.2, adam_b2=0.99, muon_weight_dimension_numbers=dimension_numbers
    )


def _in_and_out(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a block's matrix are in and out; axes before these are of layers."""
    if not path[0].key.startswith("block") or path[-1].key != "kernel":
        return None
    axes = jnp.ndim(leaf)
    return optax.contrib.MuonDimensionNumbers(axes - 2, axes - 1)
