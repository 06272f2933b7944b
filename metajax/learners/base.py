"""What a meta-learning algorithm is: pure functions of one task."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metajax import _checks, keys, trees
from metajax.adapt import AdaptInfo
from metajax.errors import ArgumentError
from metajax.learners._checked import reported
from metajax.types import Episode, LossFn, Metrics, Params, PyTree


class AdaptFn(Protocol):
    """Adapts to one task's support set; ``observe`` and ``key`` as in ``metajax.adapt``."""

    def __call__(
        self,
        params: Params,
        support: PyTree,
        *,
        observe: Callable[[Params], PyTree] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Params, AdaptInfo]: ...


class PredictFn(Protocol):
    """What an adapted learner says of inputs ``[examples, ...]``: logits ``[examples, n_way]``, or
    other outputs of the network. ``key`` is for a network that is keyed."""

    def __call__(
        self, adapted: Params, support: PyTree, inputs: Any, *, key: jax.Array | None = None
    ) -> Any: ...


class Learner(NamedTuple):
    """An algorithm: a factory such as ``maml`` returns one.

    Attributes:
        init: turns a model's parameters into the meta-parameters that the outer loop learns (the
            same, or with learned rates beside them, say).
        adapt: ``adapt(meta_params, support, *, observe=None, key=None) -> (adapted, info)``, of one
            task.
        loss: ``loss(adapted, episode) -> (loss, metrics)``, what the outer loop minimises: usually
            the query loss of the adapted parameters.
        gradient: ``gradient(meta_params, episode) -> (gradient, metrics)`` of one task, for
            algorithms whose update isn't the derivative of ``loss`` after ``adapt``; None for those
            whose update is.
        predict: ``predict(adapted, support, inputs, *, key=None) -> outputs``; None if it can't.
        keyed: whether ``adapt`` and ``loss`` need the episode's random key.
    """

    init: Callable[[Params], Params]
    adapt: AdaptFn
    loss: Callable[[Params, Episode], tuple[jax.Array, Metrics]]
    gradient: Callable[[Params, Episode], tuple[Params, Metrics]] | None = None
    predict: PredictFn | None = None
    keyed: bool = False


def adapt_to(
    learner: Learner,
    params: Params,
    episode: Episode,
    *,
    observe: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, AdaptInfo]:
    """Adapts to an episode's support set, with the episode's key if the learner needs one.

    Args:
        learner: the algorithm.
        params: its meta-parameters.
        episode: one task.
        observe: as in ``metajax.adapt``.

    Returns:
        What ``learner.adapt`` returns.

    Raises:
        ArgumentError: if the learner is keyed, and the episode has no key.

    Example:
        >>> import optax, metajax
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> adapted, _ = adapt_to(learner, jnp.array(0.0), metajax.Episode(1.0, 1.0))
        >>> float(adapted)
        0.5
    """
    options: dict[str, Any] = {} if observe is None else {"observe": observe}
    if learner.keyed:
        options["key"] = getattr(episode, "key", None)
        if options["key"] is None:
            raise ArgumentError("the learner is keyed, but episode.key is None: give it a key.")
    return learner.adapt(params, episode.support, **options)


def task_outcome(learner: Learner) -> Callable[[Params, Episode], tuple[jax.Array, Metrics]]:
    """``outcome(meta_params, episode) -> (loss, metrics)`` of one task after adaptation.

    Example:
        >>> import optax, metajax
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> loss, metrics = task_outcome(learner)(jnp.array(0.0), metajax.Episode(1.0, 1.0))
        >>> float(loss), list(metrics)
        (0.25, ['loss'])
    """

    def outcome(params: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
        adapted, _ = adapt_to(learner, params, episode)
        return reported(learner, adapted, episode)

    return outcome


def task_gradient(learner: Learner) -> Callable[[Params, Episode], tuple[Params, Metrics]]:
    """``gradient(meta_params, episode) -> (gradient, metrics)`` of one task.

    It is the learner's own ``gradient``, or the derivative of its loss after adaptation, with the
    loss among the metrics. It is None at leaves without a derivative, such as counters and keys.

    Example:
        >>> import optax, metajax
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.25), steps=1)
        >>> float(task_gradient(learner)(jnp.array(0.0), metajax.Episode(1.0, 1.0))[0])
        -0.5
    """
    if learner.gradient is not None:
        return learner.gradient
    outcome = task_outcome(learner)
    return lambda params, episode: _gradient(lambda params: outcome(params, episode), params)


def _gradient(
    function: Callable[[Params], tuple[jax.Array, Metrics]], params: Params
) -> tuple[Params, Metrics]:
    """The gradient of ``function(params) -> (value, metrics)``, and the metrics; None at leaves
    without a derivative."""
    smooth, rest = trees.partition(params, jax.tree.map(trees.is_floating, params))
    of_smooth = lambda smooth: function(trees.combine(smooth, rest))
    return jax.grad(of_smooth, has_aux=True)(smooth)


def nothing_learned(adapted: Params, observe: Callable[[Params], Any] | None) -> AdaptInfo:
    """The ``AdaptInfo`` of a learner that takes no inner steps; what is observed has one row.

    Example:
        >>> nothing_learned(jnp.array(2.0), lambda adapted: 3 * adapted).observed
        Array([6.], dtype=float32, weak_type=True)
    """
    observed = None
    if observe is not None:
        observed = jax.tree.map(lambda value: jnp.asarray(value)[None], observe(adapted))
    return AdaptInfo(jnp.zeros(0), None, observed)


OuterLoss = Callable[..., jax.Array | tuple[jax.Array, Metrics]]
"""``outer_loss(adapted, episode) -> scalar``, or ``(scalar, metrics)``; marked by
``metajax.keyed``, ``outer_loss(adapted, episode, key)``."""


def episode_loss(
    loss_fn: LossFn, outer_loss: OuterLoss | None = None
) -> Callable[[Params, Episode], tuple[jax.Array, Metrics]]:
    """The ``loss`` of a ``Learner``: ``outer_loss``, or else ``loss_fn`` on the query set.

    A keyed one gets ``metajax.learners.query_key(episode)``.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or ``(scalar, metrics)``.
        outer_loss: ``outer_loss(adapted, episode)`` returns the same.

    Returns:
        ``loss(adapted, episode) -> (loss, metrics)``.

    Raises:
        ArgumentError: when run, if the loss isn't a floating-point scalar, or a key is missing.

    Example:
        >>> import metajax
        >>> loss = episode_loss(lambda params, batch: (params - batch) ** 2)
        >>> loss(jnp.array(1.0), metajax.Episode(support=0.0, query=3.0))
        (Array(4., dtype=float32, weak_type=True), {})
    """

    def loss(adapted: Params, episode: Episode) -> tuple[jax.Array, Metrics]:
        key = keys.query_key(episode)
        name, function, batch = "loss_fn", loss_fn, episode.query
        if outer_loss is not None:
            name, function, batch = "outer_loss", outer_loss, episode

        def value_and_aux(adapted: Params) -> tuple[jax.Array, Any]:
            output = keys._call(name, function, key, adapted, batch)
            return _checks.value_and_aux(output, name=name)

        trees.check_factors_read(lambda adapted: value_and_aux(adapted)[0], adapted)
        value, aux = value_and_aux(adapted)
        if aux is None:
            return value, {}
        return value, dict(aux) if isinstance(aux, dict) else {"aux": aux}

    return loss
