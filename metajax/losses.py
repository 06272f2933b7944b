"""Losses of one task's batch, built from a model's apply function."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from metajax import _checks, keys, masks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import Episode, MaskedBatch, Metrics, Params, PyTree

__all__ = [
    "Apply",
    "as_masked",
    "check_labels",
    "classification_outcome",
    "cross_entropy",
    "cross_entropy_given_support",
    "lowest",
    "mean_squared_error",
]

Apply = Callable[..., Any]
"""``apply(params, inputs) -> outputs``, as ``from_linen`` and ``from_nnx`` return it; or, marked by
``metajax.keyed``, ``apply(params, inputs, key)``; by ``metajax.masked``, it takes ``mask=``."""


def as_masked(batch: PyTree) -> MaskedBatch:
    """A ``Batch``, or a pair of inputs and targets, as a ``MaskedBatch``.

    Raises:
        ArgumentTypeError: if it is something else.
        ArgumentError: if there aren't as many inputs as targets, or the mask isn't ``[examples]``.

    Example:
        >>> as_masked((jnp.zeros(2), jnp.zeros(2, jnp.int32))).mask is None
        True
    """
    if not isinstance(batch, MaskedBatch):
        batch = MaskedBatch(*_pair(batch))
    inputs, targets, mask, classes = batch
    if not jnp.ndim(inputs) or not jnp.ndim(targets) or len(inputs) != len(targets):
        raise ArgumentError(
            "a batch must have as many inputs as targets, got inputs of shape "
            f"{jnp.shape(inputs)} and targets of shape {jnp.shape(targets)}."
        )
    if mask is not None and mask.shape != inputs.shape[:1]:
        raise ArgumentError(
            f"batch.mask must be [examples] = [{len(inputs)}], got shape {mask.shape}."
        )
    if classes is not None and classes.ndim != 1:
        raise ArgumentError(f"batch.classes must be [n_way], got shape {classes.shape}.")
    return batch


def _pair(batch: PyTree) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ArgumentTypeError(
            "a batch must be a Batch, a MaskedBatch or a pair (inputs, targets), got "
            f"{_checks.shown(batch)}."
        )
    return batch[0], batch[1]


def lowest(dtype: Any) -> float:
    """The logit of a class that can't be chosen; finite, so that no product with it is NaN.

    Example:
        >>> lowest(jnp.float32) < -1e37
        True
    """
    return float(jnp.finfo(dtype).min) / 8


def _check_logits(logits: jax.Array, targets: jax.Array) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ArgumentError(
            "cross_entropy needs logits [examples, classes] and targets [examples], got logits of "
            f"shape {logits.shape} and targets of shape {targets.shape}."
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ArgumentError(f"targets must be integer class indices, got {targets.dtype}.")


def check_labels(
    name: str,
    targets: Any,
    n_way: int,
    mask: Any = None,
) -> jax.Array | None:
    """Raises an ArgumentError if a target whose value is known isn't one of ``n_way`` classes.

    What is being traced, by ``jit`` or ``vmap``, isn't known yet.

    Args:
        name: what the error calls the targets.
        targets: integers ``[..., examples]``.
        n_way: how many classes there are.
        mask: ``[..., examples]``, True for the examples that count.

    Returns:
        None where the targets are known. Where they are traced, ``[..., examples]`` of 1, and NaN
        for those that are no class and count: what a loss is multiplied by.

    Example:
        >>> check_labels("targets", jnp.array([0, 4]), 5)
        >>> check_labels("targets", jnp.array([1, 5]), 5)
        Traceback (most recent call last):
        ...
        metajax.errors.ArgumentError: targets must be class indices from 0 to 4, got 5.
    """
    if any(isinstance(each, jax.core.Tracer) for each in (targets, mask)):
        wrong = (targets < 0) | (targets >= n_way)
        return jnp.where(wrong if mask is None else wrong & mask.astype(bool), jnp.nan, 1.0)
    labels = np.asarray(targets)
    real = np.ones(labels.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    wrong = real & ((labels < 0) | (labels >= n_way))
    if wrong.any():
        raise ArgumentError(
            f"{name} must be class indices from 0 to {n_way - 1}, got {labels[wrong][0]}."
        )
    return None


def classification_outcome(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    classes: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy in nats and accuracy of logits ``[examples, classes]``.

    With a mask ``[examples]`` the means are over the examples where it is true; with ``classes``
    ``[classes]``, only those where it is true take part.

    A target must be the index of a class, from 0 on. What isn't, -1 among others, is refused where
    the targets are known when the program is traced. Where they are traced too, it makes loss and
    gradient NaN, and counts as wrong. Padding may have any target.

    Raises:
        ArgumentError: shapes or types that don't fit each other, or a target that is no class.

    Example:
        >>> loss, metrics = classification_outcome(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> round(float(loss), 4), float(metrics["accuracy"])  # ln 4, and ties go to class 0
        (1.3863, 0.5)
    """
    _check_logits(logits, targets)
    sound = check_labels("targets", targets, logits.shape[1], mask)
    if classes is not None:
        if classes.shape != logits.shape[1:]:
            raise ArgumentError(
                f"batch.classes must be as many as the logits' classes, {logits.shape[1]}, got "
                f"shape {classes.shape}."
            )
        logits = jnp.where(classes.astype(bool), logits, lowest(logits.dtype))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    correct = logits.argmax(axis=-1) == targets
    if sound is not None:
        losses = losses * sound.astype(losses.dtype)
    if mask is None:
        return losses.mean(), {"accuracy": jnp.mean(correct)}
    real = mask.astype(bool)
    count = jnp.maximum(real.sum(), 1)
    loss = jnp.where(real, losses, 0).sum() / count.astype(losses.dtype)
    return loss, {"accuracy": (correct & real).sum() / count}


