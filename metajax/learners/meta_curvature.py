"""Meta-Curvature: the inner gradient passes through learned matrices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import trees
from metajax.learners._learned_rates import learner_of_rates
from metajax.learners.base import Learner, OuterLoss
from metajax.modes import GradientMode
from metajax.types import LossFn, Params, PyTree


class MetaCurvatureParams(NamedTuple):
    """The meta-parameters of Meta-Curvature.

    Attributes:
        params: the initialisation.
        curvature: for every leaf that adapts, a tuple of square matrices, one an axis; None at the
            leaves that don't. A convolution's height and width are one axis.
    """

    params: Params
    curvature: PyTree


def _axes(leaf: jax.Array) -> tuple[int, ...]:
    """The sizes of the axes that have a matrix each."""
    if leaf.ndim > 2:
        return (leaf.size // (leaf.shape[-2] * leaf.shape[-1]), *leaf.shape[-2:])
    return leaf.shape or (1,)


def _transform(matrices: tuple[jax.Array, ...], gradient: jax.Array) -> jax.Array:
    """The gradient times a matrix along each of its axes."""
    outcome = gradient.reshape([len(matrix) for matrix in matrices])
    for axis, matrix in enumerate(matrices):
        outcome = jnp.moveaxis(jnp.tensordot(matrix, outcome, axes=(1, axis)), 0, axis)
    return outcome.reshape(gradient.shape)


def meta_curvature(
    loss_fn: LossFn,
    *,
    learning_rate: float,
    steps: int,
    mode: GradientMode | None = None,
    trainable: trees.Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
    predict: Callable[..., Any] | None = None,
) -> Learner:
    """Meta-Curvature: θ' = θ − α · MC(∇L_support(θ)), with MC(G) = G ×₁ M_o ×₂ M_i ×₃ M_f.

    The matrices along the outputs, the inputs and the filter's positions start as the identity and
    are learned with θ.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        learning_rate: α.
        steps: how many inner steps.
        mode: how to differentiate through them; see ``metajax.adapt``.
        trainable: which leaves adapt; see ``metajax.adapt``.
        outer_loss: as in ``metajax.maml``.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.
        predict: ``predict(params, inputs)``, the network; see ``metajax.maml``.

    Returns:
        A ``Learner`` whose meta-parameters are a ``MetaCurvatureParams``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer or ``learning_rate`` isn't positive.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> learner = metajax.meta_curvature(loss_fn, learning_rate=0.25, steps=1)
        >>> meta_params = learner.init(jnp.zeros(2))
        >>> learner.adapt(meta_params, jnp.array([1.0, 2.0]))[0].params
        Array([0.5, 1. ], dtype=float32)

    Source: Park and Oliva 2019, "Meta-Curvature" (arXiv 1902.03356), equations 8 to 10.
    """

    def descent(curvature: PyTree) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            del params
            leaves, treedef = jax.tree.flatten(updates)
            matrices = treedef.flatten_up_to(curvature)
            transformed = [
                -learning_rate * _transform(of_leaf, leaf)
                for of_leaf, leaf in zip(matrices, leaves, strict=True)
            ]
            return treedef.unflatten(transformed), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    return learner_of_rates(
        MetaCurvatureParams,
        loss_fn,
        first=lambda leaf: tuple(jnp.eye(n, dtype=leaf.dtype) for n in _axes(leaf)),
        descent=descent,
        learning_rate=learning_rate,
        steps=steps,
        mode=mode,
        trainable=trainable,
        outer_loss=outer_loss,
        select=select,
        predict=predict,
    )
