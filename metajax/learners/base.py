"""What a meta-learning algorithm is: pure functions of one task."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.adapt import AdaptInfo, value_and_aux
from metajax.errors import ArgumentTypeError
from metajax.types import Episode, LossFn, Metrics, Params, PyTree


class AdaptFn(Protocol):
    """Adapts to one task's support set; ``observe`` as in ``metajax.adapt``."""

    def __call__(
        self,
        params: Params,
        support: PyTree,
        *,
        observe: Callable[[Params], PyTree] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Params, AdaptInfo]: ...


class Learner(NamedTuple):
    """An algorithm: a factory such as ``maml`` returns one.

    Attributes:
        init: turns a model's parameters into the meta-parameters that the outer loop learns (the
            same, or with learned rates beside them, say).
        adapt: ``adapt(meta_params, support, observe=None) -> (adapted, info)``, of one task.
        loss: ``loss(adapted, episode) -> (loss, metrics)``, what the outer loop minimises: usually
            the query loss of the adapted parameters.
        gradient: ``gradient(meta_params, episode) -> (gradient, metrics)`` of one task, for
            algorithms whose update isn't the derivative of ``loss`` after ``adapt``; None for those
            whose update is.
        predict: ``predict(adapted, support, inputs) -> outputs``, if the learner has one.
        keyed: whether ``adapt`` needs a random key, ``adapt(meta_params, support, key=key)``.
    """

    init: Callable[[Params], Params]
    adapt: AdaptFn
    loss: Callable[[Params, Episode], tuple[jax.Array, Metrics]]
    gradient: Callable[[Params, Episode], tuple[Params, Metrics]] | None = None
    predict: Callable[..., PyTree] | None = None
    keyed: bool = False


def task_gradient(learner: Learner) -> Callable[[Params, Episode], tuple[Params, Metrics]]:
    """``gradient(meta_params, episode) -> (gradient, metrics)`` of one task: the learner's own, or
    that of its loss after adaptation, with the loss among the metrics."""
    if learner.gradient is not None:
        return learner.gradient
    return jax.grad(task_outcome(learner), has_aux=True)


def task_outcome(learner: Learner) -> Callable[[Params, Episode], tuple[jax.Array, Metrics]]:
    """``outcome(meta_params, episode) -> (loss, metrics)`` of one task after adaptation."""

    def outcome(params: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
        key = {"key": episode.key} if learner.keyed else {}
        adapted, _ = learner.adapt(params, episode.support, **key)
        return reported(learner, adapted, episode)

    return outcome


def reported(learner: Learner, adapted: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
    """The learner's loss, and it with the metrics; an ArgumentError unless it is a scalar."""
    loss, metrics = value_and_aux(learner.loss(adapted, episode), name="learner.loss")
    if not isinstance(metrics, Mapping | None):
        raise ArgumentTypeError(
            f"learner.loss must return a dict of metrics beside the loss, got "
            f"{type(metrics).__name__}."
        )
    return loss, {"loss": loss, **(metrics or {})}


def checked_learner(name: str, learner: Any) -> Learner:
    """Returns a learner, or raises an ArgumentTypeError that names it."""
    wanted = "a Learner such as metajax.maml(...)"
    return _checks.instance(name, learner, Learner, wanted)


def checked_episode(name: str, episode: Any) -> Episode:
    """Returns what has a support and a query set, of arrays, or raises an ArgumentTypeError."""
    if not (hasattr(episode, "support") and hasattr(episode, "query")):
        raise ArgumentTypeError(
            f"{name} must be a metajax.Episode(support, query), got {_checks.shown(episode)}."
        )
    _checks.arrays(name, (episode.support, episode.query))
    return episode


def nothing_learned(adapted: Params, observe: Callable[[Params], Any] | None) -> AdaptInfo:
    """The AdaptInfo of a learner that takes no inner steps; what is observed has one row."""
    observed = None
    if observe is not None:
        observed = jax.tree.map(lambda value: jnp.asarray(value)[None], observe(adapted))
    return AdaptInfo(jnp.zeros(0), None, observed)


OuterLoss = Callable[[Params, Episode], jax.Array | tuple[jax.Array, Metrics]]
"""``outer_loss(adapted, episode) -> scalar``, or ``(scalar, metrics)``."""


def episode_loss(loss_fn: LossFn, outer_loss: OuterLoss | None):
    """The ``loss`` of a Learner: ``outer_loss``, or else ``loss_fn`` on the query set."""

    _checks.function("loss_fn", loss_fn, "loss_fn(params, batch)")
    _checks.optional_function("outer_loss", outer_loss, "outer_loss(adapted, episode)")

    def loss(adapted: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
        if outer_loss is None:
            output, name = loss_fn(adapted, episode.query), "loss_fn"
        else:
            output, name = outer_loss(adapted, episode), "outer_loss"
        value, aux = value_and_aux(output, name=name)
        if aux is None:
            return value, {}
        return value, dict(aux) if isinstance(aux, dict) else {"aux": aux}

    return loss
