"""Training language models: loss, packed rows, samplers, and the learner that doesn't adapt."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.keys import is_keyed
from metajax.learners.base import Learner, episode_loss, nothing_learned
from metajax.learners.gradient import _predictor
from metajax.lm._token_batch import TokenBatch, check_batch, counted_targets, token_losses
from metajax.losses import Apply
from metajax.types import Episode, LossFn, Metrics, Params, Sampler


def next_token_loss(apply: Apply) -> Callable[[Params, TokenBatch], tuple[jax.Array, Metrics]]:
    """Mean cross-entropy of the targets that count, in float32 nats.

    Args:
        apply: ``apply(params, tokens, segment_ids=...)`` returns logits
            ``[batch, length, vocab]`` for tokens ``[batch, length]``, as ``metajax.from_linen`` of
            a ``Transformer`` does. It gets ``segment_ids`` only where the batch has them. Where the
            batch has ``places``, a ``Transformer`` computes the logits there alone.

    Returns:
        ``loss_fn(params, batch) -> (loss, metrics)`` for a ``TokenBatch``. The metrics are
        ``"accuracy"``, the share of targets that were the likeliest token; ``"exact"``, the share
        of rows with all targets right, as greedy decoding would write them (of rows with a target);
        and ``"tokens"``, the number of targets. Without any target, all of them and the loss are 0.
        A mean over micro-batches, such as ``meta_trainer``'s, weighs these alike, whatever their
        numbers of targets. ``loss_fn.predict(params, tokens)`` gives the logits.

    Raises:
        ArgumentError: at trace time, if an array hasn't the shape of the tokens, or the logits
            haven't that of the targets.

    Example:
        >>> loss_fn = next_token_loss(lambda params, tokens: jnp.zeros((*tokens.shape, 4)) + params)
        >>> loss, metrics = loss_fn(jnp.zeros(4), TokenBatch(jnp.array([[0, 3, 0]])))
        >>> round(float(loss), 4), float(metrics["accuracy"])  # ln 4, and ties go to token 0
        (1.3863, 0.5)
    """
    return _NextTokenLoss(apply)


@dataclasses.dataclass(frozen=True, eq=False)
class _NextTokenLoss:
    apply: Apply

    def __call__(self, params: Params, batch: TokenBatch) -> tuple[jax.Array, Metrics]:
        check_batch(batch)
        counted, options = counted_targets(batch), {}
        if batch.segment_ids is not None:
            options["segment_ids"] = batch.segment_ids[:, :-1]
        losses, right = token_losses(self.apply, params, batch.tokens, batch.places, **options)
        correct = counted & right
        count = counted.sum(dtype=losses.dtype)
        share = 1 / jnp.maximum(count, 1)
        wrong = (counted & ~correct).any(axis=1)
        rows = counted.any(axis=1)
        exact = (rows & ~wrong).sum() / jnp.maximum(rows.sum(dtype=losses.dtype), 1)
        metrics = {"accuracy": correct.sum() * share, "exact": exact, "tokens": count}
        return jnp.where(counted, losses, 0).sum() * share, metrics

    def predict(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Logits ``[batch, length, vocab]`` of the token after each."""
        return self.apply(params, tokens)


