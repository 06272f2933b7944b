"""Matching Networks: attention over the support set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import _checks, masks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.learners.base import Learner
from metajax.learners.metric import Embed, cosine_similarities, metric_learner
from metajax.losses import lowest
from metajax.types import Params

FullContext = Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""``full_context(params, support_features, query_features)`` returns both, each embedded again in
the light of the support set. Marked by ``metajax.masked``, it takes the support set's mask."""


def matching(
    embed: Embed, *, n_way: int, full_context: FullContext | None = None, scale: float = 1.0
) -> Learner:
    """Matching Networks: p(y | x) = Σ_i a(x, x_i) [y_i = y], where a is the softmax over the
    support set of scale · cos(f(x), g(x_i)).

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``; as for
            ``metajax.prototypical``.
        n_way: classes of an episode, at least 2.
        full_context: full-context embeddings, such as ``metajax.models.FullContext`` applied to a
            part of ``params``; none if None.
        scale: what the cosine is multiplied by; the paper's is 1.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters that ``embed`` and ``full_context``
        are given.

    Raises:
        ArgumentError: if ``n_way`` or ``scale`` isn't positive; when run, if the features that are
            compared aren't vectors of one width, or ``full_context`` returns more or fewer.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> learner = metajax.matching(lambda w, x: x * w, n_way=2)
        >>> support = metajax.Batch(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))
        >>> query = metajax.Batch(jnp.array([[3.0, 0.0]]), jnp.array([0]))
        >>> adapted, _ = learner.adapt(jnp.array(1.0), support)
        >>> loss, _ = learner.loss(adapted, metajax.Episode(support, query))
        >>> round(float(loss), 4)  # ln(1 + 1/e): the cosines are 1 and 0
        0.3133

    Source: Vinyals et al. 2016, "Matching Networks for One Shot Learning" (arXiv 1606.04080),
    equations 1 and 2; section 2.1.2 for full-context embeddings.
    """
    _checks.at_least("n_way", n_way, 2)
    scale = _checks.positive_float("scale", scale)

    def score(params, support, query):
        features, name = support.features, "embed"
        examples = features.shape[0], query.shape[0]
        if full_context is not None:
            name = "full_context"
            both = full_context(
                params, features, query, **masks._option(full_context, support.mask)
            )
            if not isinstance(both, tuple) or len(both) != 2:
                raise ArgumentTypeError(
                    "full_context must return a pair of features, of support and query, got "
                    f"{type(both).__name__}."
                )
            features, query = both
        _checks.one_width(name, features, query)
        if (features.shape[0], query.shape[0]) != examples:
            raise ArgumentError(
                f"{name} must return features of {examples[0]} support and {examples[1]} query "
                f"examples, got shapes {features.shape} and {query.shape}."
            )
        similarities = scale * cosine_similarities(query, features)
        never = lowest(similarities.dtype)
        similarities = jnp.where(support.weights > 0, similarities, never)
        # log Σ over a class of the attention, stably.
        attention = jax.nn.log_softmax(similarities, axis=-1)
        inside = jnp.where(support.members.T > 0, attention[:, None], never)
        return jax.nn.logsumexp(inside, axis=-1)

    return metric_learner(embed, score, n_way=n_way)
