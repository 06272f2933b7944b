"""Fine-tuning on a mixture: what was kept of a round, the rounds before, and real data."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.errors import ArgumentError
from metajax.evolve.data import Data, rows_of
from metajax.evolve.updates import Update, init_state, scaled, to_train, trainers
from metajax.losses import Apply
from metajax.trainer import TrainState
from metajax.types import Metrics, Params


def fine_tune(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    shares: Callable[[Any], np.ndarray],
    rows: int = 32,
    row_length: int = 96,
    micro_batches: int = 8,
    pool: int = 4096,
    prompt_share: float = 0.0,
    trainable: trees.Trainable = None,
    start: Literal["current", "base"] = "current",
    mesh: Mesh | None = None,
) -> Update:
    """Trains on the mixture of real data, earlier rounds and what was kept of this one.

    Texts are packed into rows; what has a higher weight is drawn more often.

    Args:
        apply: ``apply(params, tokens, segment_ids=...)`` returns logits; as for
            ``lm.next_token_loss``.
        optimizer: any Optax transformation; its state goes on from round to round. A schedule sees
            the steps of all accepted rounds; see ``every_round``.
        steps: updates a round.
        shares: the mixture, such as ``published_shares(8)``.
        rows: rows in an update.
        row_length: tokens that the model reads of a row, at least; as many as the longest text has,
            rounded up to a multiple, if that is more.
        micro_batches: how many parts of an update's rows are computed one after another.
        pool: rows that a round draws from.
        prompt_share: share of the texts whose prompts are learned too, as ``written_by_model``
            needs; in [0, 1]. A random prompt can't be predicted: many of them are much noise.
        trainable: which leaves learn, such as ``metajax.lm.lora.is_factor``; all if None.
        start: ``"base"`` starts each round from the parameters that ``init`` got, as STaR does.
        mesh: devices that share the micro-batches.

    Raises:
        ArgumentError: a number isn't a positive integer, or ``rows`` isn't a multiple of
            ``micro_batches``.

    Source: Lee et al. 2025 (arXiv 2502.01612); Zelikman et al. 2022 (arXiv 2203.14465) for
    ``start="base"``.
    """
    steps = _checks.positive_int("steps", steps)
    for name, value in (("rows", rows), ("row_length", row_length), ("pool", pool)):
        _checks.positive_int(name, value)
    if rows % _checks.positive_int("micro_batches", micro_batches):
        raise ArgumentError(
            f"rows must be a multiple of micro_batches={micro_batches}, got {rows}."
        )
    prompt_share = _checks.between("prompt_share", prompt_share, 0, 1)
    _checks.function("shares", shares, "of which rounds kept something")
    _checks.one_of("start", start, ("current", "base"))
    draw = lambda data, key: lm.as_episodes(lm.row_sampler(data, batch=rows // micro_batches))(key)
    trainer_of = trainers(
        lm.supervised(lm.next_token_loss(apply)),
        scaled(optimizer, trainable),
        meta_batch=micro_batches,
        mesh=mesh,
    )
    base: dict[str, Params] = {}

    def init(params: Params, key: jax.Array) -> TrainState:
        base["params"] = params
        return init_state(scaled(optimizer, trainable), params, key)

    def update(
        state: TrainState, data: Data, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        kept = [bool(part.weights.any()) for part in (*data.past, data.new)]
        longest = max(
            int(part.lengths[part.weights > 0].max())
            for part, there in zip((data.real, *data.past, data.new), [True, *kept], strict=True)
            if there
        )
        length = max(row_length, -(-(longest - 1) // 32) * 32)
        batch = rows_of(
            data, shares(kept), key, rows=pool, length=length, prompt_share=prompt_share
        )
        real = float((batch.segment_ids != 0).mean())
        if start == "base":
            state = init(base["params"], state.key)._replace(step=state.step)
        sample = jax.tree_util.Partial(draw, batch)
        trainer = trainer_of(sample)
        state, metrics = trainer.run(to_train(state, scale, mesh), steps, sample=sample)
        return state, metrics, round(steps * rows * (length + 1) * real)

    return Update(f"fine-tuning from the {start} parameters", init, update)
