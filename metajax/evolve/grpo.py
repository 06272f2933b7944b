"""GRPO: a policy gradient in which the samples of a task are compared with each other."""

import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax import _checks, lm, trees
from metajax.errors import ArgumentError
from metajax.evolve._updates import initial_params, rollouts_of, scaled, train_state, training
from metajax.evolve.completions import rewards_of
from metajax.evolve.data import sampled_examples
from metajax.evolve.types import Examples, Rollouts, TrainingData, Update
from metajax.lm._token_batch import token_losses
from metajax.losses import Apply
from metajax.parallel import _devices as devices
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
    clip: float | tuple[float, float] = 0.2,
    normalise: Literal["answers", "tokens"] | float = "tokens",
    only_ended: bool = False,
    real_share: float = 0.25,
    trainable: trees.Trainable = None,
    mesh: Mesh | None = None,
) -> Update:
    """Group relative policy optimization, with the verifier's label as the reward.

    A sample's reward r is what ``Verdict.rewards`` says. Without these it is 1 if the sample equals
    the label, else 0. All rewards of a task whose label isn't trusted are 0. A sample's advantage
    is A = (r − mean r) / std r over the samples of its task, and 0 if these are all alike. The loss
    of a token, with the ratio ρ = π(token) / π_old(token), is

        −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) + β (π_0/π − log(π_0/π) − 1).

    π is the policy at ``temperature``, π_old the same at the start of the round, and π_0 the same
    at the parameters that ``init`` got, which are kept in the optimizer's state. So ρ is 1 in the
    first of a round's steps alone.

    ``normalise`` says how the losses of tokens become one. Published variants are:

    - GRPO: ``normalise="answers"``, the mean over answers of the mean over each answer's tokens.
    - DAPO: ``normalise="tokens", clip=(0.2, 0.28), kl=0, only_ended=True``, the mean over all
      tokens. Each micro-batch has a mean of its own; ``micro_batches=1`` is as published.
    - Dr. GRPO: ``normalise=c``, a number such as the most tokens that an answer may have: the sum
      over each answer's tokens, divided by c, and A = r − mean r.

    In all of them samples with advantage 0 are not drawn, so tasks whose samples are all right or
    all wrong are left out (as in DAPO). A share of each batch is real data, whose loss is the
    cross-entropy at temperature 1. std is that of the samples themselves; libraries that divide by
    k − 1 of k samples have advantages √((k − 1) / k) of these.

    Args:
        apply: ``apply(params, tokens)`` returns logits.
        optimizer: any Optax transformation.
        steps: updates a round.
        temperature: that of the solver; ``evolve`` refuses a ``model_solver`` of another.
        batch: texts in an update.
        micro_batches: number of parts of an update that are computed one after another.
        kl: β, at least 0.
        clip: ε, positive; or a pair (ε_low, ε_high).
        normalise: ``"answers"``, ``"tokens"`` or a positive number.
        only_ended: whether answers without an end token are not drawn. They count in the mean and
            the standard deviation of their task.
        real_share: share of real data, in (0, 1).
        trainable: which leaves learn; all if None.
        mesh: devices that share the micro-batches.

    Raises:
        ArgumentError: an argument is out of its bounds; when run, a solver with a single sample.

    Example:
        >>> dapo = {"normalise": "tokens", "clip": (0.2, 0.28), "kl": 0.0, "only_ended": True}
        >>> update = grpo(lambda params, tokens: params[tokens], optax.sgd(0.1), steps=4, **dapo)

    Source: Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), equations 3 and 4; Yu et al. 2025,
    "DAPO" (arXiv 2503.14476); Liu et al. 2025, "Understanding R1-Zero-Like Training" (arXiv
    2503.20783), for Dr. GRPO.
    """
    for name, value in (("steps", steps), ("batch", batch), ("micro_batches", micro_batches)):
        _checks.positive_int(name, value)
    if batch % micro_batches:
        raise ArgumentError(
            f"batch must be a multiple of micro_batches={micro_batches}, got {batch}."
        )
    _checks.positive_float("temperature", temperature)
    _checks.non_negative_float("kl", kl)
    low, high = _clip_of(clip)
    if isinstance(normalise, str):
        _checks.one_of("normalise", normalise, ("answers", "tokens"))
    else:
        _checks.positive_float("normalise", normalise)
    _checks.instance("only_ended", only_ended, bool, "True or False")
    _checks.between("real_share", real_share, 0, 1, ends="()")
    optimizer = scaled(optimizer, trainable, keep_initial=kl > 0)
    size = batch // micro_batches

    def loss_fn(params: Params, scored: _Scored) -> tuple[jax.Array, Metrics]:
        real, mask = scored.real[:, None], scored.mask[:, 1:]
        sampled = mask & ~real
        temperatures = jnp.where(real, 1.0, temperature)
        log_probs = _log_probs(apply, params, scored, temperatures)
        # Elsewhere ``old`` and ``reference`` are 0, of which an exponential might be infinite.
        against = lambda other, sign: jnp.where(sampled, sign * (log_probs - other[:, 1:]), 0)
        ratio = jnp.exp(against(scored.old, 1))
        advantage = scored.advantage[:, None]
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
        metrics = {}
        if kl:
            difference = against(scored.reference, -1)
            divergence = jnp.exp(difference) - difference - 1
            gain = gain - kl * divergence
            metrics["kl"] = divergence.sum() / jnp.maximum(sampled.sum(), 1)
        losses = jnp.where(mask, jnp.where(real, -log_probs, -gain), 0)
        if normalise == "tokens":
            return losses.sum() / jnp.maximum(mask.sum(), 1), metrics
        count = jnp.maximum(mask.sum(axis=1), 1) if normalise == "answers" else normalise
        return (losses.sum(axis=1) / count).mean(), metrics

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
            rows_of = jax.tree.map(operator.itemgetter(part), scored)
            found[part, 1:] = devices.to_host(policy(params, rows_of))
        return found * scored.mask

    def update(
        state: TrainState, data: TrainingData, key: jax.Array, scale: float = 1.0
    ) -> tuple[TrainState, Metrics, int]:
        del key  # the state's key decides what is drawn
        scored, lengths, weights = _scored(
            rollouts_of(data, "grpo"),
            data.real,
            real_share,
            standardise=isinstance(normalise, str),
            only_ended=only_ended,
        )
        rows = np.flatnonzero(~scored.real & (weights > 0))
        scored = scored._replace(old=log_probs_under(state.params, scored, rows))
        if kl:
            reference = log_probs_under(initial_params(state), scored, rows)
            scored = scored._replace(reference=reference)
        state, metrics = train(state, (scored, weights), scale)
        return state, metrics, round(steps * batch * np.average(lengths, weights=weights))

    init = lambda params, key: train_state(optimizer, params, key)
    return Update("GRPO", init, update, float(temperature))