@dataclasses.dataclass(frozen=True, eq=False)
class _BatchLoss:
    """``loss_fn(params, batch)`` of a network, by which a learner can also predict.

    Attributes:
        apply: the network; a keyed one makes the loss keyed.
        kwargs: passed on to ``apply``.
        score: ``score(outputs, batch) -> (loss, metrics)``.
    """

    apply: Apply
    kwargs: dict[str, Any]
    score: Callable[[jax.Array, MaskedBatch], tuple[jax.Array, Metrics]]

    @property
    def keyed(self) -> bool:
        return keys.is_keyed(self.apply)

    def _outputs(
        self, params: Params, inputs: Any, key: tuple, mask: jax.Array | None = None
    ) -> tuple[Any, Any]:
        options = {**self.kwargs, **masks._option(self.apply, mask)}
        output = self.apply(params, inputs, *key, **options)
        changed = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)
        return output if changed else (output, {})

    def __call__(self, params: Params, batch: PyTree, *key: jax.Array) -> Any:
        masked = as_masked(batch)
        outputs, changed = self._outputs(params, masked.inputs, key, masked.mask)
        loss, metrics = self.score(outputs, masked)
        metrics = {**metrics, **changed}
        return (loss, metrics) if metrics else loss

    def predict(self, params: Params, inputs: Any, *key: jax.Array) -> Any:
        return self._outputs(params, inputs, key)[0]


def cross_entropy(apply: Apply, **kwargs: Any) -> Callable[[Params, PyTree], tuple]:
    """Mean softmax cross-entropy, with the accuracy beside it.

    Args:
        apply: ``apply(params, inputs, **kwargs)`` returns logits ``[examples, classes]``; or a pair
            of them and a dict of changed Flax collections, which are reported among the metrics,
            for ``meta_trainer(carry=metajax.carry_statistics)``. A keyed one,
            ``apply(params, inputs, key)``, gives a keyed loss.
        **kwargs: passed on to ``apply``, such as ``train=False``.

    Returns:
        ``loss_fn(params, batch) -> (loss, {"accuracy": ...})`` for a ``Batch`` (or a pair) of
        inputs and integer targets ``[examples]``, or a ``MaskedBatch``. A learner of this loss can
        ``predict``.

    Raises:
        ArgumentError: at trace time, if the shapes or the targets' type don't fit, or targets whose
            values are known then aren't class indices; see ``classification_outcome``.

    Example:
        >>> loss_fn = cross_entropy(lambda params, inputs: inputs @ params)
        >>> loss, _ = loss_fn(jnp.zeros((3, 2)), (jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])))
        >>> round(float(loss), 4)
        0.6931
    """

    def score(logits: jax.Array, batch: MaskedBatch) -> tuple[jax.Array, Metrics]:
        return classification_outcome(logits, batch.targets, batch.mask, batch.classes)

    return _BatchLoss(apply, kwargs, score)


