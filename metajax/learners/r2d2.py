"""R2-D2: the classifier is a ridge regression on the embeddings, solved in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from metajax import _checks
from metajax.learners.base import Learner
from metajax.learners.metric import Embed, Support, metric_learner
from metajax.types import Params


class R2D2Params(NamedTuple):
    """The meta-parameters of R2-D2.

    Attributes:
        params: the network's parameters.
        log_lambda: logarithm of the ridge penalty, a scalar.
        scale: what the regression's outputs are multiplied by, a scalar.
        bias: what is added to them, a scalar.
    """

    params: Params
    log_lambda: jax.Array
    scale: jax.Array
    bias: jax.Array


def ridge(features: jax.Array, targets: jax.Array, penalty: jax.Array) -> jax.Array:
    """The weights W that minimise ||features W − targets||² + penalty ||W||².

    Solved in the smaller of the two spaces: Xᵀ(XXᵀ + λI)⁻¹Y (Woodbury) where there are fewer
    examples than features, else (XᵀX + λI)⁻¹XᵀY.

    Args:
        features: ``[examples, d]``.
        targets: ``[examples, k]``.
        penalty: λ, a positive scalar.

    Returns:
        ``[d, k]``.

    Raises:
        ArgumentError: if ``penalty`` isn't positive. One that is traced has no value yet, and is
            not checked.

    Example:
        >>> ridge(jnp.eye(2), jnp.array([[2.0], [4.0]]), jnp.array(1.0)).round(3)
        Array([[1.],
               [2.]], dtype=float32)
    """
    if not isinstance(penalty, Tracer):
        penalty = jnp.asarray(_checks.positive_float("penalty", penalty))
    examples, d = features.shape
    dtype = features.dtype
    # There is no solver in half precision.
    features, targets, penalty = (
        x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (features, targets, penalty)
    )
    if examples <= d:
        gram = features @ features.T + penalty * jnp.eye(examples, dtype=features.dtype)
        weights = features.T @ jax.scipy.linalg.solve(gram, targets, assume_a="pos")
    else:
        gram = features.T @ features + penalty * jnp.eye(d, dtype=features.dtype)
        weights = jax.scipy.linalg.solve(gram, features.T @ targets, assume_a="pos")
    return weights.astype(dtype)


def r2d2(embed: Embed, *, n_way: int, penalty: float = 1.0, scale: float = 1.0) -> Learner:
    """R2-D2: W = Xᵀ(XXᵀ + λI)⁻¹Y on the support set, logits α · f(x) W + β; λ, α, β learned.

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``; as for
            ``metajax.prototypical``.
        n_way: classes of an episode, at least 2.
        penalty: the initial λ; its logarithm is learned, so that it stays positive.
        scale: the initial α. The regression's outputs are near 0 and 1, too close together for a
            softmax of many classes to be sure.

    Returns:
        A ``Learner`` whose meta-parameters are an ``R2D2Params``. Adaptation remembers the support
        set; support and query are embedded in one pass.

    Raises:
        ArgumentError: if ``n_way`` is less than 2, or ``penalty`` or ``scale`` isn't positive; when
            run, if the features aren't vectors.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> learner = metajax.r2d2(lambda w, x: x * w, n_way=2)
        >>> support = metajax.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> adapted, _ = learner.adapt(learner.init(jnp.array(1.0)), support)
        >>> loss, _ = learner.loss(adapted, metajax.Episode(support, support))
        >>> round(float(loss), 4)  # logits 1/2 and 0
        0.4741

    Source: Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers"
    (arXiv 1805.08136), equations 4 to 7.
    """
    _checks.at_least("n_way", n_way, 2)
    penalty = _checks.positive_float("penalty", penalty)
    scale = _checks.positive_float("scale", scale)

    def init(params):
        dtype = jnp.result_type(*jax.tree.leaves(params))
        one = jnp.ones((), dtype)
        return R2D2Params(params, jnp.log(penalty) * one, scale * one, 0 * one)

    def score(meta_params: R2D2Params, support: Support, query: jax.Array) -> jax.Array:
        _checks.one_width("embed", support.features, query)
        # A padded row of zeros is fitted exactly, and changes nothing.
        rows = support.features * support.weights[:, None]
        weights = ridge(rows, support.members, jnp.exp(meta_params.log_lambda))
        return meta_params.scale * (query @ weights) + meta_params.bias

    return metric_learner(
        embed, score, n_way=n_way, init=init, network=lambda meta_params: meta_params.params
    )
