"""Losses of one task's batch, built from a model's apply function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import Batch, Episode, MaskedBatch, Metrics, Params, PyTree

Apply = Callable[..., jax.Array]
"""``apply(params, inputs) -> outputs``, as ``from_linen`` and ``from_nnx`` return."""


def as_masked(batch: PyTree) -> MaskedBatch:
    """A ``Batch``, a pair of inputs and targets, or a ``MaskedBatch``, as the last.

    Raises:
        ArgumentTypeError: if it is something else, or holds something else than arrays.
        ArgumentError: if there aren't as many inputs as targets, or the mask isn't ``[examples]``.

    Example:
        >>> as_masked((jnp.zeros(2), jnp.zeros(2, jnp.int32))).mask is None
        True
    """
    if not isinstance(batch, MaskedBatch):
        batch = MaskedBatch(*_pair(batch))
    inputs, targets, mask, classes = batch
    for name, value in (("inputs", inputs), ("targets", targets)):
        if _checks.array(f"batch.{name}", value, "an array [examples, ...]").ndim < 1:
            raise ArgumentError(f"batch.{name} must be [examples, ...], got a scalar.")
    if len(inputs) != len(targets):
        raise ArgumentError(
            f"a batch must have as many inputs as targets, got inputs of shape {inputs.shape} and "
            f"targets of shape {targets.shape}."
        )
    if mask is not None and _checks.array("batch.mask", mask).shape != inputs.shape[:1]:
        raise ArgumentError(
            f"batch.mask must be [examples] = [{len(inputs)}], got shape {mask.shape}."
        )
    if classes is not None and _checks.array("batch.classes", classes).ndim != 1:
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
    """A logit of what can't be chosen: finite, so that no product or difference with it is NaN.

    Example:
        >>> lowest(jnp.float32) < -1e37
        True
    """
    return float(jnp.finfo(dtype).min) / 8


def _check_logits(logits: jax.Array, targets: jax.Array) -> None:
    _checks.array("logits", logits, "an array [examples, classes]")
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ArgumentError(
            "cross_entropy needs logits [examples, classes] and targets [examples], got logits of "
            f"shape {logits.shape} and targets of shape {targets.shape}."
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ArgumentError(f"targets must be integer class indices, got {targets.dtype}.")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ArgumentError(f"logits must be floating-point numbers, got {logits.dtype}.")
    if not logits.shape[1]:
        raise ArgumentError(f"logits must be of at least one class, got shape {logits.shape}.")


def classification_outcome(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    classes: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy in nats and accuracy of logits ``[examples, classes]``.

    With a mask ``[examples]`` the means are over the examples where it is true; with ``classes``
    ``[classes]``, only those where it is true take part.

    Raises:
        ArgumentError: shapes or types that don't fit each other.

    Example:
        >>> loss, metrics = classification_outcome(jnp.zeros((2, 4)), jnp.array([0, 3]))
        >>> round(float(loss), 4), float(metrics["accuracy"])  # ln 4, and ties go to class 0
        (1.3863, 0.5)
    """
    _check_logits(logits, targets)
    if classes is not None:
        if classes.shape != logits.shape[1:]:
            raise ArgumentError(
                f"batch.classes must be as many as the logits' classes, {logits.shape[1]}, got "
                f"shape {classes.shape}."
            )
        logits = jnp.where(classes.astype(bool), logits, lowest(logits.dtype))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    correct = logits.argmax(axis=-1) == targets
    if mask is None:
        return losses.mean(), {"accuracy": jnp.mean(correct)}
    real = mask.astype(bool)
    count = jnp.maximum(real.sum(), 1)
    loss = jnp.where(real, losses, 0).sum() / count.astype(losses.dtype)
    return loss, {"accuracy": (correct & real).sum() / count}


