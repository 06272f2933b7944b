"""Meta-learning on tasks that the model proposed itself.

The examples of a round that belong together, such as those of one level, are a task: the learner
adapts to some, the support set, and is scored on others, the query set.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.evolve._updates import rollouts_of, scaled, train_state, training
from metajax.evolve.types import Examples, Tasks, TrainingData, Update
from metajax.learners.base import Learner
from metajax.trainer import TrainState
from metajax.types import Episode, Metrics


class _Grouped(NamedTuple):
    """Examples; those of one group make a task.

    Attributes:
        texts: a ``lm.TokenBatch``, a text a row.
        group: integers ``[n]``.
        weights: how often each is drawn, ``[n]``.
    """

    texts: lm.TokenBatch
    group: Any
    weights: Any


def meta_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    support: int = 4,
    query: int = 4,
    meta_batch: int = 8,
    real_share: float = 0.25,
    group_of: Callable[[Tasks], Any] = lambda tasks: tasks.levels,
    trainable: trees.Trainable = None,
    mesh: Mesh | None = None,
) -> Update:
    """Meta-trains on the model's own examples: adapt to a support set, score the query set.

    Args:
        learner: such as ``metajax.maml(lm.next_token_loss(apply), optax.sgd(0.1), steps=1)``, whose
            meta-parameters are the parameters.
        optimizer: the outer optimizer.
        steps: meta-steps a round.
        support: texts that are adapted to.
        query: texts that are scored.
        meta_batch: tasks in a meta-step.
        real_share: share of the tasks that are made of real data, in (0, 1).
        group_of: which of a round's tasks belong together, integers ``[n]``. Real data is grouped
            by length.
        trainable: which leaves the outer optimizer moves.
        mesh: devices that share the tasks.

    Raises:
        ArgumentError: an argument is out of its bounds.

    Source: Finn et al. 2017 (arXiv 1703.03400) for the step; Zweiger et al. 2025, "SEAL"
    (arXiv 2506.10943), for scoring a model after it has learned from what it wrote.
    """
    for name, value in (("steps", steps), ("support", support), ("query", query)):
        _checks.positive_int(name, value)
    _checks.between("real_share", real_share, 0, 1, ends="()")
    optimizer = scaled(optimizer, trainable)

    def draw(data: _Grouped, key: jax.Array) -> Episode:
        group_key, row_key = jax.random.split(key)
        chance = jnp.log(data.weights)
        group = data.group[jax.random.categorical(group_key, chance)]
        # The largest of noisy log-weights: rows without replacement.
        noisy = jnp.where(data.group == group, chance, -jnp.inf)
        noisy = noisy + jax.random.gumbel(row_key, noisy.shape)
        scores, rows = jax.lax.top_k(noisy, support + query)
        texts = jax.tree.map(lambda leaf: leaf[rows], data.texts)
        # A group with fewer texts fills the rest with rows that count for nothing.
        texts = texts._replace(mask=texts.mask & jnp.isfinite(scores)[:, None])
        take = lambda part: jax.tree.map(lambda leaf: leaf[part], texts)
        return Episode(take(slice(0, support)), take(slice(support, None)))

    train = training(learner, optimizer, draw, steps=steps, meta_batch=meta_batch, mesh=mesh)

    def update(
        state: TrainState, data: TrainingData, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        del key  # the state's key decides what is drawn
        groups = np.asarray(group_of(rollouts_of(data, "meta_step").tasks))
        grouped = _grouped(data, groups, real_share)
        state, metrics = train(state, grouped, scale)
        lengths = np.concatenate([data.new.lengths, data.real.lengths])
        tokens = meta_batch * (support + query) * np.average(lengths, weights=grouped.weights)
        return state, metrics, round(steps * tokens)

    return Update(
        "meta-learning on its own examples",
        lambda params, key: train_state(optimizer, params, key),
        update,
    )


def _grouped(data: TrainingData, group: np.ndarray, real_share: float) -> _Grouped:
    """A round's examples, and real ones grouped by their length."""
    new, real = data.new, data.real
    width = max(new.tokens.shape[1], real.tokens.shape[1])
    new_share = 1 - real_share if new.weights.any() else 0.0
    chances = [
        share * part.weights / max(part.weights.sum(), 1e-9)
        for share, part in ((new_share, new), (1 - new_share, real))
    ]
    texts = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *(_texts(part, width) for part in (new, real))
    )
    texts = lm.with_places(texts)
    # Real groups are negative, so that none has both.
    groups = np.concatenate([group, -1 - real.lengths])
    return _Grouped(texts, groups.astype(np.int32), np.concatenate(chances).astype(np.float32))


def _texts(examples: Examples, width: int) -> lm.TokenBatch:
    tokens = np.pad(examples.tokens, ((0, 0), (0, width - examples.tokens.shape[1])))
    place = np.arange(width)
    mask = (place >= examples.prompt[:, None]) & (place < examples.lengths[:, None])
    return lm.TokenBatch(tokens, mask=mask)
