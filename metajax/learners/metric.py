"""What metric-based learners share: comparing a query's embedding with the support set's."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax import _checks, keys, losses, masks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.learners.base import Learner, nothing_learned
from metajax.types import Episode, MaskedBatch, Metrics, Params, PyTree

Embed = Callable[..., Any]
"""``embed(params, inputs) -> features [examples, ...]``, or a pair of them and a dict of changed
Flax collections (running statistics), which are reported for ``carry_statistics``. Marked by
``metajax.keyed``, ``embed(params, inputs, key)``; by ``metajax.masked``, it takes ``mask=``."""


class Remembered(NamedTuple):
    """The result of a metric-based learner's adaptation: it remembers the support set.

    Attributes:
        params: the meta-parameters, unchanged.
        support: the support set.
    """

    params: Params
    support: PyTree


class Support(NamedTuple):
    """The embedded support set.

    Attributes:
        features: ``[examples, ...]``.
        targets: int32 ``[examples]``.
        weights: 1 for an example, 0 for padding, ``[examples]`` of the features' type.
        members: one-hot targets times weights, ``[examples, n_way]``.
        mask: ``[examples]``, True for an example; None if all are.
    """

    features: jax.Array
    targets: jax.Array
    weights: jax.Array
    members: jax.Array
    mask: jax.Array | None

    @classmethod
    def of(cls, features: jax.Array, support: PyTree, n_way: int) -> "Support":
        """The features of a support set, with what its targets and mask say of them."""
        _, targets, mask, _ = losses.as_masked(support)
        if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ArgumentError(
                f"support targets must be integer class indices [examples], got {targets.dtype} of "
                f"shape {targets.shape}."
            )
        weights = jnp.ones(len(targets)) if mask is None else mask
        weights = weights.astype(features.dtype)
        one_hot = jax.nn.one_hot(targets, n_way, dtype=features.dtype)
        return cls(features, targets, weights, one_hot * weights[:, None], mask)

    @property
    def counts(self) -> jax.Array:
        """How many examples each class has, ``[n_way]``."""
        return self.members.sum(axis=0)


Score = Callable[[Params, Support, jax.Array], Any]
"""``score(meta_params, support, query_features)`` returns logits ``[queries, n_way]``, or a pair of
them and a dict of changed collections, as ``Embed``. Marked by ``metajax.masked``, it takes the
queries' mask."""

Outcome = Callable[..., tuple[jax.Array, Metrics]]
"""``outcome(logits, targets, mask, classes) -> (loss, metrics)``, as
``losses.classification_outcome``; the last two may be None."""


def metric_learner(
    embed: Embed,
    score: Score,
    *,
    n_way: int,
    init: Callable[[Params], Params] = lambda params: params,
    network: Callable[[Params], Params] = lambda params: params,
    outcome: Outcome = losses.classification_outcome,
) -> Learner:
    """A learner whose only adaptation is to remember the support set.

    Support and query go through the network in one pass, as in the published code of Prototypical
    Networks: where it normalises by the batch, by the statistics of both.

    Args:
        embed: the network; see ``Embed``.
        score: compares queries with the support set. A class without support examples is never
            chosen, whatever its score.
        n_way: classes of an episode, those that are only padding among them.
        init: makes the meta-parameters from the network's parameters.
        network: takes the network's parameters out of the meta-parameters.
        outcome: the loss.

    Returns:
        A ``Learner``; its adapted parameters are a ``Remembered``. It is keyed if ``embed`` is.

    Raises:
        ArgumentError: when run, if ``embed`` returns no features, or the inputs of the two sets
            have examples of other shapes.

    Example:
        >>> import metajax
        >>> def score(params, support, query):  # nearest class mean
        ...     return -squared_distances(query, class_means(support))
        >>> learner = metric_learner(lambda w, x: x * w, score, n_way=2)
        >>> support = metajax.Batch(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]))
        >>> adapted, _ = learner.adapt(jnp.array(1.0), support)
        >>> learner.predict(adapted, support, jnp.array([[1.0]])).tolist()
        [[-1.0, -9.0]]
    """

    def adapt(params, support, *, observe=None, key=None):
        del key
        adapted = Remembered(params, support)
        return adapted, nothing_learned(adapted, observe)

    def compare(adapted: Remembered, query: MaskedBatch, key: jax.Array | None):
        """The logits of queries, whether each class has examples, and changed collections."""
        known = losses.as_masked(adapted.support)
        _checks.one_shape(known.inputs, query.inputs)
        both, mask = jnp.concatenate([known.inputs, query.inputs]), masks._joined(known, query)
        output = keys._call("embed", embed, key, network(adapted.params), both, mask=mask)
        features, changed = _features(output, both.shape[0])
        shots = len(known.inputs)
        halves = _rows(features, 0, shots), _rows(features, shots, both.shape[0])
        support = Support.of(halves[0], known, n_way)
        compared = score(adapted.params, support, halves[1], **masks._option(score, query.mask))
        logits, changed_too = _with_changes("score", compared)
        sound = losses.check_labels("support targets", support.targets, n_way, support.mask)
        if sound is not None:
            logits = logits * sound.prod().astype(logits.dtype)
        return logits, support.counts > 0, _merged(changed, changed_too)

    def loss(adapted: Remembered, episode: Episode) -> tuple[jax.Array, Metrics]:
        query = losses.as_masked(episode.query)
        logits, classes, changed = compare(adapted, query, keys.query_key(episode))
        value, metrics = outcome(logits, query.targets, query.mask, classes)
        return value, {**metrics, **changed}

    def predict(adapted: Remembered, support: PyTree, inputs: Any, *, key=None) -> jax.Array:
        del support  # it is remembered
        query = MaskedBatch(inputs, jnp.zeros(inputs.shape[0], jnp.int32))
        logits, classes, _ = compare(adapted, query, key)
        return jnp.where(classes, logits, losses.lowest(logits.dtype))

    return Learner(init, adapt, loss, predict=predict, keyed=keys.is_keyed(embed))


