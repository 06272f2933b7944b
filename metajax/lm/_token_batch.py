"""Batches of tokens, where their targets are, and what each token costs."""

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from metajax import _marks
from metajax.errors import ArgumentError
from metajax.losses import Apply
from metajax.types import Params

_PARTS = 16
"""The number of places is a multiple of the length over this, so that few programs are compiled."""


class TokenBatch(NamedTuple):
    """Rows of tokens, each predicted from those before it in its document.

    A model reads ``tokens[:, :-1]`` and predicts ``tokens[:, 1:]``, so these, ``segment_ids`` and
    ``mask`` have one column more than it reads.

    Attributes:
        tokens: integers ``[batch, length + 1]``; of padding, any token.
        segment_ids: integers ``[batch, length + 1]``, the number of each token's document in its
            row, from 1 on; 0 is padding. None where each row is one document. A document's first
            token is never a target, since the token before it is of another.
        mask: ``[batch, length + 1]``, whether a token counts as a target; None if all do.
        places: integers ``[batch, n]`` from ``with_places``: where targets are among the tokens
            that a model predicts; length for none. A target elsewhere doesn't count. None if they
            may be anywhere.
    """

    tokens: Any
    segment_ids: Any = None
    mask: Any = None
    places: Any = None


def counted_targets(batch: TokenBatch) -> jax.Array:
    """Which tokens but the first are targets that count, ``[batch, length]``."""
    tokens, segment_ids, mask, places = batch
    counted = jnp.ones(tokens[:, 1:].shape, bool) if mask is None else mask[:, 1:].astype(bool)
    if segment_ids is not None:
        before, ids = segment_ids[:, :-1], segment_ids[:, 1:]
        counted &= (ids == before) & (ids != 0)
    if places is not None:
        rows = jnp.arange(len(tokens))[:, None]
        counted &= jnp.zeros(counted.shape, bool).at[rows, places].set(True, mode="drop")
    return counted


def with_places(batch: TokenBatch) -> TokenBatch:
    """The batch with the places of its targets, where these are few.

    Logits cost most where the vocabulary is large. With places a ``Transformer`` computes them
    where the loss needs them. The loss is the same. How many there are, ``n``, is a part of the
    arrays' shapes: that of the row with most targets, rounded up to a sixteenth of the length. The
    batch has no places where n were more than half the length. It stays as it is inside a compiled
    function whose argument it is: the targets aren't known there.

    Args:
        batch: arrays ``[batch, length + 1]``, such as ``pack``'s; for ``row_sampler``, all rows.

    Raises:
        ArgumentError: an array hasn't the shape of the tokens.

    Example:
        >>> from metajax import lm
        >>> rows = lm.pack([range(9)], length=8, masks=[np.arange(9) > 6])
        >>> with_places(rows).places
        array([[6, 7]], dtype=int32)
    """
    check_batch(batch)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in batch):
        return batch
    with jax.ensure_compile_time_eval():  # the targets are known inside a compiled function too
        counted = np.asarray(counted_targets(batch._replace(places=None)))
    return batch._replace(places=_places_of(counted))


def check_batch(batch: TokenBatch) -> None:
    """Refuses arrays whose shapes don't fit the tokens."""
    tokens = batch.tokens
    if tokens.ndim != 2 or tokens.shape[1] < 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ArgumentError(
            f"tokens must be integers [batch, length + 1] with length >= 1, got {tokens.dtype} of "
            f"shape {tokens.shape}."
        )
    for name in ("segment_ids", "mask"):
        value = getattr(batch, name)
        if value is not None and value.shape != tokens.shape:
            raise ArgumentError(
                f"{name} must have the shape of tokens, {tokens.shape}, got {value.shape}."
            )
    places = batch.places
    if places is not None and (places.ndim != 2 or len(places) != len(tokens)):
        raise ArgumentError(f"places must be [batch, n] = [{len(tokens)}, n], got {places.shape}.")


def _places_of(targets: np.ndarray) -> np.ndarray | None:
    """Where the targets of each row are.

    Args:
        targets: bools ``[rows, length]``, of what a model predicts.

    Returns:
        ``[rows, n]``, int32, in order; the rest of a row is ``length``. None if n is more than half
        the length.

    Example:
        >>> _places_of(np.arange(8) < np.array([[2], [1]])).tolist()
        [[0, 1], [0, 8]]
    """
    length = targets.shape[1]
    counts = targets.sum(axis=1, keepdims=True)
    multiple = max(1, length // _PARTS)
    n = -(-max(int(counts.max()), 1) // multiple) * multiple
    if 2 * n > length:
        return None
    order = np.argsort(~targets, axis=1, kind="stable")[:, :n]
    return np.where(np.arange(n) < counts, order, length).astype(np.int32)


def token_losses(
    apply: Apply,
    params: Params,
    tokens: jax.Array,
    places: jax.Array | None = None,
    temperature: Any = None,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Of each token but the first, what it costs, and whether it is the likeliest.

    Args:
        apply: returns logits; only those at ``places`` where it is marked ``at_places``, as a
            ``Transformer`` is.
        params: its parameters.
        tokens: ``[rows, length + 1]``.
        places: ``[rows, n]``, as of ``with_places``; all if None.
        temperature: what logits are divided by, a number or ``[rows, 1]``.
        **options: of ``apply``.

    Returns:
        Cross-entropies in nats, and bools, both ``[rows, length]``. Where logits aren't computed,
        0 and False.

    Raises:
        ArgumentError: the logits haven't the shape of the targets.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    # A module's own apply isn't marked, but the module is.
    marked = any(_marks.has(x, "at_places") for x in (apply, getattr(apply, "__self__", None)))
    places = places if marked else None
    if places is not None:
        options["at"] = jnp.minimum(places, inputs.shape[1] - 1)
        targets = jnp.take_along_axis(targets, options["at"], axis=1)
    logits = apply(params, inputs, **options)
    if logits.ndim != 3 or logits.shape[:-1] != targets.shape:
        raise ArgumentError(
            f"apply must return logits [batch, length, vocab] for tokens {targets.shape}, got "
            f"shape {logits.shape}."
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature is not None:
        logits = logits / jnp.asarray(temperature, logits.dtype)[..., None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = logits.argmax(axis=-1) == targets
    if places is None:
        return losses, right
    rows = jnp.arange(len(tokens))[:, None]
    spread = lambda x: jnp.zeros(inputs.shape, x.dtype).at[rows, places].set(x, mode="drop")
    return spread(losses), spread(right)
