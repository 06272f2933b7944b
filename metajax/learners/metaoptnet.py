"""MetaOptNet: the classifier is a multi-class support vector machine on the embeddings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.learners.base import Learner
from metajax.learners.metric import Embed, Support, metric_learner
from metajax.losses import lowest
from metajax.types import Params


class MetaOptNetParams(NamedTuple):
    """The meta-parameters of MetaOptNet.

    Attributes:
        params: the network's parameters.
        scale: what the machine's scores are multiplied by, a scalar.
    """

    params: Params
    scale: jax.Array


def svm_dual(
    kernel: jax.Array, one_hot: jax.Array, *, regularisation: float, iterations: int
) -> jax.Array:
    """The dual variables of Crammer and Singer's multi-class support vector machine.

    They minimise ½ tr(Aᵀ K A) − ⟨A, Y⟩ over A ``[examples, n_way]`` with A ≤ C · Y and rows that
    sum to 0, by projected gradient descent with Nesterov's momentum. Each row's projection is one
    onto a simplex, so every iteration is differentiable almost everywhere.

    Args:
        kernel: K, ``[examples, examples]``.
        one_hot: Y, ``[examples, n_way]``; a row of zeros for padding, a column of zeros for a class
            that isn't there.
        regularisation: C, positive.
        iterations: how many.

    Raises:
        ArgumentError: if ``regularisation`` or ``iterations`` isn't positive.

    Example:
        >>> svm_dual(jnp.eye(2), jnp.eye(2), regularisation=1.0, iterations=20).round(3)
        Array([[ 0.5, -0.5],
               [-0.5,  0.5]], dtype=float32)
    """
    regularisation = _checks.positive_float("regularisation", regularisation)
    iterations = _checks.positive_int("iterations", iterations)
    dtype = kernel.dtype
    kernel, one_hot = (x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (kernel, one_hot))
    # The largest eigenvalue is at most the trace, and the largest row sum of magnitudes.
    bound = jnp.minimum(jnp.trace(kernel), jnp.abs(kernel).sum(axis=1).max())
    rate = 1 / jax.lax.stop_gradient(jnp.maximum(bound, jnp.finfo(kernel.dtype).tiny))
    # Neither padded examples nor classes without examples take part.
    real = (one_hot.sum(axis=1, keepdims=True) > 0) & (one_hot.sum(axis=0) > 0)
    ceiling = regularisation * one_hot
    simplex = jax.vmap(lambda row: optax.projections.projection_simplex(row, regularisation))

    def project(dual):
        slack = simplex(jnp.where(real, ceiling - dual, lowest(kernel.dtype)))
        return jnp.where(real, ceiling - slack, 0.0)

    def iterate(carry, index):
        dual, before = carry
        momentum = index / (index + 3)
        ahead = dual + momentum * (dual - before)
        return (project(ahead - rate * (kernel @ ahead - one_hot)), dual), None

    start = jnp.zeros_like(one_hot)
    indices = jnp.arange(iterations, dtype=kernel.dtype)
    (dual, _), _ = jax.lax.scan(iterate, (start, start), indices)
    return dual.astype(dtype)


def metaoptnet(
    embed: Embed, *, n_way: int, regularisation: float = 0.1, iterations: int = 50
) -> Learner:
    """MetaOptNet-SVM: logits scale · f(x) Wᵀ, where W is the support vector machine of the support
    set: W = Σ_i A_i f(x_i) with A from ``metajax.learners.svm_dual``.

    The paper solves the dual exactly and differentiates the optimum implicitly; here a fixed number
    of projected gradient steps is differentiated, which needs no solver beside Optax's projections.

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``; as for
            ``metajax.prototypical``.
        n_way: classes of an episode, at least 2.
        regularisation: C; the paper's code takes 0.1.
        iterations: steps of the solver.

    Returns:
        A ``Learner`` whose meta-parameters are a ``MetaOptNetParams``.

    Raises:
        ArgumentError: if ``n_way`` is less than 2, or another argument isn't positive; when run, if
            the features aren't vectors.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> learner = metajax.metaoptnet(lambda w, x: x * w, n_way=2, regularisation=1.0)
        >>> support = metajax.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> adapted, _ = learner.adapt(learner.init(jnp.array(1.0)), support)
        >>> loss, _ = learner.loss(adapted, metajax.Episode(support, support))
        >>> round(float(loss), 4)  # logits 1/2 and -1/2
        0.3133

    Source: Lee et al. 2019, "Meta-Learning with Differentiable Convex Optimization"
    (arXiv 1904.03758), equations 5 to 8.
    """
    _checks.at_least("n_way", n_way, 2)
    regularisation = _checks.positive_float("regularisation", regularisation)
    iterations = _checks.positive_int("iterations", iterations)

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return MetaOptNetParams(params, jnp.ones((), dtype))

    def score(meta_params: MetaOptNetParams, support: Support, query: jax.Array) -> jax.Array:
        _checks.one_width("embed", support.features, query)
        rows = support.features * support.weights[:, None]
        dual = svm_dual(
            rows @ rows.T, support.members, regularisation=regularisation, iterations=iterations
        )
        return meta_params.scale * (query @ (rows.T @ dual))

    return metric_learner(
        embed, score, n_way=n_way, init=init, network=lambda meta_params: meta_params.params
    )
