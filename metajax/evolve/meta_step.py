"""A step of meta-learning on tasks that the model proposed itself.

A round's examples of one group, such as one level, are a task: some are a support set that the
learner adapts to, others the query set that is scored after it. So the model learns to learn from
what it proposed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.evolve.data import Data, round_of
from metajax.evolve.types import Examples, Tasks
from metajax.evolve.updates import Update, init_state, scaled, to_train, trainers
from metajax.learners.base import Learner
from metajax.trainer import TrainState
from metajax.types import Episode, Metrics


class Grouped(NamedTuple):
    """Examples of which those of a group make a task.

    Attributes:
        texts: a ``lm.TokenBatch``, a text a row.
        group: integers ``[n]``.
        weights: ``[n]``, how often each is drawn.
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
    """Meta-trains on self-proposed episodes: propose a support set, ``adapt`` on it, score the
    query.

    Args:
        learner: such as ``metajax.maml(lm.next_token_loss(apply), optax.sgd(0.1), steps=1)``, whose
            meta-parameters are the parameters.
        optimizer: the outer optimizer.
        steps: meta-steps a round.
        support: texts that are adapted to.
        query: texts that are scored.
        meta_batch: tasks in a meta-step.
        real_share: share of tasks made of real data, in (0, 1).
        group_of: which of a round's tasks belong together, integers ``[n]``.
        trainable: which leaves the outer optimizer moves.
        mesh: devices that share the tasks.

    Raises:
        ArgumentError: an argument is out of its bounds.

    Source: Finn et al. 2017 (arXiv 1703.03400) for the step; Zweiger et al. 2025, "SEAL"
    (arXiv 2506.10943), for a model that is scored after it has learned from what it wrote.
    """
    for name, value in (("steps", steps), ("support", support), ("query", query)):
        _checks.positive_int(name, value)
    real_share = _checks.between("real_share", real_share, 0, 1, ends="()")
    full = scaled(optimizer, trainable)

    def draw(data: Grouped, key: jax.Array) -> Episode:
        first_key, own_key = jax.random.split(key)
        chance = jnp.log(data.weights)
        group = data.group[jax.random.categorical(first_key, chance)]
        # The largest of noisy log-weights: rows without replacement.
        noisy = jnp.where(data.group == group, chance, -jnp.inf)
        noisy = noisy + jax.random.gumbel(own_key, noisy.shape)
        scores, rows = jax.lax.top_k(noisy, support + query)
        texts = jax.tree.map(lambda leaf: leaf[rows], data.texts)
        # A group with fewer texts fills the rest with rows that count for nothing.
        texts = texts._replace(mask=texts.mask & jnp.isfinite(scores)[:, None])
        take = lambda part: jax.tree.map(lambda leaf: leaf[part], texts)
        return Episode(take(slice(0, support)), take(slice(support, None)))

    trainer_of = trainers(learner, full, meta_batch=meta_batch, mesh=mesh)

    def update(
        state: TrainState, data: Data, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        del key  # the state's own decides what is drawn
        grouped = grouped_of(
            data, np.asarray(group_of(round_of(data, "meta_step").tasks)), real_share
        )
        sample = jax.tree_util.Partial(draw, grouped)
        trainer = trainer_of(sample)
        state, metrics = trainer.run(to_train(state, scale, mesh), steps, sample=sample)
        lengths = np.concatenate([data.new.lengths, data.real.lengths])
        tokens = meta_batch * (support + query) * np.average(lengths, weights=grouped.weights)
        return state, metrics, round(steps * tokens)

    return Update("meta-learning on own episodes", lambda p, key: init_state(full, p, key), update)


def grouped_of(data: Data, group: np.ndarray, real_share: float) -> Grouped:
    """A round's examples and real ones; real ones are grouped by their length."""
    new, real = data.new, data.real
    width = max(new.tokens.shape[1], real.tokens.shape[1])
    share = 1 - real_share if new.weights.any() else 0.0
    chances = [
        s * part.weights / max(part.weights.sum(), 1e-9)
        for s, part in ((share, new), (1 - share, real))
    ]
    parts = [_texts(part, width) for part in (new, real)]
    texts = lm.TokenBatch(
        *(
            None if leaves[0] is None else np.concatenate(leaves)
            for leaves in zip(*parts, strict=True)
        )
    )
    # Below zero, so that no group has both.
    groups = np.concatenate([group, -1 - real.lengths])
    return Grouped(texts, groups.astype(np.int32), np.concatenate(chances).astype(np.float32))


def _texts(examples: Examples, width: int) -> lm.TokenBatch:
    tokens = np.pad(examples.tokens, ((0, 0), (0, width - examples.tokens.shape[1])))
    place = np.arange(width)
    mask = (place >= examples.prompt[:, None]) & (place < examples.lengths[:, None])
    return lm.TokenBatch(tokens, mask=mask)
