"""Rejection sampling: an update learns from all the samples that were verified."""

import jax
import numpy as np

from metajax.evolve._updates import rollouts_of
from metajax.evolve.completions import rewards_of
from metajax.evolve.data import sampled_examples
from metajax.evolve.types import Examples, Rollouts, TrainingData, Update
from metajax.trainer import TrainState
from metajax.types import Metrics


def rejection_sampling(update: Update) -> Update:
    """Lets an update learn from all different right samples of a task, not from its label alone.

    A sample is right if its reward is above 0; see ``Verdict.rewards``. Of equal samples of a task
    one is kept. Each has the weight of its task. Where one answer alone is right, as with
    ``exact_match``, that is what the update learns anyway.

    Args:
        update: such as ``fine_tune(start="base")``, which starts each round from the base, as STaR
            and ReST-EM do.

    Returns:
        The update. It raises an ArgumentError without a round's completions.

    Example:
        >>> import optax
        >>> from metajax import evolve as ev
        >>> newest_alone = lambda kept: np.append(np.zeros(len(kept)), 1.0)
        >>> update = ev.rejection_sampling(ev.fine_tune(
        ...     lambda params, tokens, **_: params[tokens], optax.sgd(0.1), steps=4,
        ...     mixture=newest_alone, start="base",
        ... ))
        >>> update.name
        'fine-tuning from the base parameters on all right samples'

    Source: Zelikman et al. 2022, "STaR" (arXiv 2203.14465); Yuan et al. 2023 (arXiv 2308.01825) for
    all different samples; Singh et al. 2023, "ReST-EM" (arXiv 2312.06585).
    """

    def run(
        state: TrainState, data: TrainingData, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        found = _right(rollouts_of(data, "rejection_sampling"))
        fits = found.lengths <= data.new.tokens.shape[1]  # what the replay buffer has room for
        found = found._replace(weights=np.where(fits, found.weights, 0))
        return update.update(state, data._replace(new=found), key, scale)

    return update._replace(name=f"{update.name} on all right samples", update=run)


def _right(rollouts: Rollouts) -> Examples:
    """All samples as texts; the first of equal right ones has its task's weight, others 0."""
    tokens, lengths = (np.asarray(rollouts.completions[place]) for place in (0, 2))
    right = rewards_of(rollouts) > 0
    same = (tokens[:, :, None] == tokens[:, None]).all(axis=-1)
    same &= lengths[:, :, None] == lengths[:, None]
    seen = (np.tril(same, -1) & right[:, None]).any(axis=-1)
    return sampled_examples(
        rollouts, (right & ~seen) * np.asarray(rollouts.verdict.weight)[:, None]
    )