@dataclasses.dataclass(frozen=True, eq=False)
class _LossGivenSupport:
    """What ``cross_entropy_given_support`` returns."""

    apply: Apply

    @property
    def keyed(self) -> bool:
        return keys.is_keyed(self.apply)

    def __call__(self, params: Params, episode: Episode, *key: jax.Array) -> tuple:
        query = as_masked(episode.query)
        logits = self._logits(params, as_masked(episode.support), query, key)
        return classification_outcome(logits, query.targets, query.mask, query.classes)

    def predict_given_support(
        self, params: Params, support: PyTree, inputs: jax.Array, *key: jax.Array
    ) -> jax.Array:
        unlabelled = MaskedBatch(inputs, jnp.zeros(inputs.shape[0], jnp.int32))
        return self._logits(params, as_masked(support), unlabelled, key)

    def _logits(
        self, params: Params, support: MaskedBatch, query: MaskedBatch, key: tuple
    ) -> jax.Array:
        _checks.one_shape(support.inputs, query.inputs)
        n_support = len(support.inputs)
        both = jnp.concatenate([support.inputs, query.inputs])
        mask = masks._option(self.apply, masks._joined(support, query))
        return self.apply(params, both, *key, reference=n_support, **mask)[n_support:]


def cross_entropy_given_support(apply: Apply) -> Callable[[Params, Episode], tuple]:
    """Query cross-entropy with the support set's normalisation statistics: not transductive.

    Support and query go through the network together, but the statistics are those of the support
    rows alone. So a query example's prediction doesn't depend on the other queries.

    Args:
        apply: ``apply(params, inputs, reference=n)`` takes its statistics from the first n rows, as
            metajax's models do with ``norm="support"``.

    Returns:
        ``outer_loss(params, episode) -> (loss, {"accuracy": ...})``, for ``outer_loss=`` of a
        learner.

    Raises:
        ArgumentError: at trace time, if the shapes of the two sets, or of the logits, don't fit.

    Example:
        >>> centred = lambda params, x, reference: (x - x[:reference].mean(0)) @ params
        >>> outer_loss = cross_entropy_given_support(centred)
        >>> support = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
        >>> query = jnp.array([[2.0]]), jnp.array([1])
        >>> loss, _ = outer_loss(jnp.ones((1, 2)), Episode(support, query))
        >>> round(float(loss), 4)
        0.6931
    """
    return _LossGivenSupport(apply)


def mean_squared_error(apply: Apply, **kwargs: Any) -> Callable[[Params, PyTree], jax.Array]:
    """Mean squared error over examples and outputs; of a ``MaskedBatch``, over those not padded.

    Args:
        apply: ``apply(params, inputs, **kwargs)`` returns outputs of the targets' shape; as for
            ``cross_entropy``.
        **kwargs: passed on to ``apply``.

    Returns:
        ``loss_fn(params, batch) -> loss`` for a ``Batch`` (or a pair) of inputs and targets, or a
        ``MaskedBatch``.

    Raises:
        ArgumentError: at trace time, if outputs and targets differ in shape.

    Example:
        >>> loss_fn = mean_squared_error(lambda params, inputs: inputs * params)
        >>> float(loss_fn(jnp.array(2.0), (jnp.ones((3, 1)), jnp.ones((3, 1)))))
        1.0
    """

    def score(outputs: jax.Array, batch: MaskedBatch) -> tuple[jax.Array, Metrics]:
        if outputs.shape != batch.targets.shape:
            raise ArgumentError(
                "mean_squared_error needs outputs of the targets' shape "
                f"{batch.targets.shape}, got {outputs.shape}."
            )
        squares = (outputs - batch.targets) ** 2
        if batch.mask is None:
            return squares.mean(), {}
        real = batch.mask.astype(bool).reshape(-1, *(1,) * (squares.ndim - 1))
        count = jnp.maximum(real.sum(), 1) * math.prod(squares.shape[1:])
        return jnp.where(real, squares, 0).sum() / count.astype(squares.dtype), {}

    return _BatchLoss(apply, kwargs, score)
