"""Prototypical Networks: a class is the mean of its support examples' embeddings."""

from typing import Literal

from metajax import _checks
from metajax.learners.base import Learner
from metajax.learners.metric import (
    Embed,
    class_means,
    cosine_similarities,
    metric_learner,
    squared_distances,
)

Distance = Literal["euclidean", "cosine"]


def prototypical(
    embed: Embed, *, n_way: int, distance: Distance = "euclidean", scale: float = 1.0
) -> Learner:
    """Prototypical Networks: p(class c | x) ∝ exp(−scale · d(f(x), mean of f over c's support)).

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``; where it returns a pair
            of them and a dict of changed Flax collections, these are reported among the metrics,
            for ``meta_trainer(carry=metajax.carry_statistics)``.
        n_way: classes of an episode, at least 2.
        distance: ``"euclidean"``, squared, as in the paper's results, or ``"cosine"``, one minus
            the cosine (a zero vector's cosine is 0).
        scale: what the distance is multiplied by; the paper's is 1.

    Returns:
        A ``Learner`` whose meta-parameters are the network's parameters. Adaptation remembers the
        support set; support and query are embedded in one pass.

    Raises:
        ArgumentError: if ``n_way`` or ``scale`` isn't positive, or the distance has another name;
            when run, if the features aren't vectors.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> learner = metajax.prototypical(lambda w, x: x * w, n_way=2)
        >>> support = metajax.Batch(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]))
        >>> query = metajax.Batch(jnp.array([[1.0]]), jnp.array([0]))
        >>> adapted, _ = learner.adapt(jnp.array(0.5), support)
        >>> loss, metrics = learner.loss(adapted, metajax.Episode(support, query))
        >>> round(float(loss), 4), float(metrics["accuracy"])  # distances 0.25 and 2.25
        (0.1269, 1.0)

    Source: Snell et al. 2017, "Prototypical Networks for Few-shot Learning" (arXiv 1703.05175),
    equations 1 and 2.
    """
    _checks.at_least("n_way", n_way, 2)
    _checks.one_of("distance", distance, ("euclidean", "cosine"))
    scale = _checks.positive_float("scale", scale)

    def score(params, support, query):
        del params
        _checks.one_width("embed", support.features, query)
        prototypes = class_means(support)
        if distance == "cosine":
            return scale * (cosine_similarities(query, prototypes) - 1)
        return -scale * squared_distances(query, prototypes)

    return metric_learner(embed, score, n_way=n_way)