def same_shape(support_inputs: jax.Array, query_inputs: jax.Array) -> None:
    """Raises an ArgumentError unless the two sets' examples have one shape.

    Example:
        >>> same_shape(jnp.zeros((5, 28, 28)), jnp.zeros((75, 28, 28)))
    """
    if support_inputs.shape[1:] != query_inputs.shape[1:]:
        raise ArgumentError(
            "support and query inputs must have examples of one shape, got "
            f"{support_inputs.shape} and {query_inputs.shape}."
        )


def cross_entropy(apply: Apply, **kwargs: Any) -> Callable[[Params, Batch], tuple]:
    """Mean softmax cross-entropy, with the accuracy beside it.

    Args:
        apply: ``apply(params, inputs, **kwargs)`` returns logits ``[examples, classes]``.
        **kwargs: passed on to ``apply``, such as ``train=False``.

    Returns:
        ``loss_fn(params, batch) -> (loss, {"accuracy": ...})`` for a ``Batch`` (or a pair) of
        inputs and integer targets ``[examples]``, or a ``MaskedBatch``.

    Raises:
        ArgumentError: at trace time, if the shapes or the targets' type don't fit.

    Example:
        >>> loss_fn = cross_entropy(lambda params, inputs: inputs @ params)
        >>> loss, _ = loss_fn(jnp.zeros((3, 2)), (jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])))
        >>> round(float(loss), 4)
        0.6931
    """

    _checks.function("apply", apply, "apply(params, inputs)")

    def loss_fn(params, batch):
        inputs, targets, mask, classes = as_masked(batch)
        return classification_outcome(apply(params, inputs, **kwargs), targets, mask, classes)

    return loss_fn


def cross_entropy_given_support(apply: Apply) -> Callable[[Params, Episode], tuple]:
    """Query cross-entropy with the normalisation statistics of the support set: not transductive.

    Support and query go through the network together, and only the support rows enter the
    statistics, so that a query example's prediction doesn't depend on the other queries.

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
        >>> support = Batch(jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
        >>> query = Batch(jnp.array([[2.0]]), jnp.array([1]))
        >>> loss, _ = outer_loss(jnp.ones((1, 2)), Episode(support, query))
        >>> round(float(loss), 4)
        0.6931
    """

    _checks.function("apply", apply, "apply(params, inputs, reference=n)")

    def outer_loss(params, episode):
        support_inputs, *_ = as_masked(episode.support)
        query_inputs, targets, mask, classes = as_masked(episode.query)
        same_shape(support_inputs, query_inputs)
        n_support = support_inputs.shape[0]
        inputs = jnp.concatenate([support_inputs, query_inputs])
        logits = apply(params, inputs, reference=n_support)
        logits = _checks.array("what apply returns", logits)[n_support:]
        return classification_outcome(logits, targets, mask, classes)

    return outer_loss


def mean_squared_error(apply: Apply, **kwargs: Any) -> Callable[[Params, Batch], jax.Array]:
    """Mean squared error over examples and outputs.

    Args:
        apply: ``apply(params, inputs, **kwargs)`` returns outputs of the targets' shape.
        **kwargs: passed on to ``apply``.

    Returns:
        ``loss_fn(params, batch) -> loss`` for a ``Batch`` (or a pair) of inputs and targets.

    Raises:
        ArgumentError: at trace time, if outputs and targets differ in shape.

    Example:
        >>> loss_fn = mean_squared_error(lambda params, inputs: inputs * params)
        >>> float(loss_fn(jnp.array(2.0), (jnp.ones((3, 1)), jnp.ones((3, 1)))))
        1.0
    """

    _checks.function("apply", apply, "apply(params, inputs)")

    def loss_fn(params, batch):
        inputs, targets, *_ = as_masked(_pair(batch))
        outputs = _checks.array("what apply returns", apply(params, inputs, **kwargs))
        if outputs.shape != targets.shape:
            raise ArgumentError(
                f"mean_squared_error needs outputs of the targets' shape {targets.shape}, got "
                f"{outputs.shape}."
            )
        return jnp.mean((outputs - targets) ** 2)

    return loss_fn
