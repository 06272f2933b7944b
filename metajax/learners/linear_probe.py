"""A linear probe: logistic regression on the embeddings of the support set."""

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.learners.base import Learner
from metajax.learners.metric import Embed, Support, metric_learner
from metajax.losses import lowest
from metajax.types import Params


def logistic_regression(
    features: jax.Array, members: jax.Array, penalty: float = 1.0, steps: int = 100
) -> jax.Array:
    """The weights W that minimise Σ cross-entropy(features W, class) + penalty/2 ||W||².

    Each step goes to the minimum of a quadratic function that lies above the loss and touches it,
    so the loss falls in each. Its matrix, ½ XXᵀ + penalty I, is the same in all steps: one
    factorisation of a matrix as large as there are examples serves them.

    Args:
        features: ``[examples, d]``; rows of padding are zero.
        members: one-hot classes, ``[examples, k]``; rows of padding are zero.
        penalty: a positive number; scikit-learn's 1/C.
        steps: how many.

    Returns:
        ``[d, k]``.

    Example:
        >>> logistic_regression(jnp.eye(2), jnp.eye(2)).round(3)  # the other class's probability
        Array([[ 0.337, -0.337],
               [-0.337,  0.337]], dtype=float32)

    Source: Böhning 1992, "Multinomial logistic regression algorithm" (Annals of the Institute of
    Statistical Mathematics 44), with the simpler bound ½ I of the class covariance.
    """
    dtype = features.dtype
    x, y = (each.astype(jnp.promote_types(dtype, jnp.float32)) for each in (features, members))
    gram, known = x @ x.T, y.sum(axis=1, keepdims=True)
    absent = jnp.where(y.any(axis=0), 0, lowest(x.dtype))  # a class without examples is none
    factor = jax.scipy.linalg.cho_factor(gram / 2 + penalty * jnp.eye(len(x), dtype=x.dtype))

    def step(_, dual: jax.Array) -> jax.Array:
        residual = jax.nn.softmax(gram @ dual + absent, axis=-1) * known - y
        return dual - jax.scipy.linalg.cho_solve(factor, residual + penalty * dual)

    return (x.T @ jax.lax.fori_loop(0, steps, step, jnp.zeros_like(y))).astype(dtype)


def linear_probe(
    embed: Embed, *, n_way: int, penalty: float = 1.0, normalise: bool = True, steps: int = 100
) -> Learner:
    """A linear probe: logistic regression on the support set's embeddings decides on the queries.

    The network doesn't adapt. So it is the test of what a network's features are worth, however it
    was trained: as a classifier of all training classes, as in "RFS", or by episodes.

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``; as for
            ``metajax.prototypical``.
        n_way: classes of an episode, at least 2.
        penalty: of the squared weights; see ``logistic_regression``. The bias is the weight of a
            feature that is 1, and has the same penalty.
        normalise: whether features are divided by their length.
        steps: of the regression.

    Returns:
        A ``Learner`` whose meta-parameters are the network's parameters. Adaptation remembers the
        support set; support and query are embedded in one pass.

    Raises:
        ArgumentError: if ``n_way`` is less than 2, or ``penalty`` or ``steps`` isn't positive; when
            run, if the features aren't vectors.

    Example:
        >>> import metajax
        >>> learner = metajax.linear_probe(lambda w, x: x * w, n_way=2)
        >>> support = metajax.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> adapted, _ = learner.adapt(jnp.array(3.0), support)
        >>> _, metrics = learner.loss(adapted, metajax.Episode(support, support))
        >>> float(metrics["accuracy"])
        1.0

    Source: Tian et al. 2020, "Rethinking Few-Shot Image Classification: a Good Embedding Is All You
    Need?" (arXiv 2003.11539).
    """
    _checks.at_least("n_way", n_way, 2)
    penalty = _checks.positive_float("penalty", penalty)
    steps = _checks.positive_int("steps", steps)

    def with_bias(features: jax.Array) -> jax.Array:
        if normalise:
            squares = jnp.square(features).sum(axis=-1, keepdims=True)
            features = features * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
        return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=-1)

    def score(params: Params, support: Support, query: jax.Array) -> jax.Array:
        del params
        _checks.one_width("embed", support.features, query)
        rows = with_bias(support.features) * support.weights[:, None]
        return with_bias(query) @ logistic_regression(rows, support.members, penalty, steps)

    return metric_learner(embed, score, n_way=n_way)