def pack(
    documents: Sequence[Any], length: int, *, masks: Sequence[Any] | None = None, padding: int = 0
) -> TokenBatch:
    """Packs documents into rows, several to a row, each into the first that has room.

    Every token but a document's first is a target once, unless ``masks`` leave it out, and none is
    predicted from another document. A document of more than ``length + 1`` tokens is split; the
    last token of a piece is the next one's first, where it is read but isn't a target. A piece
    without a target is left out.

    Args:
        documents: the tokens of each, integers ``[n]``.
        length: how many tokens a model reads of a row.
        masks: for each document ``[n]``, which of its tokens are targets, such as an answer's
            without its question; all if None.
        padding: the token that fills rows up.

    Returns:
        A ``TokenBatch`` of NumPy arrays ``[rows, length + 1]``; ``mask`` is True at targets alone,
        so that its sum is their number.

    Raises:
        ArgumentError: if ``length`` isn't a positive integer, a document isn't ``[n]`` integers,
            the masks don't fit the documents, or there is no target at all.

    Example:
        >>> pack([[1, 2, 3], [4, 5, 6], [7, 8]], length=4).tokens
        array([[1, 2, 3, 7, 8],
               [4, 5, 6, 0, 0]], dtype=int32)
    """
    length = _checks.positive_int("length", length)
    pieces = list(_pieces(documents, length, masks))
    if not pieces:
        raise ArgumentError(f"documents: none of the {len(documents)} has a target.")
    room = np.full(len(pieces), length + 1)
    taken = np.zeros(len(pieces), np.int32)  # documents in each row
    shape = (len(pieces), length + 1)
    tokens, segment_ids = np.full(shape, padding, np.int32), np.zeros(shape, np.int32)
    targets = np.zeros(shape, bool)
    rows = 0
    for piece, mask in pieces:
        # The row after the last in use is empty, and has room for any piece.
        row = int(np.argmax(room[: rows + 1] >= len(piece)))
        rows = max(rows, row + 1)
        start = length + 1 - room[row]
        here = slice(start, start + len(piece))
        taken[row] += 1
        room[row] -= len(piece)
        tokens[row, here], segment_ids[row, here], targets[row, here] = piece, taken[row], mask
    return TokenBatch(tokens[:rows], segment_ids[:rows], targets[:rows])


def _pieces(documents: Sequence[Any], length: int, masks: Sequence[Any] | None):
    """Tokens and targets of each piece of at most ``length + 1`` tokens that has a target."""
    if masks is not None and len(masks) != len(documents):
        raise ArgumentError(
            f"masks must be as many as documents, {len(documents)}, got {len(masks)}."
        )
    for index, document in enumerate(documents):
        document = np.asarray(document)
        if document.ndim != 1 or (document.size and document.dtype.kind not in "iu"):
            raise ArgumentError(
                f"documents[{index}] must be integers [n], got {document.dtype} of shape "
                f"{document.shape}."
            )
        mask = np.ones(document.shape, bool) if masks is None else np.asarray(masks[index], bool)
        if mask.shape != document.shape:
            raise ArgumentError(
                f"masks[{index}] must have the shape of its document, {document.shape}, got "
                f"{mask.shape}."
            )
        for start in range(0, len(document) - 1, length):
            piece = slice(start, start + length + 1)
            targets = mask[piece].copy()
            targets[0] = False
            if targets.any():
                yield document[piece], targets


@dataclasses.dataclass(frozen=True)
class _DrawWindows:
    length: int
    batch: int

    def __call__(self, text: jax.Array, key: jax.Array) -> TokenBatch:
        starts = jax.random.randint(key, (self.batch, 1), 0, len(text) - self.length)
        return TokenBatch(text[starts + jnp.arange(self.length + 1)])


@dataclasses.dataclass(frozen=True)
class _DrawRows:
    batch: int

    def __call__(self, rows: TokenBatch, key: jax.Array) -> TokenBatch:
        chosen = jax.random.randint(key, (self.batch,), 0, len(rows.tokens))
        return jax.tree.map(lambda leaf: leaf[chosen], rows)


