"""Relation Networks: the comparison is learned too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import _checks, _marks, losses, masks
from metajax.errors import ArgumentError
from metajax.learners.base import Learner
from metajax.learners.metric import Embed, _with_changes, metric_learner
from metajax.types import Metrics, Params

Relate = Callable[[Params, jax.Array], Any]
"""``relate(params, pairs [n, ..., 2 · channels])`` returns relations ``[n]`` between 0 and 1, or a
pair of them and a dict of changed collections, as ``Embed``. Marked by ``metajax.masked``, it takes
``mask=`` of the pairs, False where the query or the class is padding."""


def relation(embed: Embed, relate: Relate, *, n_way: int) -> Learner:
    """Relation Networks: r_{c,x} = g([Σ f over c's support, f(x)]), trained to be [y = c].

    The sum of a class's feature maps and the query's lie side by side along the channels. The loss
    is the mean squared error of all relations.

    Args:
        embed: ``embed(params, inputs)`` returns feature maps ``[examples, ..., channels]``; as for
            ``metajax.prototypical``.
        relate: ``relate(params, pairs)`` of pairs ``[n, ..., 2 · channels]`` returns ``[n]``, such
            as ``metajax.models.RelationHead`` applied to a part of ``params``; or a pair of them
            and the collections it changed, merged with those of ``embed``.
        n_way: classes of an episode, at least 2.

    Returns:
        A ``Learner`` whose meta-parameters are the parameters that ``embed`` and ``relate`` are
        given.

    Raises:
        ArgumentError: if ``n_way`` is less than 2; when run, if ``relate`` returns another shape.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> near = lambda w, pairs: jnp.exp(-((pairs[:, 0] - pairs[:, 1]) ** 2))
        >>> learner = metajax.relation(lambda w, x: x * w, near, n_way=2)
        >>> support = metajax.Batch(jnp.array([[0.0], [9.0]]), jnp.array([0, 1]))
        >>> query = metajax.Batch(jnp.array([[0.0]]), jnp.array([0]))
        >>> adapted, _ = learner.adapt(jnp.array(1.0), support)
        >>> loss, _ = learner.loss(adapted, metajax.Episode(support, query))
        >>> round(float(loss), 4)  # relations 1 and e^-81
        0.0

    Source: Sung et al. 2018, "Learning to Compare: Relation Network for Few-Shot Learning"
    (arXiv 1711.06025), equations 1 to 3.
    """
    _checks.at_least("n_way", n_way, 2)

    def score(params, support, query, mask=None):
        sums = jnp.tensordot(support.members, support.features, axes=(0, 0))
        examples = query.shape[0]
        shape = (examples, n_way, *query.shape[1:])
        pairs = jnp.concatenate(
            [jnp.broadcast_to(sums[None], shape), jnp.broadcast_to(query[:, None], shape)], axis=-1
        )
        if mask is not None:
            mask = (mask[:, None] & (support.counts > 0)).reshape(-1)
        options = masks._option(relate, mask)
        output = relate(params, pairs.reshape(-1, *pairs.shape[2:]), **options)
        relations, changed = _with_changes("relate", output)
        if relations.shape != (examples * n_way,):
            raise ArgumentError(
                f"relate must return a relation for each of {examples * n_way} pairs, got shape "
                f"{relations.shape}."
            )
        return relations.reshape(examples, n_way), changed

    def outcome(
        relations: jax.Array, targets: jax.Array, mask: jax.Array | None, classes: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        wanted = jax.nn.one_hot(targets, n_way, dtype=relations.dtype)
        weights = jnp.ones(len(targets)) if mask is None else mask
        counted = weights.astype(relations.dtype)[:, None] * classes
        loss = jnp.sum(counted * (relations - wanted) ** 2) / jnp.maximum(counted.sum(), 1)
        _, metrics = losses.classification_outcome(relations, targets, mask, classes)
        return loss, metrics

    return metric_learner(embed, _marks.like(relate, score), n_way=n_way, outcome=outcome)
