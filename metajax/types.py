"""Types that all parts of metajax share."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any
"""Any nested container that JAX knows, with arrays at its leaves."""

Params = PyTree
"""What a loss is differentiated with respect to."""

Metrics = dict[str, jax.Array]
"""Named scalars of one task, such as ``{"accuracy": ...}``."""


class Batch(NamedTuple):
    """Labelled examples.

    Attributes:
        inputs: array ``[examples, ...]``.
        targets: class indices ``[examples]`` (int32), or regression targets ``[examples, ...]``.
    """

    inputs: jax.Array
    targets: jax.Array


class MaskedBatch(NamedTuple):
    """Labelled examples of which some are padding, so that all tasks have one shape.

    Attributes:
        inputs: array ``[examples, ...]``; of padding, any finite values. A network that takes
            statistics of the batch must be given the mask; see ``metajax.masked``.
        targets: class indices ``[examples]`` (int32); of padding, any class.
        mask: ``[examples]``, True (or 1) for an example, False (or 0) for padding; None if all are
            real.
        classes: ``[n_way]``, True for a class of the task, False for one that is only padding; None
            if all are real.
    """

    inputs: jax.Array
    targets: jax.Array
    mask: jax.Array | None = None
    classes: jax.Array | None = None


class Episode(NamedTuple):
    """One task: a support set to learn from, and a query set to be scored on.

    A meta-batch is an ``Episode`` whose leaves have one more, leading, task axis.

    Attributes:
        support: any pytree that the loss accepts as a batch; usually a ``Batch``.
        query: the same, for scoring after adaptation.
        key: a random key of the task, for a learner that is ``keyed``. ``meta_trainer`` and
            ``evaluate`` fill it; None elsewhere.
    """

    support: PyTree
    query: PyTree
    key: jax.Array | None = None


class Sampler(Protocol):
    """Draws one episode. It is pure JAX, so that it can run inside the training program."""

    def __call__(self, key: jax.Array, /) -> Episode: ...


LossFn = Callable[..., Any]
"""``loss_fn(params, batch) -> scalar``, or ``(scalar, aux)``; marked with ``metajax.keyed``,
``loss_fn(params, batch, key)``."""
