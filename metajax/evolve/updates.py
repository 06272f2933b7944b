"""f of θ_{t+1} = f(θ_t, D_t): what the ways to learn from a round share.

Each is ``metajax.meta_trainer`` with another learner and other data: fine-tuning doesn't adapt, a
MAML step does. See ``fine_tuning``, ``policy_gradient`` and ``meta_step``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metajax import _checks, trees
from metajax.parallel import _devices as devices
from metajax.trainer import TrainState, meta_trainer
from metajax.types import Metrics, Params


class Update(NamedTuple):
    """A way to learn.

    Attributes:
        name: for reports.
        init: ``init(params, key) -> TrainState``.
        update: ``update(state, data, key, scale) -> (state, metrics, tokens)``: f. The state is not
            consumed, so that it can be returned to; ``scale`` multiplies the step's size, and
            ``tokens`` is how many were trained on.
    """

    name: str
    init: Callable[[Params, jax.Array], TrainState]
    update: Callable[..., tuple[TrainState, Metrics, int]]


def every_round(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """The schedule of one round, again in each.

    Example:
        >>> rate = every_round(optax.linear_schedule(1.0, 0.0, 4), 4)
        >>> [float(rate(step)) for step in (0, 2, 4)]
        [1.0, 0.5, 1.0]
    """
    return lambda count: schedule(jnp.asarray(count) % steps)


def scaled(
    optimizer: optax.GradientTransformation, trainable: trees.Trainable = None
) -> optax.GradientTransformation:
    """The optimizer, for the leaves that learn, and a factor behind it that ``to_train`` sets."""
    _checks.optimizer("optimizer", optimizer)
    if trainable is not None:
        labels = lambda params: jax.tree.map(
            lambda own: "learns" if own else "stays", trees.selected(params, trainable)
        )
        optimizer = optax.multi_transform(
            {"learns": optimizer, "stays": optax.set_to_zero()}, labels
        )
    return optax.chain(optimizer, optax.inject_hyperparams(optax.scale)(step_size=1.0))


def init_state(
    optimizer: optax.GradientTransformation, params: Params, key: jax.Array
) -> TrainState:
    """The state of an update that hasn't learned anything yet."""
    return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def to_train(state: TrainState, scale: float, mesh: Mesh | None) -> TrainState:
    """A copy that a trainer may consume, on its devices, with a ``scaled`` optimizer's factor."""
    *others, last = state.optimizer_state
    last = last._replace(hyperparams={"step_size": jnp.float32(scale)})
    state = state._replace(optimizer_state=(*others, last))
    return devices.replicate(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state), mesh)


def trainers(learner: Any, optimizer: optax.GradientTransformation, **options: Any):
    """``trainer_of(sample)``: one trainer for each shape of the sampler's arrays."""
    found: dict[Any, Any] = {}

    def trainer_of(sample: Any):
        shape = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(sample))
        if shape not in found:
            found[shape] = meta_trainer(learner, optimizer, sample, **options)
        return found[shape]

    return trainer_of
