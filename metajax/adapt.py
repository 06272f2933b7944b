"""Adaptation to one task: a pure function that jit, vmap, grad and scan all accept."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax import _checks, keys, trees
from metajax._inner_update import check_differentiable, nudge_for, update
from metajax.modes import GradientMode, default_mode
from metajax.types import LossFn, Params, PyTree


class AdaptInfo(NamedTuple):
    """What adaptation computed beside the parameters.

    Attributes:
        loss: the support loss before each step, ``[steps]``.
        aux: what the loss returned beside its value, every leaf ``[steps, ...]``; None if nothing.
        observed: what ``observe`` returned before the first and after every step, every leaf
            ``[steps + 1, ...]``; None without ``observe``.
    """

    loss: jax.Array
    aux: PyTree
    observed: PyTree


def adapt(
    loss_fn: LossFn,
    params: Params,
    support: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    mode: GradientMode | None = None,
    trainable: trees.Trainable = None,
    select: Callable[..., PyTree] | None = None,
    observe: Callable[[Params], PyTree] | None = None,
    key: jax.Array | None = None,
) -> tuple[Params, AdaptInfo]:
    """Takes ``steps`` optimizer steps on the loss over one task's support set.

    It can be differentiated with respect to everything that enters it: the parameters, whether they
    adapt or not, the support set, what the loss closes over, and what the optimizer learns.

    Args:
        loss_fn: ``loss_fn(params, batch)`` returns a scalar, or a pair ``(scalar, aux)``. Marked by
            ``metajax.keyed`` it is ``loss_fn(params, batch, key)``, as for a network with dropout.
        params: any pytree of arrays.
        support: the task's batch, any pytree that ``loss_fn`` accepts.
        optimizer: any Optax transformation; its state starts afresh for the task. One that needs
            the loss (``optax.polyak_sgd``, ``reduce_on_plateau``) gets it.
        steps: how many steps, at least 1.
        mode: how the outer gradient passes through the loop; if None, ``unrolled()`` for one step
            and ``mixed()`` for more.
        trainable: which leaves adapt: a predicate of a leaf's path (its keys joined by slashes), or
            a pytree of bools that is a prefix of ``params``. If None, all floating-point leaves; of
            a dict of Flax collections, those of ``"params"`` alone. Only these are differentiated
            in the inner loop and held once per task.
        select: ``select(support, index)`` returns the batch of step ``index`` (int32 scalar), for
            inner minibatches; the whole support set at every step if None. Marked by
            ``metajax.keyed`` it is ``select(support, index, key)``.
        observe: ``observe(params)``, called before the first and after every step; its results are
            returned in ``info.observed``.
        key: the random key of a keyed ``loss_fn`` or ``select``. The loss of step i gets
            ``jax.random.fold_in(key, i)``, and ``select`` another key for each step.

    Returns:
        ``(adapted, info)``: parameters of the structure of ``params``, and an ``AdaptInfo``.

    Raises:
        ArgumentError: if ``steps`` isn't a positive integer, ``trainable`` selects nothing, the
            loss isn't a floating-point scalar or doesn't read low-rank factors that adapt, a key is
            needed and missing, or the optimizer's update has no finite derivative under a mode that
            needs it.

    Example:
        >>> import jax.numpy as jnp, optax, metajax
        >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
        >>> adapted, info = metajax.adapt(
        ...     loss_fn, jnp.zeros(2), jnp.ones(2), optimizer=optax.sgd(0.25), steps=2
        ... )
        >>> adapted
        Array([0.75, 0.75], dtype=float32)
        >>> info.loss
        Array([2. , 0.5], dtype=float32)

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning" (arXiv 1703.03400), equation 1.
    """
    steps = _checks.positive_int("steps", steps)
    mode = default_mode(steps) if mode is None else mode
    adapted, frozen = trees.partition(params, trainable)
    probe = check_differentiable if mode.differentiates_update else nudge_for
    nudge = probe(optimizer, adapted, mode)
    keyed_loss = keys.is_keyed(loss_fn)
    if not (keyed_loss or keys.is_keyed(select)):
        key = None

    def inner_loss(adapted, frozen, batch):
        batch, step_key = batch if keyed_loss else (batch, None)
        params = trees.combine(adapted, frozen)
        output = keys._call("loss_fn", loss_fn, step_key, params, batch)
        return _checks.value_and_aux(output, name="loss_fn")

    inner_gradient = mode.inner_gradient(inner_loss)

    def batch_of(index):
        loss_key, select_key = keys._step_keys(key, index)
        batch = support
        if select is not None:
            batch = keys._call("select", select, select_key, support, index)
        return (batch, loss_key) if keyed_loss else batch

    first_loss = lambda adapted: inner_loss(adapted, frozen, batch_of(jnp.int32(0)))[0]
    trees.check_factors_read(first_loss, adapted)
    if select is None and _checks.known_labels(support) is not None:
        # Traced with labels whose values it knows, a loss can refuse them.
        jax.eval_shape(first_loss, adapted)

    def observed(adapted):
        return None if observe is None else observe(trees.combine(adapted, frozen))

    def step(carry, index):
        adapted, optimizer_state = carry
        batch = batch_of(index)
        before = observed(adapted)
        (loss, aux), gradient = inner_gradient(adapted, frozen, batch)
        updates, optimizer_state = update(
            optimizer,
            gradient,
            optimizer_state,
            adapted,
            value=loss if mode.differentiates_update else jax.lax.stop_gradient(loss),
            value_fn=lambda candidate: inner_loss(candidate, frozen, batch)[0],
            nudge=nudge,
        )
        adapted = optax.apply_updates(adapted, updates)
        return (adapted, optimizer_state), (loss, aux, before)

    carry = (adapted, optimizer.init(adapted))
    (adapted, _), (loss, aux, before) = mode.loop(step, carry, steps)
    history = jax.tree.map(
        lambda rows, last: jnp.concatenate([rows, jnp.asarray(last)[None]]),
        before,
        observed(adapted),
    )
    return trees.combine(adapted, frozen), AdaptInfo(loss, aux, history)
