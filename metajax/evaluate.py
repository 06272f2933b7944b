"""Scores of a learner on held-out episodes, with confidence intervals."""

import functools
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.learners._checked import checked_episode, checked_learner, reported
from metajax.learners.base import Learner, adapt_to
from metajax.parallel import chunks, devices
from metajax.trainer import episode_keys, hoist_constants
from metajax.types import Episode, Params, PyTree, Sampler


class Scores(NamedTuple):
    """What ``evaluate`` measured; the names are ``"loss"`` and what the learner's loss reports.

    Attributes:
        episodes: how many episodes were drawn.
        mean: the mean over episodes after the last inner step.
        std: the standard deviation over episodes after the last inner step (with n − 1).
        ci95: half the width of the 95 % confidence interval of ``mean``: 1.96 · std / √episodes.
        curve: the means before the first and after every inner step, ``[steps + 1]``; after the
            last alone, ``[1]``, if no curve was asked for.
        curve_ci95: half the widths of their 95 % confidence intervals, as ``curve``.
        values: every episode's figures, ``[episodes, steps + 1]``, or ``[episodes, 1]``.
    """

    episodes: int
    mean: dict[str, float]
    std: dict[str, float]
    ci95: dict[str, float]
    curve: dict[str, np.ndarray]
    curve_ci95: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


def _outcomes(learner: Learner, curve: bool, params: Params, episode: Episode) -> PyTree:
    """What the loss reports before the first and after every inner step, ``[steps + 1]``; without
    the curve, after the last, ``[1]``."""

    def outcome(adapted):
        _, metrics = reported(learner, adapted, episode)
        for name, value in metrics.items():
            if not _checks.is_array(value) or jnp.shape(value):
                raise ArgumentError(
                    f"evaluate needs metrics that are scalars, but {name!r} isn't one; build the "
                    "learner without it (a network's running statistics: with train=False)."
                )
        return metrics

    if not curve:
        adapted, _ = adapt_to(learner, params, episode)
        return jax.tree.map(lambda value: jnp.asarray(value)[None], outcome(adapted))
    _, info = adapt_to(learner, params, episode, observe=outcome)
    return info.observed


@functools.lru_cache(maxsize=16)
def _scorer(learner: Learner, curve: bool, tasks_per_chunk: int | None, mesh: Mesh | None):
    """The compiled evaluation of given episodes."""

    def values(params, episodes):
        one_episode = functools.partial(_outcomes, learner, curve, params)
        return chunks.map_chunks(one_episode, episodes, tasks_per_chunk=tasks_per_chunk)

    each = PartitionSpec(devices.AXIS)
    return jax.jit(devices.share(values, mesh, in_specs=(PartitionSpec(), each), out_specs=each))


