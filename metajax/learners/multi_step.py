"""Other outer losses for any learner: of all inner steps, and of another learner at first."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.learners.base import Learner, _gradient, adapt_to, task_gradient


def multi_step_loss(learner: Learner, weights: jax.Array) -> Learner:
    """The learner with the outer loss Σ_k w_k L_Q(φ_k), where φ_k are the parameters after step k.

    Evaluation and the reported metrics stay those after the last step.

    Args:
        learner: any that adapts in steps.
        weights: ``[steps]``; ``annealed_weights`` makes MAML++'s.

    Raises:
        ArgumentError: when run, if the learner has another number of steps; when built, if its
            gradient isn't that of its loss.

    Example:
        >>> import optax, metajax
        >>> loss_fn = lambda params, batch: (params - batch) ** 2
        >>> learner = metajax.maml(loss_fn, optax.sgd(0.25), steps=2)
        >>> both = metajax.learners.multi_step_loss(learner, jnp.array([0.5, 0.5]))
        >>> episode = metajax.Episode(jnp.array(1.0), jnp.array(1.0))
        >>> float(both.gradient(jnp.array(0.0), episode)[0])  # θ - 1 times 1/4 and 1/16
        -0.3125

    Source: Antoniou et al. 2019, "How to train your MAML" (arXiv 1810.09502), section 4.
    """
    if learner.gradient is not None:
        raise ArgumentError("learner has a gradient of its own, which is not that of a loss.")

    def gradient(params, episode):
        def total(params):
            score = lambda adapted: learner.loss(adapted, episode)
            _, info = adapt_to(learner, params, episode, observe=score)
            losses, metrics = info.observed
            if weights.shape != (len(losses) - 1,):
                raise ArgumentError(
                    f"weights must be [steps] = [{len(losses) - 1}], got shape {weights.shape}."
                )
            last = jax.tree.map(lambda rows: rows[-1], {"loss": losses, **metrics})
            return jnp.vdot(weights.astype(losses.dtype), losses[1:]), last

        return _gradient(total, params)

    return learner._replace(gradient=gradient)


def annealed_weights(step: jax.Array | int, *, steps: int, over: int) -> jax.Array:
    """MAML++'s weights of the inner steps' losses: equal at first, at last nearly all on the last.

    As in the published code, 0.03 / steps remains for each of the others.

    Args:
        step: the meta-step.
        steps: inner steps K.
        over: how many meta-steps the change takes.

    Returns:
        ``[steps]``, which sum to 1.

    Raises:
        ArgumentError: if ``steps`` or ``over`` isn't a positive integer.

    Example:
        >>> [annealed_weights(step, steps=2, over=100).tolist() for step in (0, 50)]
        [[0.5, 0.5], [0.25, 0.75]]
    """
    steps = _checks.positive_int("steps", steps)
    over = _checks.positive_int("over", over)
    others = jnp.maximum(1 - jnp.asarray(step) / over, 0.03) / steps
    last = 1 - (steps - 1) * others
    return jnp.where(jnp.arange(steps) == steps - 1, last, others)


def warm_start(first: Learner, then: Learner, *, steps: int) -> Callable[[jax.Array], Learner]:
    """``first`` for so many meta-steps, after them ``then``: for ``metajax.meta_trainer``.

    Of MAML++'s warm start, ``first`` is the same learner with ``mode=metajax.first_order()``. Both
    are compiled, and one of them runs.

    Args:
        first: the first learner; with meta-parameters of the same structure.
        then: the other, by which the trainer initialises.
        steps: meta-steps of the first.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer.

    Example:
        >>> import optax, metajax
        >>> loss_fn = lambda params, batch: (params - batch) ** 2
        >>> build = lambda mode: metajax.maml(loss_fn, optax.sgd(0.25), steps=1, mode=mode)
        >>> both = warm_start(build(metajax.first_order()), build(metajax.unrolled()), steps=10)
        >>> episode = metajax.Episode(jnp.array(1.0), jnp.array(1.0))
        >>> [float(both(step).gradient(jnp.array(0.0), episode)[0]) for step in (9, 10)]
        [-1.0, -0.5]

    Source: Antoniou et al. 2019 (arXiv 1810.09502), section 4.
    """
    steps = _checks.positive_int("steps", steps)

    def at(step: jax.Array) -> Learner:
        def gradient(params, episode):
            return jax.lax.cond(
                jnp.asarray(step) < steps,
                task_gradient(first),
                task_gradient(then),
                params,
                episode,
            )

        return then._replace(gradient=gradient, keyed=first.keyed or then.keyed)

    return at
