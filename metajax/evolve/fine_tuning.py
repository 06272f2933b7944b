"""Fine-tuning on a mixture of this round's labels, earlier rounds and real data."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.errors import ArgumentError
from metajax.evolve._updates import initial_params, scaled, train_state, training
from metajax.evolve.data import pack_mixture
from metajax.evolve.rehearsal import Rehearsal, rehearsed
from metajax.evolve.types import TrainingData, Update
from metajax.losses import Apply
from metajax.trainer import TrainState
from metajax.types import Episode, Metrics


def every_round(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """A schedule that starts again after each round of ``steps`` steps.

    Example:
        >>> rate = every_round(optax.linear_schedule(1.0, 0.0, 4), 4)
        >>> [float(rate(step)) for step in (0, 2, 4)]
        [1.0, 0.5, 1.0]
    """
    return lambda count: schedule(jnp.asarray(count) % steps)


def fine_tune(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    mixture: Callable[[Any], np.ndarray],
    rows: int = 32,
    row_length: int = 96,
    micro_batches: int = 8,
    pool: int = 4096,
    prompt_share: float = 0.0,
    in_context: bool = False,
    begin: int | None = None,
    rehearsal: Rehearsal | None = None,
    rehearsal_weight: float = 20.0,
    trainable: trees.Trainable = None,
    start: Literal["current", "base"] = "current",
    mesh: Mesh | None = None,
) -> Update:
    """Supervised training on a mixture of real data, earlier rounds and this round's labels.

    Texts are drawn in proportion to their weights and packed into rows.

    Args:
        apply: ``apply(params, tokens, segment_ids=...)`` returns logits, as for
            ``lm.next_token_loss``.
        optimizer: any Optax transformation. Its state goes on from round to round, and its schedule
            counts the steps of all accepted rounds; see ``every_round``.
        steps: updates a round.
        mixture: such as ``published_mixture(8)``.
        rows: rows in an update.
        row_length: tokens that the model reads of a row. If the longest text has more, rows are as
            long as that, rounded up to a multiple of 32.
        micro_batches: number of parts of an update that are computed one after another.
        pool: rows that a round draws from.
        prompt_share: share of the texts whose prompts are targets too, in [0, 1]; a model that
            proposes tasks needs some. Random prompts can't be predicted, so many of them are noise.
        in_context: whether a row's texts are one document, each read behind those before it. A
            model that answers behind worked examples should learn so: one that learns from single
            texts loses what it does behind examples.
        begin: the token that texts begin with; with ``in_context``, a row has one.
        rehearsal: texts that the model wrote before it learned, from ``evolve.rehearsal``. An
            update has as many of them as rows, and keeps them as likely as they were; so the model
            forgets less of what it can do beside the tasks.
        rehearsal_weight: of the divergence from the model before, in nats a token, beside the loss.
        trainable: which leaves learn, such as ``metajax.lm.lora.is_factor``; all if None.
        start: ``"base"`` starts each round from the parameters that ``init`` got, with a fresh
            optimizer, as STaR does. These parameters are kept in the optimizer's state.
        mesh: devices that share the micro-batches.

    Raises:
        ArgumentError: a number isn't a positive integer, or ``rows`` isn't a multiple of
            ``micro_batches``; from the update, real data without any weight.

    Source: Lee et al. 2025 (arXiv 2502.01612); Zelikman et al. 2022 (arXiv 2203.14465) for
    ``start="base"``.
    """
    for name, value in (
        ("steps", steps),
        ("rows", rows),
        ("row_length", row_length),
        ("pool", pool),
        ("micro_batches", micro_batches),
    ):
        _checks.positive_int(name, value)
    if rows % micro_batches:
        raise ArgumentError(
            f"rows must be a multiple of micro_batches={micro_batches}, got {rows}."
        )
    _checks.between("prompt_share", prompt_share, 0, 1)
    _checks.one_of("start", start, ("current", "base"))
    _checks.positive_float("rehearsal_weight", rehearsal_weight)
    from_base = start == "base"
    optimizer = scaled(optimizer, trainable, keep_initial=from_base)
    batch = rows // micro_batches
    loss_fn: Any = lm.next_token_loss(apply)
    if rehearsal is not None:
        loss_fn = rehearsed(loss_fn, apply, rehearsal_weight)

    def draw(data: tuple[lm.TokenBatch, Rehearsal | None], key: jax.Array) -> Episode:
        rows, before = data
        sample = lm.row_sampler(rows, batch=batch)
        if before is None:
            return Episode(None, sample(key))
        key, before_key = jax.random.split(key)
        chosen = jax.random.randint(before_key, (batch,), 0, len(before.tokens))
        again = jax.tree.map(lambda leaf: leaf[chosen], before)
        return Episode(None, {"rows": sample(key), "rehearsal": again})

    train = training(
        lm.supervised(loss_fn),
        optimizer,
        draw,
        steps=steps,
        meta_batch=micro_batches,
        mesh=mesh,
    )

    def update(
        state: TrainState, data: TrainingData, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        if not data.real.weights.any():
            raise ArgumentError("data.real must have an example of a weight above 0, got none.")
        kept = [bool(part.weights.any()) for part in (*data.past, data.new)]
        longest = max(
            int(part.lengths[part.weights > 0].max())
            for part, has_any in zip((data.real, *data.past, data.new), [True, *kept], strict=True)
            if has_any
        )
        length = max(row_length, -(-(longest - 1) // 32) * 32)
        packed = pack_mixture(
            data,
            mixture(kept),
            key,
            rows=pool,
            length=length,
            prompt_share=prompt_share,
            in_context=in_context,
            begin=begin,
        )
        if from_base:
            fresh = train_state(optimizer, initial_params(state), state.key)
            state = fresh._replace(step=state.step)
        state, metrics = train(state, (lm.with_places(packed), rehearsal), scale)
        filled = float((packed.segment_ids != 0).mean())
        return state, metrics, round(steps * rows * (length + 1) * filled)

    return Update(
        f"fine-tuning from the {start} parameters",
        lambda params, key: train_state(optimizer, params, key),
        update,
    )