def _clip_of(clip: float | tuple[float, float]) -> tuple[float, float]:
    """ε_low and ε_high."""
    if not isinstance(clip, tuple | list):
        each = _checks.positive_float("clip", clip)
        return each, each
    if len(clip) != 2:
        raise ArgumentError(f"clip must be a number or a pair (low, high), got {clip!r}.")
    low, high = (_checks.positive_float(f"clip[{place}]", each) for place, each in enumerate(clip))
    return low, high


def _scored(
    rollouts: Rollouts,
    real: Examples,
    real_share: float,
    *,
    standardise: bool = True,
    only_ended: bool = False,
) -> tuple[_Scored, np.ndarray, np.ndarray]:
    """A round's completions and real data, their lengths, and how often each is drawn.

    Those whose advantage is 0 are not drawn. ``old`` and ``reference`` are 0 still.
    """
    n, samples, _ = np.shape(rollouts.completions.tokens)
    if samples < 2:
        raise ArgumentError("grpo compares a task's samples: solve must give at least 2, got 1.")
    advantage = _advantages(rollouts, standardise)
    drawn = advantage != 0
    if only_ended:
        drawn &= np.asarray(rollouts.completions.ended)
    sampled = sampled_examples(rollouts, drawn)
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
        both(advantage.reshape(-1), np.ones(len(real.tokens))).astype(np.float32),
        np.arange(len(mask)) >= n * samples,
        zero,
        zero,
        texts.places,
    )
    return scored, total, np.concatenate(chances).astype(np.float32)


def _advantages(rollouts: Rollouts, standardise: bool = True) -> np.ndarray:
    """Each sample's reward compared with those of its task: ``[n, samples]``."""
    reward = rewards_of(rollouts)
    compared = reward - reward.mean(axis=1, keepdims=True)
    # Rounding would make a little of rewards that are all alike.
    compared[np.ptp(reward, axis=1) == 0] = 0
    if not standardise:
        return compared
    spread = reward.std(axis=1, keepdims=True)
    return compared / np.where(spread > 0, spread, 1)


def _log_probs(apply: Apply, params: Params, scored: _Scored, temperature: Any) -> jax.Array:
    """Log-probability of each of an answer's tokens, ``[n, width - 1]``; elsewhere any number.
    ``temperature`` is a number or ``[n, 1]``."""
    losses, _ = token_losses(apply, params, scored.tokens, scored.places, temperature)
    return -losses
