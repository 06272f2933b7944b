"""Scores of a learner on held-out episodes, with confidence intervals."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from metajax import _checks
from metajax._samplers import HoistedSampler, episode_keys, typed_key
from metajax.errors import ArgumentError
from metajax.learners._checked import check_labels, reported
from metajax.learners.base import Learner, adapt_to
from metajax.parallel import _chunks as chunks
from metajax.parallel import _devices as devices
from metajax.types import Episode, Params, PyTree, Sampler


class Scores(NamedTuple):
    """What ``evaluator`` measures; the names are ``"loss"`` and what the learner's loss reports.

    Attributes:
        episodes: how many episodes were scored.
        mean: the mean over episodes after the last inner step.
        std: the standard deviation over episodes after the last inner step (with n − 1).
        ci95: half the width of the 95 % confidence interval of ``mean``: 1.96 · std / √episodes.
        curve: the means before the first and after every inner step, ``[steps + 1]``; without a
            curve, after the last alone, ``[1]``.
        curve_ci95: half the widths of their 95 % confidence intervals, like ``curve``.
        values: every episode's figures, ``[episodes, steps + 1]``, or ``[episodes, 1]``.
    """

    episodes: int
    mean: dict[str, float]
    std: dict[str, float]
    ci95: dict[str, float]
    curve: dict[str, np.ndarray]
    curve_ci95: dict[str, np.ndarray]
    values: dict[str, np.ndarray]


def evaluator(
    learner: Learner,
    sample: Sampler,
    *,
    episodes: int = 600,
    curve: bool = True,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Params, jax.Array], Scores]:
    """Builds the evaluation of a learner: adapt to episodes, score their query sets.

    The first call compiles it, later ones don't. The program and the sampler's arrays live as long
    as the function that is returned.

    Args:
        learner: the algorithm; for another number of inner steps than in training, build it again
            with that number.
        sample: ``sample(key) -> Episode``; as for ``meta_trainer``.
        episodes: how many episodes, at least 2.
        curve: whether to score before and between the inner steps too; each takes a pass over the
            query set.
        tasks_per_chunk: how many are computed together; if None, one on a CPU and all elsewhere.
        mesh: the devices that share the episodes, equally or not, from ``metajax.task_mesh``; JAX's
            default device if None.

    Returns:
        ``score(params, key) -> Scores``: ``params`` are meta-parameters, as in
        ``TrainState.params``; episode i is drawn from ``key`` folded with 0 and with i. The scores
        are on the host, the same on every process of the mesh.

    Raises:
        ArgumentError: if ``episodes`` is less than 2 or ``tasks_per_chunk`` isn't a positive
            integer; when called, if a metric isn't a scalar.
        ArgumentTypeError: if ``sample`` doesn't return an ``Episode``, or ``key`` isn't a key.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metajax
        >>> def sample(key):
        ...     centre = jax.random.normal(key)
        ...     return metajax.Episode(centre, centre)
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> score = metajax.evaluator(learner, sample, episodes=100)
        >>> scores = score(jnp.array(0.0), jax.random.key(0))
        >>> scores.episodes, round(float(scores.curve["loss"][0] / scores.curve["loss"][1]), 3)
        (100, 4.0)
    """
    _check_number(episodes)
    _check_chunk(tasks_per_chunk)
    # Each device takes equally many; the last episodes are left out of the scores again.
    per_device = -(-episodes // devices.size(mesh))
    sampler = HoistedSampler(sample, mesh)

    def values(params, key, arrays):
        def one_episode(episode_key):
            episode = sampler.draw(arrays, episode_key, keyed=learner.keyed)
            return _outcomes(learner, curve, params, episode)

        keys = episode_keys(key, 0, per_device, devices.first_task(per_device, mesh))
        return chunks.map_chunks(one_episode, keys, tasks_per_chunk=tasks_per_chunk)

    each = PartitionSpec(devices.AXIS)
    program = jax.jit(devices.share(values, mesh, in_specs=PartitionSpec(), out_specs=each))

    def score(params: Params, key: jax.Array) -> Scores:
        params, key = devices.replicate((params, typed_key(key)), mesh)
        found = devices.to_host(program(params, key, sampler.arrays(key)))
        return _summarise({name: rows[:episodes] for name, rows in found.items()})

    return score


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
    """Scores a learner once: ``evaluator(learner, sample, ...)(params, key)``.

    It compiles in every call; build an ``evaluator`` to score again and again.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metajax
        >>> sample = lambda key: metajax.Episode(*jax.random.normal(key, (2, 3)))
        >>> learner = metajax.maml(lambda p, x: jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=1)
        >>> scores = metajax.evaluate(
        ...     learner, jnp.zeros(3), sample, jax.random.key(0), episodes=20
        ... )
        >>> scores.values["loss"].shape
        (20, 2)
    """
    options = {"curve": curve, "tasks_per_chunk": tasks_per_chunk, "mesh": mesh}
    return evaluator(learner, sample, episodes=episodes, **options)(params, key)


def evaluate_episodes(
    learner: Learner,
    params: Params,
    episodes: Episode,
    *,
    curve: bool = True,
    tasks_per_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Scores:
    """Adapts to given episodes and scores their query sets: a fixed list, the same for everyone.

    It compiles in every call and keeps nothing.

    Args:
        learner: as for ``evaluator``; a keyed one needs ``episodes.key``, a key for each task.
        params: the meta-parameters.
        episodes: an ``Episode`` with a leading task axis ``[tasks, ...]``; at least 2 of them.
            Episodes of different sizes fit in one array as ``MaskedBatch``, by
            ``metajax.data.pad_episodes``.
        curve: as for ``evaluator``.
        tasks_per_chunk: as for ``evaluator``.
        mesh: as for ``evaluator``; its devices must be able to share the tasks equally.

    Returns:
        ``Scores``, on the host; ``values`` in the order of the list.

    Raises:
        ArgumentError: if there are fewer than 2 episodes, their leaves differ in number, the
            devices can't share them equally, ``tasks_per_chunk`` isn't a positive integer, or a
            label isn't the index of a class that the learner's loss knows.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> episodes = metajax.Episode(jnp.array([2.0, 4.0]), jnp.array([2.0, 4.0]))
        >>> scores = metajax.evaluate_episodes(learner, jnp.array(0.0), episodes)
        >>> scores.values["loss"].tolist()
        [[4.0, 1.0], [16.0, 4.0]]
    """
    count = chunks.count_tasks(episodes)
    _check_number(count)
    devices.equal_share("episodes", count, mesh)
    _check_chunk(tasks_per_chunk)
    check_labels(functools.partial(_outcomes, learner, False, params), episodes)

    def values(params, episodes):
        one_episode = functools.partial(_outcomes, learner, curve, params)
        return chunks.map_chunks(one_episode, episodes, tasks_per_chunk=tasks_per_chunk)

    each = PartitionSpec(devices.AXIS)
    shared = devices.share(values, mesh, in_specs=(PartitionSpec(), each), out_specs=each)
    params, episodes = devices.replicate((params, episodes), mesh)
    return _summarise(devices.to_host(jax.jit(shared)(params, episodes)))


def _check_number(episodes: int) -> None:
    if _checks.positive_int("episodes", episodes) < 2:
        raise ArgumentError(
            f"episodes must be at least 2 for a confidence interval, got {episodes}."
        )


def _check_chunk(tasks_per_chunk: int | None) -> None:
    if tasks_per_chunk is not None:
        _checks.positive_int("tasks_per_chunk", tasks_per_chunk)


def _outcomes(learner: Learner, curve: bool, params: Params, episode: Episode) -> PyTree:
    """What the loss reports before the first and after every inner step, ``[steps + 1]``; without a
    curve, after the last, ``[1]``."""

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


def _summarise(values: dict[str, np.ndarray]) -> Scores:
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
