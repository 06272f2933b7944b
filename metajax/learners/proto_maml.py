"""Proto-MAML: MAML whose head starts from the task's prototypes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, _marks, keys, losses
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, OuterLoss
from metajax.learners.maml import maml
from metajax.learners.metric import Support, class_means
from metajax.modes import GradientMode
from metajax.trees import Trainable
from metajax.types import PyTree


def proto_maml(
    embed: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    n_way: int,
    steps: int,
    mode: GradientMode | None = None,
    trainable: Trainable = None,
    outer_loss: OuterLoss | None = None,
    select: Callable[..., PyTree] | None = None,
) -> Learner:
    """Proto-MAML: inner steps from a head W_c = 2 p_c, b_c = −||p_c||² of the task's prototypes p.

    This head scores as Prototypical Networks do, −||f(x) − p_c||² up to what all classes share. The
    outer gradient passes through the prototypes. A class without support examples is never chosen.

    Args:
        embed: ``embed(params, inputs)`` returns features ``[examples, d]``. A keyed one makes the
            learner keyed; the pass that makes the prototypes gets a key of its own.
        optimizer: the inner optimizer, any Optax transformation.
        n_way: classes of an episode, at least 2.
        steps: how many inner steps.
        mode: how to differentiate through them; see ``metajax.adapt``.
        trainable: which leaves adapt, of ``{"body": params, "head": {"bias", "kernel"}}``; see
            ``metajax.adapt``.
        outer_loss: ``outer_loss(adapted, episode)`` with ``adapted`` of that structure; the query's
            cross-entropy if None.
        select: ``select(support, index)``, the batch of an inner step; see ``metajax.adapt``.

    Returns:
        A ``Learner`` whose meta-parameters are the network's parameters, and whose adapted ones are
        ``{"body": params, "head": {"bias": [n_way], "kernel": [d, n_way]}}``.

    Raises:
        ArgumentError: if ``n_way`` is less than 2 or ``steps`` isn't a positive integer; when run,
            if the features aren't vectors of one width for support and query.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> learner = metajax.proto_maml(lambda w, x: x * w, optax.sgd(0.1), n_way=2, steps=1)
        >>> support = metajax.Batch(jnp.array([[0.0], [2.0]]), jnp.array([0, 1]))
        >>> adapted, info = learner.adapt(jnp.array(1.0), support)
        >>> sorted(adapted), round(float(info.loss[0]), 4)  # ln(1 + e⁻⁴)
        (['body', 'head'], 0.0181)

    Source: Triantafillou et al. 2020, "Meta-Dataset" (arXiv 1903.03096), section 3.
    """
    _checks.at_least("n_way", n_way, 2)

    def apply(params, inputs, *key, **mask):
        head, features = params["head"], embed(params["body"], inputs, *key, **mask)
        if features.ndim != 2 or features.shape[1] != len(head["kernel"]):
            raise ArgumentError(
                f"embed must return features [examples, {len(head['kernel'])}], as wide as the "
                f"support set's, got shape {features.shape}."
            )
        return features @ head["kernel"] + head["bias"]

    def prototype_head(params, support, key) -> dict[str, jax.Array]:
        inputs, _, mask, _ = losses.as_masked(support)
        key = keys._prototype_key(key)
        features = keys._call("embed", embed, key, params, inputs, mask=mask)
        _checks.one_width("embed", features, features)
        examples = Support.of(features, support, n_way)
        prototypes = class_means(examples)
        bias = jnp.where(
            examples.counts > 0, -jnp.sum(prototypes**2, axis=-1), losses.lowest(prototypes.dtype)
        )
        return {"bias": bias, "kernel": 2 * prototypes.T}

    learner = maml(
        losses.cross_entropy(_marks.like(embed, apply)),
        optimizer,
        steps=steps,
        mode=mode,
        trainable=trainable,
        outer_loss=outer_loss,
        select=select,
    )

    def adapt_fn(params, support, *, observe=None, key=None):
        start = {"body": params, "head": prototype_head(params, support, key)}
        return learner.adapt(start, support, observe=observe, key=key)

    return learner._replace(adapt=adapt_fn)
