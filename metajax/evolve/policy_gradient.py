"""Policy gradient on what was answered: samples of one task are compared with each other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.errors import ArgumentError
from metajax.evolve.data import Data, Round, as_examples, round_of
from metajax.evolve.types import Answers, Examples
from metajax.evolve.updates import Update, init_state, scaled, to_train, trainers
from metajax.losses import Apply
from metajax.trainer import TrainState
from metajax.types import Metrics, Params


class Scored(NamedTuple):
    """Answers and how they compare with others to the same task.

    Attributes:
        tokens: whole texts ``[n, width]``, padded on the right.
        mask: which of them are the answer's, ``[n, width]``.
        advantage: ``[n]``; of real data 1.
        real: ``[n]``, whether the answer is real data, which is imitated.
        old: log-probabilities of the tokens when they were drawn, ``[n, width]``; 0 elsewhere.
        reference: those under the parameters that the update is anchored to, the same.
    """

    tokens: Any
    mask: Any
    advantage: Any
    real: Any
    old: Any
    reference: Any


def policy_gradient(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch: int = 64,
    micro_batches: int = 8,
    kl: float = 0.05,
    clip: float = 0.2,
    real_share: float = 0.25,
    trainable: trees.Trainable = None,
    mesh: Mesh | None = None,
) -> Update:
    """Makes answers likelier that the verifier chose, and others less likely.

    A sample's reward r is 1 where it is the label and the label is trusted, else 0; its advantage
    is A = (r − mean r) / std r over the samples of its task, 0 where all are alike. Per token, with
    the ratio ρ = π(token) / π_old(token),

        −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β (π_0/π − log π_0/π − 1),

    whose second term is an estimate of the divergence from the anchor π_0, the parameters that
    ``init`` got. The reward of a task that isn't trusted is 0 for all samples, so that it teaches
    nothing. A share of each batch is real data, imitated as in fine-tuning.

    Args:
        apply: as for ``fine_tune``.
        optimizer: any Optax transformation.
        steps: updates a round.
        batch: answers in an update.
        micro_batches: in how many parts they are computed, one after another.
        kl: β, at least 0.
        clip: ε, positive.
        real_share: share of real data, in (0, 1).
        trainable: which leaves learn.
        mesh: devices that share the micro-batches.

    Raises:
        ArgumentError: an argument is out of its bounds; when run, a solver with a single sample.

    Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), equations 3 and 4.
    """
    steps = _checks.positive_int("steps", steps)
    if _checks.positive_int("batch", batch) % _checks.positive_int("micro_batches", micro_batches):
        raise ArgumentError(
            f"batch must be a multiple of micro_batches={micro_batches}, got {batch}."
        )
    kl = _checks.non_negative_float("kl", kl)
    clip = _checks.positive_float("clip", clip)
    real_share = _checks.between("real_share", real_share, 0, 1, ends="()")
    full = scaled(optimizer, trainable)

    def loss_fn(params: Params, scored: Scored) -> tuple[jax.Array, Metrics]:
        log_probs, mask = _log_probs(apply, params, scored.tokens), scored.mask[:, 1:]
        ratio = jnp.exp(log_probs - scored.old[:, 1:])
        advantage = scored.advantage[:, None]
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
        difference = scored.reference[:, 1:] - log_probs
        divergence = jnp.exp(difference) - difference - 1
        real = scored.real[:, None]
        losses = jnp.where(real, -log_probs, kl * divergence - gain)
        count = jnp.maximum(mask.sum(), 1)
        own = mask & ~real
        metrics = {"kl": jnp.where(own, divergence, 0).sum() / jnp.maximum(own.sum(), 1)}
        return jnp.where(mask, losses, 0).sum() / count, metrics

    def draw(data, key):
        scored, weights = data
        rows = jax.random.categorical(key, jnp.log(weights), shape=(batch // micro_batches,))
        return lm.as_episodes(lambda _: jax.tree.map(lambda leaf: leaf[rows], scored))(key)

    trainer_of = trainers(lm.supervised(loss_fn), full, meta_batch=micro_batches, mesh=mesh)
    anchor: dict[str, Params] = {}
    log_probs_of = jax.jit(lambda params, tokens: _log_probs(apply, params, tokens))

    def init(params: Params, key: jax.Array) -> TrainState:
        anchor["params"] = params
        return init_state(full, params, key)

    def update(
        state: TrainState, data: Data, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        del key  # the state's own decides what is drawn
        scored, lengths, weights = scored_of(
            round_of(data, "policy_gradient"), data.real, real_share
        )
        # Where it counts, and no more at a time than in an update: a vocabulary may be large.
        reference, size = np.zeros_like(scored.old), batch // micro_batches
        rows = np.flatnonzero(~scored.real & (weights > 0))
        for start in range(0, len(rows), size):
            own = np.resize(rows[start : start + size], size)
            reference[own, 1:] = log_probs_of(anchor["params"], scored.tokens[own])
        scored = scored._replace(reference=reference * scored.mask)
        sample = jax.tree_util.Partial(draw, (scored, weights))
        trainer = trainer_of(sample)
        state, metrics = trainer.run(to_train(state, scale, mesh), steps, sample=sample)
        return state, metrics, round(steps * batch * np.average(lengths, weights=weights))

    return Update("policy gradient", init, update)


def scored_of(
    made: Round, real: Examples, real_share: float
) -> tuple[Scored, np.ndarray, np.ndarray]:
    """A round's answers and real data as ``Scored``, their lengths, and how often each is drawn.

    Answers whose advantage is 0 are not drawn. ``reference`` is 0 still.
    """
    tokens, log_probs, lengths, _ = map(np.asarray, made.attempts)
    n, samples, width = tokens.shape
    if samples < 2:
        raise ArgumentError(
            "policy_gradient compares a task's samples: solve must give at least 2, got 1."
        )
    advantage = advantages(made).reshape(-1)
    repeat = lambda leaf: np.repeat(np.asarray(leaf), samples, axis=0)
    flat = Answers(tokens.reshape(-1, width), lengths.reshape(-1))
    own = as_examples(jax.tree.map(repeat, made.tasks), flat, np.abs(advantage) > 0)
    count = min(len(real.tokens), n * samples)
    room = max(own.tokens.shape[1], real.tokens.shape[1])
    wide = lambda rows: np.pad(rows, ((0, 0), (0, room - rows.shape[1])))
    both = lambda first, second: np.concatenate([first, second[:count]])
    place = np.arange(room)
    prompt, total = both(own.prompt, real.prompt), both(own.lengths, real.lengths)
    mask = (place >= prompt[:, None]) & (place < total[:, None])
    old = np.zeros(mask.shape, np.float32)
    rows, columns = np.nonzero(mask[: n * samples])
    old[rows, columns] = log_probs.reshape(-1, width)[rows, columns - own.prompt[rows]]
    weights = [own.weights, real.weights[:count]]
    share = (1 - real_share, real_share) if own.weights.any() else (0.0, 1.0)
    chances = [s * w / max(w.sum(), 1e-9) for s, w in zip(share, weights, strict=True)]
    scored = Scored(
        both(wide(own.tokens), wide(real.tokens)),
        mask,
        both(advantage, np.ones(len(real.tokens))).astype(np.float32),
        np.arange(len(mask)) >= n * samples,
        old,
        np.zeros_like(old),
    )
    return scored, total, np.concatenate(chances).astype(np.float32)


def advantages(made: Round) -> np.ndarray:
    """Each sample's reward beside that of its task's others: ``[n, samples]``.

    Example:
        >>> from metajax.evolve.types import Attempts, Tasks, Verdict
        >>> tokens = np.array([[[1], [1], [2], [2]]])
        >>> attempts = Attempts(tokens, 0.0 * tokens, np.ones((1, 4), int), np.ones((1, 4), bool))
        >>> tasks = Tasks(None, None, None, np.array([True]))
        >>> advantages(Round(tasks, attempts, Verdict(np.array([2]), np.ones(1), np.ones(1))))
        array([[-1., -1.,  1.,  1.]])
    """
    tokens, lengths = np.asarray(made.attempts.tokens), np.asarray(made.attempts.lengths)
    choice = np.asarray(made.verdict.choice)[:, None]
    label = np.take_along_axis(tokens, choice[..., None], axis=1)
    same = (tokens == label).all(axis=-1) & (lengths == np.take_along_axis(lengths, choice, axis=1))
    trusted = np.asarray(made.tasks.valid) & (np.asarray(made.verdict.weight) > 0)
    reward = (same & trusted[:, None]).astype(float)
    spread = reward.std(axis=1, keepdims=True)
    return (reward - reward.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)


def _log_probs(apply: Apply, params: Params, tokens: jax.Array) -> jax.Array:
    """Log-probability of each token but the first, ``[n, width - 1]``."""
    logits = apply(params, tokens[:, :-1]).astype(jnp.float32)
    return -optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
