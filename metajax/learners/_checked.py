"""Checks of learners and episodes, for the functions that take any of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from metajax import _checks
from metajax.errors import ArgumentTypeError
from metajax.types import Episode, Metrics, Params


def reported(learner: Any, adapted: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
    """The learner's loss, and it among the metrics; an ArgumentError unless it is a scalar."""
    loss, metrics = _checks.value_and_aux(learner.loss(adapted, episode), name="learner.loss")
    if not isinstance(metrics, Mapping | None):
        raise ArgumentTypeError(
            f"learner.loss must return a dict of metrics beside the loss, got "
            f"{type(metrics).__name__}."
        )
    return loss, {"loss": loss, **(metrics or {})}


def checked_episode(name: str, episode: Any) -> Episode:
    """Returns what has a support and a query set, of arrays, or raises an ArgumentTypeError."""
    if not (hasattr(episode, "support") and hasattr(episode, "query")):
        raise ArgumentTypeError(
            f"{name} must be a metajax.Episode(support, query), got {_checks.shown(episode)}."
        )
    _checks.arrays(name, (episode.support, episode.query))
    return episode


def check_labels(outcome: Callable[[Episode], Any], episodes: Episode) -> None:
    """Traces ``outcome`` of the episodes with the lowest and the highest labels.

    The loss then knows them, and refuses those that are no classes.

    Args:
        outcome: adapts to one episode and scores it.
        episodes: ``[tasks, ...]``. Where they are being traced themselves, nothing is done.
    """
    tasks: set[int] = set()
    for batch in (episodes.support, episodes.query):
        labels = _checks.known_labels(batch, ndim=2)
        if labels is not None:
            tasks |= {int(labels.min(axis=1).argmin()), int(labels.max(axis=1).argmax())}
    for task in sorted(tasks):
        episode = jax.tree.map(lambda leaf, task=task: leaf[task], episodes)
        jax.eval_shape(lambda episode=episode: outcome(episode))
