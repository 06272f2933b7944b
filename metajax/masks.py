"""Networks whose statistics leave padding out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import _marks
from metajax.types import MaskedBatch

__all__ = ["is_masked", "masked"]


def masked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a network that takes the mask of its examples, ``apply(params, inputs, mask=...)``.

    Examples that go through a network together see each other where it takes statistics of the
    batch. Padding must not count there. What is marked is called with ``mask=`` (bool
    ``[examples]``, False for padding) where the batch is a ``MaskedBatch`` with a mask, and without
    it elsewhere. The ``apply`` that ``from_linen`` or ``from_nnx`` makes of a module whose class
    has ``masked = True``, as those of ``metajax.models``, is marked already.

    Args:
        function: the network, or another function that a learner passes a batch's inputs to.

    Returns:
        The function, marked.

    Example:
        >>> import jax.numpy as jnp, metajax
        >>> @metajax.masked
        ... def centred(params, inputs, mask=None):
        ...     where = None if mask is None else mask[:, None]
        ...     return (inputs - inputs.mean(axis=0, where=where)) @ params
        >>> loss_fn, params = metajax.losses.cross_entropy(centred), jnp.array([[-1.0, 1.0]])
        >>> inputs, targets = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([0, 1, 0])
        >>> padded = metajax.MaskedBatch(inputs, targets, jnp.array([True, True, False]))
        >>> alone, _ = loss_fn(params, (inputs[:2], targets[:2]))
        >>> bool(loss_fn(params, padded)[0] == alone)
        True
    """
    return _marks.marked(function, masked=True)


def is_masked(function: Any) -> bool:
    """Whether a function takes the mask of its examples: it is marked by ``masked``.

    Example:
        >>> is_masked(masked(lambda params, inputs, mask=None: inputs)), is_masked(None)
        (True, False)
    """
    return _marks.has(function, "masked")


def _option(function: Any, mask: jax.Array | None) -> dict[str, jax.Array]:
    """``mask=`` for a function that takes one, if there is padding."""
    return {} if mask is None or not is_masked(function) else {"mask": mask.astype(bool)}


def _joined(first: MaskedBatch, second: MaskedBatch) -> jax.Array | None:
    """The mask of two batches, one after the other; None if all examples are real."""
    if first.mask is None and second.mask is None:
        return None
    of = lambda batch: jnp.ones(batch.inputs.shape[0], bool) if batch.mask is None else batch.mask
    return jnp.concatenate([of(first).astype(bool), of(second).astype(bool)])
