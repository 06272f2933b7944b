"""What the updates share: an optimizer whose step can be scaled, and a trainer that is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from metajax import trees
from metajax.errors import ArgumentError
from metajax.evolve.types import Rollouts, TrainingData
from metajax.learners.base import Learner
from metajax.parallel import _devices as devices
from metajax.trainer import TrainState, meta_trainer
from metajax.types import Episode, Metrics, Params


class InitialParams(NamedTuple):
    """Optimizer state that keeps the parameters it was initialised with.

    Attributes:
        initial_params: those that learn; ``optax.MaskedNode`` in place of the others.
    """

    initial_params: Params


def scaled(
    optimizer: optax.GradientTransformation,
    trainable: trees.Trainable = None,
    *,
    keep_initial: bool = False,
) -> optax.GradientTransformation:
    """The optimizer, for the leaves that learn, followed by a factor that ``training`` sets.

    With ``keep_initial`` its state holds the parameters that it was initialised with, so that they
    are in every checkpoint; see ``initial_params``.
    """
    if keep_initial:
        keep = optax.GradientTransformation(
            lambda params: InitialParams(params),
            lambda updates, state, params=None: (updates, state),
        )
        optimizer = optax.chain(optimizer, keep)
    if trainable is not None:
        labels = lambda params: jax.tree.map(
            lambda learns: "learns" if learns else "stays", trees.selected(params, trainable)
        )
        optimizer = optax.multi_transform(
            {"learns": optimizer, "stays": optax.set_to_zero()}, labels
        )
    return optax.chain(optimizer, optax.inject_hyperparams(optax.scale)(step_size=1.0))


def initial_params(state: TrainState) -> Params:
    """The parameters that a ``scaled`` optimizer with ``keep_initial`` was initialised with."""
    kept = optax.tree_utils.tree_get(state.optimizer_state, "initial_params")
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)
    return jax.tree.map(
        lambda first, now: now if masked(first) else first, kept, state.params, is_leaf=masked
    )


def train_state(
    optimizer: optax.GradientTransformation, params: Params, key: jax.Array
) -> TrainState:
    """The state before the first step."""
    return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def training(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, jax.Array], Episode],
    *,
    steps: int,
    meta_batch: int,
    mesh: Mesh | None,
) -> Callable[[TrainState, Any, float], tuple[TrainState, Metrics]]:
    """Builds ``train(state, data, scale) -> (state, metrics)``, for any data that ``draw`` takes.

    It trains a copy of the state, and compiles once for each shape of the data.
    """
    trainers: dict[Any, Any] = {}

    def train(state: TrainState, data: Any, scale: float) -> tuple[TrainState, Metrics]:
        shape = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(data))
        if shape not in trainers:
            trainers[shape] = meta_trainer(
                learner, optimizer, Partial(draw, data), meta_batch=meta_batch, mesh=mesh
            )
        *others, last = state.optimizer_state
        last = last._replace(hyperparams={"step_size": jnp.float32(scale)})
        state = state._replace(optimizer_state=(*others, last))
        copy = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
        return trainers[shape].run(devices.replicate(copy, mesh), steps, sample=Partial(draw, data))

    return train


def rollouts_of(data: TrainingData, update: str) -> Rollouts:
    """The round, for an update that needs more than its examples."""
    if data.rollouts is None:
        raise ArgumentError(
            f"{update} learns from a round's completions: data.rollouts must not be None."
        )
    return data.rollouts