def _rows(features: jax.Array, start: int, end: int) -> jax.Array:
    """``features[start:end]``, whose gradient is written row by row.

    The gradient of a slice is padded. On a CPU, jaxlib 0.10.2 fuses the sum of two of them with the
    product of the class means' gradient. With large operands (60 classes, 600 examples) this kernel
    reads beyond them, and the process ends.
    """
    return features.at[jnp.arange(start, end)].get(
        indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )


def _features(output: Any, examples: int) -> tuple[jax.Array, Metrics]:
    """Features and changed collections of what ``embed`` returned."""
    features, changed = _with_changes("embed", output)
    if features.ndim < 2 or features.shape[0] != examples:
        raise ArgumentError(
            f"embed must return features [examples, ...] of {examples} examples, got shape "
            f"{features.shape}."
        )
    return features, dict(changed)


def _with_changes(name: str, output: Any) -> tuple[Any, Any]:
    """What a network returned, and the collections that it changed."""
    if not isinstance(output, tuple):
        return output, {}
    if len(output) != 2 or not isinstance(output[1], Mapping):
        raise ArgumentTypeError(
            f"{name} must return an array, or a pair of it and a dict of changed collections, got "
            f"{_checks.shown(output)}."
        )
    return output


def _merged(first: Any, second: Any) -> dict[str, Any]:
    """Two nested dicts as one; where both have a leaf, the second's.

    Example:
        >>> _merged({"batch_stats": {"body": 1}}, {"batch_stats": {"head": 2}})
        {'batch_stats': {'body': 1, 'head': 2}}
    """
    both = dict(first)
    for key, value in second.items():
        inner = key in both and isinstance(both[key], Mapping) and isinstance(value, Mapping)
        both[key] = _merged(both[key], value) if inner else value
    return both


def class_means(support: Support) -> jax.Array:
    """The mean features of each class, ``[n_way, ...]``; zero for a class without examples.

    Example:
        >>> import metajax
        >>> batch = metajax.Batch(jnp.zeros((3, 1)), jnp.array([0, 0, 1]))
        >>> class_means(Support.of(jnp.array([[1.0], [3.0], [5.0]]), batch, 2)).tolist()
        [[2.0], [5.0]]
    """
    counts = jnp.maximum(support.counts, 1)
    sums = jnp.tensordot(support.members, support.features, axes=(0, 0))
    return sums / counts.reshape(-1, *(1,) * (sums.ndim - 1))


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared Euclidean distances ``[n, m]`` of the rows of ``a [n, d]`` and ``b [m, d]``.

    Example:
        >>> squared_distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]))
        Array([[25.]], dtype=float32)
    """
    return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)


def cosine_similarities(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines ``[n, m]`` between the rows of ``a [n, d]`` and ``b [m, d]``.

    The cosine with a zero vector is 0, and its derivative finite.

    Example:
        >>> cosine_similarities(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[2.0, 0.0]]))
        Array([[1.],
               [0.]], dtype=float32)
    """

    def unit(x):
        # Squares in half precision would leave its range, and so would the floor.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        floor = max(1e-12, float(jnp.finfo(x.dtype).tiny))
        square = jnp.sum(wide * wide, axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(jnp.maximum(square, floor))).astype(x.dtype)

    return unit(a) @ unit(b).T


def carry_statistics(params: Params, metrics: Metrics) -> tuple[Params, Metrics]:
    """For ``meta_trainer(carry=...)``: running statistics from the metrics into the parameters.

    For parameters that are a dict of Flax collections, or a named tuple with such ``params``, and a
    loss that reports ``batch_stats`` among its metrics, where the trainer has averaged them over
    the tasks.

    Raises:
        ArgumentError: parameters or metrics without such collections.

    Example:
        >>> carry_statistics({"params": 1, "batch_stats": 0}, {"loss": 0.5, "batch_stats": 2})
        ({'params': 1, 'batch_stats': 2}, {'loss': 0.5})
    """
    if hasattr(params, "_replace"):
        inner, metrics = carry_statistics(params.params, metrics)
        return params._replace(params=inner), metrics
    if not isinstance(params, Mapping) or "batch_stats" not in metrics:
        raise ArgumentError(
            "carry_statistics needs parameters that are a dict of Flax collections and metrics "
            f"with 'batch_stats', got {type(params).__name__} and metrics {sorted(metrics)}."
        )
    metrics = dict(metrics)
    return {**params, "batch_stats": metrics.pop("batch_stats")}, metrics
