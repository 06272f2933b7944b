"""A user's own episodes of different sizes, padded to one size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.data.arrays import _example_array
from metajax.data.episodes import _warn_if_channels_first
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import Episode, MaskedBatch


def pad_episodes(
    episodes: Sequence[Any],
    *,
    n_way: int | None = None,
    support: int | None = None,
    query: int | None = None,
) -> Episode:
    """Episodes of different sizes as one meta-batch, for ``evaluate_episodes`` and ``vmap``.

    Padding repeats a task's own examples with their labels. The masks keep it, and the classes that
    a task doesn't have, out of losses, accuracies and prototypes.

    Args:
        episodes: an ``Episode`` or a pair ``(support, query)`` for each task. Each of the two is a
            ``Batch`` or a pair: inputs ``[examples, ...]``, and targets ``[examples]``, which are
            integers from 0 to n − 1 for a task of n classes. The support set has each class, the
            query set may lack some.
        n_way: how many classes there is room for, such as a network's outputs; if None, as many as
            the task with the most has.
        support: how many support examples there is room for; if None, as many as the most.
        query: the same of the query set.

    Returns:
        An ``Episode`` of ``MaskedBatch``: inputs ``[tasks, support, ...]`` of the dtype that they
        have, targets and mask ``[tasks, support]``, classes ``[tasks, n_way]``; and as much of the
        query set. Where the episodes have keys, ``key`` is ``[tasks]``.

    Raises:
        ArgumentError: if there is no episode, a set is empty, its targets are others, inputs differ
            in shape or in kind (integers, floats), there is too little room, or only some episodes
            have a key.
        ArgumentTypeError: if an episode or a set is none of these.

    Warns:
        UserWarning: if images seem to have their channels first.

    Example:
        >>> first = ((np.eye(3), [0, 1, 2]), (np.ones((4, 3)), [0, 0, 1, 2]))
        >>> second = ((np.eye(3)[:2], [0, 1]), (np.ones((1, 3)), [1]))
        >>> episodes = pad_episodes([first, second])
        >>> episodes.support.targets.tolist(), episodes.support.mask.tolist()
        ([[0, 1, 2], [0, 1, 0]], [[True, True, True], [True, True, False]])
        >>> episodes.query.inputs.shape, episodes.query.classes.tolist()
        ((2, 4, 3), [[True, True, True], [True, True, False]])
    """
    tasks = [_episode(f"episodes[{i}]", episode) for i, episode in enumerate(episodes)]
    if not tasks:
        raise ArgumentError("episodes must be at least one, got none.")
    _check_kinds(tasks)
    _warn_if_channels_first("inputs", tasks[0].support.inputs)
    ways = np.array([1 + task.support.targets.max() for task in tasks])
    n_way = _room("n_way", n_way, ways)
    classes = np.arange(n_way) < ways[:, None]
    keys = [task.key for task in tasks if task.key is not None]
    if len(keys) not in (0, len(tasks)):
        raise ArgumentError(
            f"all episodes must have a key, or none, but {len(keys)} of {len(tasks)} have one."
        )
    return Episode(
        _padded("support", [task.support for task in tasks], support, classes),
        _padded("query", [task.query for task in tasks], query, classes),
        jnp.stack(keys) if keys else None,
    )


class _Set(NamedTuple):
    """One set of a task, on the host; its targets are int64."""

    inputs: np.ndarray
    targets: np.ndarray


def _padded(name: str, sets: list[_Set], room: int | None, classes: np.ndarray) -> MaskedBatch:
    sizes = np.array([len(each.targets) for each in sets])
    places = np.arange(_room(name, room, sizes))
    rows = [places % size for size in sizes]
    inputs = [each.inputs[row] for each, row in zip(sets, rows, strict=True)]
    targets = [each.targets[row] for each, row in zip(sets, rows, strict=True)]
    return MaskedBatch(
        jnp.asarray(np.stack(inputs)),
        jnp.asarray(np.stack(targets), jnp.int32),
        jnp.asarray(places < sizes[:, None]),
        jnp.asarray(classes),
    )


def _room(name: str, value: int | None, needed: np.ndarray) -> int:
    """The room that was asked for, or all that is needed."""
    if value is None:
        return int(needed.max())
    if _checks.positive_int(name, value) < needed.max():
        raise ArgumentError(
            f"{name} is {value}, but episodes[{needed.argmax()}] needs room for {needed.max()}."
        )
    return value


def _episode(name: str, episode: Any) -> Episode:
    """The two sets of a task as NumPy arrays, checked."""
    if not isinstance(episode, tuple | list) or len(episode) not in (2, 3):
        raise ArgumentTypeError(
            f"{name} must be an Episode or a pair (support, query), got {_checks.shown(episode)}."
        )
    support, query = _set(f"{name}.support", episode[0]), _set(f"{name}.query", episode[1])
    n_way = len(np.unique(support.targets))
    for part, targets in (("support", support.targets), ("query", query.targets)):
        if targets.min() < 0 or targets.max() >= n_way:
            found = _checks.shown(np.unique(targets).tolist())
            raise ArgumentError(
                f"{name}.{part}.targets must be from 0 to n − 1, where the support set has each of "
                f"the n classes, got {found} and {n_way} classes in the support set. Number the "
                "classes of each task from 0."
            )
    return Episode(support, query, episode[2] if len(episode) == 3 else None)


def _set(name: str, batch: Any) -> _Set:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ArgumentTypeError(
            f"{name} must be a Batch or a pair (inputs, targets), got {_checks.shown(batch)}."
        )
    inputs = _example_array(f"{name}.inputs", batch[0])
    targets = _checks.numbers(f"{name}.targets", batch[1], "integers [examples]")
    if targets.size == 0 or targets.shape != inputs.shape[:1]:
        raise ArgumentError(
            f"{name} must have inputs [examples, ...] and as many targets [examples], at least one,"
            f" got shapes {inputs.shape} and {targets.shape}."
        )
    if targets.dtype.kind not in "iu":
        raise ArgumentError(
            f"{name}.targets must be integers from 0 on, got {_checks.shown(batch[1])}."
        )
    return _Set(inputs, targets.astype(np.int64))


def _check_kinds(tasks: list[Episode]) -> None:
    """Raises an ArgumentError if inputs differ in shape, or in more than the size of a number."""
    first = tasks[0].support.inputs
    for i, task in enumerate(tasks):
        for part, inputs in (("support", task.support.inputs), ("query", task.query.inputs)):
            if (inputs.shape[1:], inputs.dtype.kind) != (first.shape[1:], first.dtype.kind):
                raise ArgumentError(
                    "inputs must have one shape and dtype, got "
                    f"{first.dtype}{list(first.shape[1:])} in episodes[0].support and "
                    f"{inputs.dtype}{list(inputs.shape[1:])} in episodes[{i}].{part}."
                )
