"""Checks of learners and episodes, for the functions that take any of them."""

from collections.abc import Mapping
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