@functools.lru_cache(maxsize=16)
def _evaluator(
    learner: Learner,
    sample: Sampler,
    episodes: int,
    curve: bool,
    tasks_per_chunk: int | None,
    mesh: Mesh | None,
):
    """The compiled evaluation; cached, so that validating again and again compiles once."""
    draw, constants = hoist_constants(sample)
    constants = devices.replicate(constants, mesh)
    # Each device takes as many; the last episodes are left out of the result again.
    own = -(-episodes // devices.size(mesh))

    def values(params, key, constants):
        def one_episode(episode_key):
            return _outcomes(learner, curve, params, draw(constants, episode_key))

        keys = episode_keys(key, 0, own, devices.first_task(own, mesh))
        return chunks.map_chunks(one_episode, keys, tasks_per_chunk=tasks_per_chunk)

    shared = jax.jit(
        devices.share(values, mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(devices.AXIS))
    )

    def all_values(params, key):
        params, key = devices.replicate((params, key), mesh)
        found = devices.to_host(shared(params, key, constants))
        return {name: rows[:episodes] for name, rows in found.items()}

    return all_values


def evaluate(
    learner: Learner,
    params: Params,
    sample: Sampler,
    key: jax.Array,
    *,
    episodes: int = 600,
    curve: bool = True,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Scores:
    """Adapts to episodes that ``sample`` draws, and scores their query sets.

    Args:
        learner: the algorithm; for another number of inner steps than in training, build it again
            with that number.
        params: the meta-parameters, as in ``TrainState.params``.
        sample: ``sample(key) -> Episode``.
        key: episode i is drawn from this key, folded with 0 and with i.
        episodes: how many episodes, at least 2.
        curve: whether to score before and between the inner steps too, which takes a pass over the
            query set each.
        tasks_per_chunk: how many are computed together; if None, one on a CPU and all elsewhere.
        mesh: the devices that share the episodes, equally or not, from ``metajax.task_mesh``; JAX's
            default device if None.

    Returns:
        ``Scores``, on the host; the same on every process of the mesh.

    Raises:
        ArgumentError: if ``episodes`` is less than 2 or ``tasks_per_chunk`` isn't a positive
            integer.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metajax
        >>> def sample(key):
        ...     centre = jax.random.normal(key)
        ...     return metajax.Episode(centre, centre)
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> scores = metajax.evaluate(learner, jnp.array(0.0), sample, jax.random.key(0))
        >>> scores.episodes, round(float(scores.curve["loss"][0] / scores.curve["loss"][1]), 3)
        (600, 4.0)
    """
    checked_learner("learner", learner)
    _checks.arrays("params", params)
    _checks.key("key", key)
    _checks.function("sample", sample, "sample(key)")
    _checks.flag("curve", curve)
    _checks.positive_int("episodes", episodes)
    _check_enough(episodes)
    if tasks_per_chunk is not None:
        _checks.positive_int("tasks_per_chunk", tasks_per_chunk)
    if not isinstance(sample, Hashable):
        raise ArgumentTypeError(
            f"sample must be hashable, so that its evaluation is compiled once, got "
            f"{_checks.shown(sample)}; wrap it in a function."
        )
    values = _evaluator(learner, sample, episodes, curve, tasks_per_chunk, mesh)
    return summarise(values(params, key))


def evaluate_episodes(
    learner: Learner,
    params: Params,
    episodes: Episode,
    *,
    curve: bool = True,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Scores:
    """Adapts to given episodes, and scores their query sets: a fixed list, the same for everyone.

    Args:
        learner: the algorithm; as for ``evaluate``.
        params: the meta-parameters.
        episodes: an ``Episode`` with a leading task axis ``[tasks, ...]``; at least 2 of them.
            Episodes of different sizes fit in one array as ``MaskedBatch``.
        curve: as for ``evaluate``.
        tasks_per_chunk: as for ``evaluate``.
        mesh: as for ``evaluate``; its devices must be able to share the tasks equally.

    Returns:
        ``Scores``, on the host; ``values`` in the order of the list.

    Raises:
        ArgumentError: if there are fewer than 2 episodes, their leaves differ in number, the
            devices can't share them equally, or ``tasks_per_chunk`` isn't a positive integer.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> episodes = metajax.Episode(jnp.array([2.0, 4.0]), jnp.array([2.0, 4.0]))
        >>> scores = metajax.evaluate_episodes(learner, jnp.array(0.0), episodes)
        >>> scores.values["loss"].tolist()
        [[4.0, 1.0], [16.0, 4.0]]
    """
    checked_learner("learner", learner)
    _checks.arrays("params", params)
    _checks.flag("curve", curve)
    count = chunks.count_tasks(checked_episode("episodes", episodes))
    _check_enough(count)
    devices.equal_share("episodes", count, mesh)
    if tasks_per_chunk is not None:
        _checks.positive_int("tasks_per_chunk", tasks_per_chunk)
    params, episodes = devices.replicate((params, episodes), mesh)
    values = _scorer(learner, curve, tasks_per_chunk, mesh)(params, episodes)
    return summarise(devices.to_host(values))


def _check_enough(episodes: int) -> None:
    if episodes < 2:
        raise ArgumentError(
            f"episodes must be at least 2 for a confidence interval, got {episodes}."
        )


def summarise(values: dict[str, np.ndarray]) -> Scores:
    """Means, deviations and intervals of figures ``[episodes, steps + 1]``."""
    values = {name: np.asarray(rows, np.float64) for name, rows in values.items()}
    episodes = len(next(iter(values.values())))
    curve = {name: rows.mean(axis=0) for name, rows in values.items()}
    deviation = {name: rows.std(axis=0, ddof=1) for name, rows in values.items()}
    interval = {name: 1.96 * rows / np.sqrt(episodes) for name, rows in deviation.items()}
    return Scores(
        episodes=episodes,
        mean={name: float(rows[-1]) for name, rows in curve.items()},
        std={name: float(rows[-1]) for name, rows in deviation.items()},
        ci95={name: float(rows[-1]) for name, rows in interval.items()},
        curve=curve,
        curve_ci95=interval,
        values=values,
    )
