"""GRPO: a policy gradient in which the samples of a task are compared with each other."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.errors import ArgumentError
from metajax.evolve._updates import initial_params, rollouts_of, scaled, train_state, training
from metajax.evolve.data import as_examples
from metajax.evolve.types import Answers, Examples, Rollouts, TrainingData, Update
from metajax.lm._token_batch import token_losses
from metajax.losses import Apply
from metajax.trainer import TrainState
from metajax.types import Metrics, Params


class _Scored(NamedTuple):
    """Completions with advantages, and real data.

    Attributes:
        tokens: whole texts ``[n, width]``, padded on the right.
        mask: which tokens are the answer's, ``[n, width]``.
        advantage: ``[n]``; 1 for real data.
        real: ``[n]``, whether a text is real data, which is imitated.
        old: log-probabilities under the policy that drew the tokens, ``[n, width]``; 0 elsewhere.
        reference: log-probabilities under the initial parameters, the same.
        places: of the answers' tokens, as a ``TokenBatch`` has them.
    """

    tokens: Any
    mask: Any
    advantage: Any
    real: Any
    old: Any
    reference: Any
    places: Any


def grpo(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    temperature: float = 1.0,
    batch: int = 64,
    micro_batches: int = 8,
    kl: float = 0.05,
    clip: float = 0.2,
    real_share: float = 0.25,
    trainable: trees.Trainable = None,
    mesh: Mesh | None = None,
) -> Update:
    """Group relative policy optimization, with the verifier's label as the reward.

    A sample's reward r is 1 if it equals the label and the label is trusted, else 0. Its advantage
    is A = (r − mean r) / std r over the samples of its task, and 0 if these are all alike. The loss
    of a token, with the ratio ρ = π(token) / π_old(token), is

        −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) + β (π_0/π − log(π_0/π) − 1).

    π is the policy at ``temperature``, π_old the same at the start of the round, and π_0 the same
    at the parameters that ``init`` got, which are kept in the optimizer's state.

    It differs from the paper in three points. The loss is a mean over the tokens of a micro-batch,
    not over answers (as in DAPO, arXiv 2503.14476). Samples with advantage 0 are not drawn. A share
    of each batch is real data, whose loss is the cross-entropy at temperature 1.

    Args:
        apply: ``apply(params, tokens)`` returns logits.
        optimizer: any Optax transformation.
        steps: updates a round.
        temperature: that of the solver; ``evolve`` refuses a ``model_solver`` of another.
        batch: texts in an update.
        micro_batches: number of parts of an update that are computed one after another.
        kl: β, at least 0.
        clip: ε, positive.
        real_share: share of real data, in (0, 1).
        trainable: which leaves learn; all if None.
        mesh: devices that share the micro-batches.

    Raises:
        ArgumentError: an argument is out of its bounds; when run, a solver with a single sample.

    Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), equations 3 and 4.
    """
    for name, value in (("steps", steps), ("batch", batch), ("micro_batches", micro_batches)):
        _checks.positive_int(name, value)
    if batch % micro_batches:
        raise ArgumentError(
            f"batch must be a multiple of micro_batches={micro_batches}, got {batch}."
        )
    _checks.positive_float("temperature", temperature)
    _checks.non_negative_float("kl", kl)
    _checks.positive_float("clip", clip)
    _checks.between("real_share", real_share, 0, 1, ends="()")
    optimizer = scaled(optimizer, trainable, keep_initial=kl > 0)
    size = batch // micro_batches

    def loss_fn(params: Params, scored: _Scored) -> tuple[jax.Array, Metrics]:
        real, mask = scored.real[:, None], scored.mask[:, 1:]
        temperatures = jnp.where(real, 1.0, temperature)
        log_probs = _log_probs(apply, params, scored, temperatures)
        ratio = jnp.exp(log_probs - scored.old[:, 1:])
        advantage = scored.advantage[:, None]
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
        metrics = {}
        if kl:
            difference = scored.reference[:, 1:] - log_probs
            divergence = jnp.exp(difference) - difference - 1
            gain = gain - kl * divergence
            sampled = mask & ~real
            total = jnp.where(sampled, divergence, 0).sum()
            metrics["kl"] = total / jnp.maximum(sampled.sum(), 1)
        losses = jnp.where(real, -log_probs, -gain)
        return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1), metrics

    def draw(data, key):
        scored, weights = data
        rows = jax.random.categorical(key, jnp.log(weights), shape=(size,))
        return lm.as_episodes(lambda _: jax.tree.map(lambda leaf: leaf[rows], scored))(key)

    train = training(
        lm.supervised(loss_fn), optimizer, draw, steps=steps, meta_batch=micro_batches, mesh=mesh
    )
    policy = jax.jit(lambda params, scored: _log_probs(apply, params, scored, temperature))

    def log_probs_under(params: Params, scored: _Scored, rows: np.ndarray) -> np.ndarray:
        """Of the answers of some rows; as many at a time as in an update."""
        found = np.zeros(scored.tokens.shape, np.float32)
        for start in range(0, len(rows), size):
            part = np.resize(rows[start : start + size], size)
            found[part, 1:] = policy(params, jax.tree.map(operator.itemgetter(part), scored))
        return found * scored.mask

    def update(
        state: TrainState, data: TrainingData, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        del key  # the state's key decides what is drawn
        scored, lengths, weights = _scored(rollouts_of(data, "grpo"), data.real, real_share)
        rows = np.flatnonzero(~scored.real & (weights > 0))
        scored = scored._replace(old=log_probs_under(state.params, scored, rows))
        if kl:
            reference = log_probs_under(initial_params(state), scored, rows)
            scored = scored._replace(reference=reference)
        state, metrics = train(state, (scored, weights), scale)
        return state, metrics, round(steps * batch * np.average(lengths, weights=weights))

    init = lambda params, key: train_state(optimizer, params, key)
    return Update("GRPO", init, update, float(temperature))


def _scored(
    rollouts: Rollouts, real: Examples, real_share: float
) -> tuple[_Scored, np.ndarray, np.ndarray]:
    """A round's completions and real data, their lengths, and how often each is drawn.

    Those whose advantage is 0 are not drawn. ``old`` and ``reference`` are 0 still.
    """
    tokens, _, lengths, _ = map(np.asarray, rollouts.completions)
    n, samples, width = tokens.shape
    if samples < 2:
        raise ArgumentError("grpo compares a task's samples: solve must give at least 2, got 1.")
    advantage = _advantages(rollouts).reshape(-1)
    repeat = lambda leaf: np.repeat(np.asarray(leaf), samples, axis=0)
    flat = Answers(tokens.reshape(-1, width), lengths.reshape(-1))
    sampled = as_examples(jax.tree.map(repeat, rollouts.tasks), flat, np.abs(advantage) > 0)
    count = min(len(real.tokens), n * samples)
    room = max(sampled.tokens.shape[1], real.tokens.shape[1])
    wide = lambda rows: np.pad(rows, ((0, 0), (0, room - rows.shape[1])))
    both = lambda first, second: np.concatenate([first, second[:count]])
    place = np.arange(room)
    prompt, total = both(sampled.prompt, real.prompt), both(sampled.lengths, real.lengths)
    mask = (place >= prompt[:, None]) & (place < total[:, None])
    weights = [sampled.weights, real.weights[:count]]
    shares = (1 - real_share, real_share) if sampled.weights.any() else (0.0, 1.0)
    chances = [s * w / max(w.sum(), 1e-9) for s, w in zip(shares, weights, strict=True)]
    zero = np.zeros(mask.shape, np.float32)
    texts = lm.with_places(lm.TokenBatch(both(wide(sampled.tokens), wide(real.tokens)), mask=mask))
    scored = _Scored(
        texts.tokens,
        mask,
        both(advantage, np.ones(len(real.tokens))).astype(np.float32),
        np.arange(len(mask)) >= n * samples,
        zero,
        zero,
        texts.places,
    )
    return scored, total, np.concatenate(chances).astype(np.float32)


def _advantages(rollouts: Rollouts) -> np.ndarray:
    """Each sample's reward compared with those of its task: ``[n, samples]``."""
    tokens, _, lengths, _ = map(np.asarray, rollouts.completions)
    choice = np.asarray(rollouts.verdict.choice)[:, None]
    label = np.take_along_axis(tokens, choice[..., None], axis=1)
    same = (tokens == label).all(axis=-1) & (lengths == np.take_along_axis(lengths, choice, axis=1))
    trusted = np.asarray(rollouts.tasks.valid) & (np.asarray(rollouts.verdict.weight) > 0)
    reward = (same & trusted[:, None]).astype(float)
    spread = reward.std(axis=1, keepdims=True)
    return (reward - reward.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)


def _log_probs(apply: Apply, params: Params, scored: _Scored, temperature: Any) -> jax.Array:
    """Log-probability of each of an answer's tokens, ``[n, width - 1]``; elsewhere any number.
    ``temperature`` is a number or ``[n, 1]``."""
    losses, _ = token_losses(apply, params, scored.tokens, scored.places, temperature)
    return -losses