def text_sampler(tokens: Any, *, length: int, batch: int) -> Partial:
    """Random windows of one long text, each start as likely as any other.

    Args:
        tokens: integers ``[n]``, the text.
        length: how many tokens a model reads of a window.
        batch: windows in a batch.

    Returns:
        ``draw(key) -> TokenBatch`` with tokens ``[batch, length + 1]``; a pytree whose leaf is the
        text. For ``as_episodes``.

    Raises:
        ArgumentError: if ``length`` or ``batch`` isn't a positive integer, or the text isn't
            ``[n]`` integers with ``n > length``.

    Example:
        >>> text_sampler(jnp.arange(5), length=4, batch=1)(jax.random.key(0)).tokens
        Array([[0, 1, 2, 3, 4]], dtype=int32)
    """
    length, batch = _checks.positive_int("length", length), _checks.positive_int("batch", batch)
    text = jnp.asarray(tokens)
    if text.ndim != 1 or not jnp.issubdtype(text.dtype, jnp.integer) or len(text) <= length:
        raise ArgumentError(
            f"tokens must be integers [n] with n > length={length}, got {text.dtype} of shape "
            f"{text.shape}."
        )
    return Partial(_DrawWindows(length, batch), text)


def row_sampler(rows: TokenBatch, *, batch: int) -> Partial:
    """Random rows, such as ``pack``'s, drawn with replacement.

    ``with_places(rows)`` makes the loss cheaper where rows have few targets.

    Args:
        rows: arrays ``[rows, length + 1]``.
        batch: rows in a batch.

    Returns:
        ``draw(key) -> TokenBatch`` with arrays ``[batch, length + 1]``; a pytree whose leaves are
        the rows. For ``as_episodes``.

    Raises:
        ArgumentError: if ``batch`` isn't a positive integer, there is no row, or the arrays differ
            in shape.

    Example:
        >>> rows = pack([[1, 2, 3]], length=2)
        >>> row_sampler(rows, batch=2)(jax.random.key(0)).tokens.tolist()
        [[1, 2, 3], [1, 2, 3]]
    """
    batch = _checks.positive_int("batch", batch)
    check_batch(rows)
    if not len(rows.tokens):
        raise ArgumentError("rows must hold at least one row, got none.")
    return Partial(_DrawRows(batch), jax.tree.map(jnp.asarray, rows))


def as_episodes(draw: Callable[[jax.Array], Any]) -> Sampler:
    """Batches as tasks with nothing to learn from: the batch is the query set, the support is None.

    Returns:
        ``sample(key) -> Episode``; a pytree with the leaves of ``draw`` where that is one.

    Example:
        >>> sample = as_episodes(text_sampler(jnp.arange(9), length=4, batch=2))
        >>> episode = sample(jax.random.key(0))
        >>> episode.support is None, episode.query.tokens.shape
        (True, (2, 5))
    """
    if isinstance(draw, Partial):
        return Partial(_episode, draw)
    return lambda key, /: Episode(None, draw(key))


def _episode(draw: Partial, key: jax.Array) -> Episode:
    return Episode(None, draw(key))


def supervised(loss_fn: LossFn) -> Learner:
    """Ordinary training as a learner: it doesn't adapt, and its loss is that of the query batch.

    With it ``meta_trainer`` trains any model: a task is a micro-batch (see ``as_episodes``),
    ``meta_batch`` is how many are accumulated before an update, ``tasks_per_chunk`` is how many are
    in memory together, and a ``mesh`` shares them among devices.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``; it may be
            ``metajax.keyed``, for dropout.

    Example:
        >>> import metajax
        >>> import optax
        >>> draw = text_sampler(jnp.arange(64) % 8, length=8, batch=4)
        >>> loss_fn = next_token_loss(lambda params, tokens: params[tokens])  # bigrams
        >>> trainer = metajax.meta_trainer(
        ...     supervised(loss_fn), optax.adam(0.1), as_episodes(draw), meta_batch=2
        ... )
        >>> state = trainer.init(jnp.zeros((8, 8)), jax.random.key(0))
        >>> state, metrics = trainer.run(state, 100)
        >>> bool(metrics["loss"][0] > 2.0), bool(metrics["loss"][-1] < 0.1)
        (True, True)
    """

    def adapt(params, support, *, observe=None, key=None):
        del support, key
        return params, nothing_learned(params, observe)

    return Learner(
        lambda params: params,
        adapt,
        episode_loss(loss_fn, None),
        predict=_predictor(loss_fn, None, None),
        keyed=is_keyed(loss_fn),
    )
