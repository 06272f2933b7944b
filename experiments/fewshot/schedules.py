"""How an image classifier is meta-trained: the learner, the outer optimizer, and their numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

import metajax
from experiments.fewshot.networks import Network, inner_options
from metajax import learners, models
from metajax.data.episodes import Rotations
from metajax.learners import Learner, in_head
from metajax.modes import GradientMode

CURVE_STEPS = 10
"""Accuracy is drawn after 0 to so many inner steps, where a learner serves as many."""


class LearnerOfNetwork(Protocol):
    """A learner of so many inner steps on a network."""

    def __call__(self, network: Network, steps: int, *, transductive: bool = True) -> Learner: ...


def maml_learner(
    inner_rate: float, *, learned_rates: bool = False, mode: GradientMode | None = None
) -> LearnerOfNetwork:
    """MAML as published: gradient descent on all but the normalisation's shift.

    Args:
        inner_rate: the learning rate on the mean cross-entropy over the support set.
        learned_rates: whether each leaf's rate is learned, from ``inner_rate`` on, as in MAML++.
        mode: how the outer gradient passes through the inner loop.
    """

    def build(network: Network, steps: int, *, transductive: bool = True) -> Learner:
        options = inner_options(network, transductive=transductive) | {"steps": steps, "mode": mode}
        if learned_rates:
            return metajax.maml_plus_plus(learning_rate=inner_rate, rates_per_step=False, **options)
        return metajax.maml(optimizer=optax.sgd(inner_rate), **options)

    return build


def anil_learner(inner_rate: float, *, learned_rates: bool = False) -> LearnerOfNetwork:
    """ANIL: only the head adapts; the arguments are those of ``maml_learner``."""

    def build(network: Network, steps: int, *, transductive: bool = True) -> Learner:
        options = inner_options(network, transductive=transductive)
        options |= {"steps": steps, "trainable": in_head}
        if learned_rates:
            return metajax.maml_plus_plus(learning_rate=inner_rate, rates_per_step=False, **options)
        return metajax.maml(optimizer=optax.sgd(inner_rate), **options)

    return build


def maml_plus_plus_learner(inner_rate: float) -> LearnerOfNetwork:
    """MAML++: each step has rates of its own, and a shift and scale of the normalisation."""

    def build(network: Network, steps: int, *, transductive: bool = True) -> Learner:
        return metajax.maml_plus_plus(
            learning_rate=inner_rate,
            steps=steps,
            per_step=lambda path: not models.adapts_in_maml(path),
            **inner_options(network, transductive=transductive),
        )

    return build


def multi_step(
    learner: LearnerOfNetwork, over: int
) -> Callable[..., Callable[[jax.Array], Learner]]:
    """What trains MAML++: the query loss after each inner step, annealed to the last one's over so
    many meta-steps."""

    def trained(network: Network, steps: int, **options: Any) -> Callable[[jax.Array], Learner]:
        built = learner(network, steps, **options)

        def at(step: jax.Array) -> Learner:
            weights = learners.annealed_weights(step, steps=steps, over=max(over, 1))
            return learners.multi_step_loss(built, weights)

        return at

    return trained


class Schedule(NamedTuple):
    """How the parameters are trained, and adapted at test.

    Attributes:
        description: in words, for the table.
        steps: meta-steps.
        meta_batch: tasks in a meta-step.
        learner: the algorithm.
        inner_rate: its inner learning rate in words, or as a number, for the table.
        inner_steps: inner steps in training.
        test_steps: inner steps at test.
        head_std: standard deviation of the head's initial weights; the paper's is 1.
        rotations: how training tasks turn their classes.
        optimizer: the outer optimizer.
        shift: by up to how many pixels each training image is moved.
        trained: what is trained, where it isn't ``learner`` with ``inner_steps``; may be a
            ``step -> Learner``.
        train_shot: support examples of each class in training, where they aren't those at test.
        curve_steps: accuracy is drawn after 0 to so many inner steps; 0 for no curve.
        form: the network's; see ``models.Conv4``.
    """

    description: str
    steps: int
    meta_batch: int
    learner: LearnerOfNetwork
    inner_rate: float | str
    inner_steps: int
    test_steps: int
    head_std: float
    rotations: Rotations
    optimizer: optax.GradientTransformation
    shift: int = 0
    trained: Callable[..., Learner | Callable[[jax.Array], Learner]] | None = None
    train_shot: int | None = None
    curve_steps: int = CURVE_STEPS
    form: models.Form = "stride"


def warmup_cosine(peak: float, steps: int) -> optax.Schedule:
    """A rate that rises over 200 steps and falls on a cosine to 1e-6 at the last."""
    warmup = min(200, steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, end_value=1e-6)


def muon(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Muon for the convolutions, Adam for the rest, both at this rate.

    The momentum of a convolution's kernel, as the matrix that multiplies patches, is replaced by
    the nearest orthogonal one, scaled to the size of an Adam update.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the
    scale, Liu et al. 2025 (arXiv 2502.16982), section 2.2.
    """
    from optax import contrib  # a slow import, which only this optimizer needs

    patches_to_features = contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return contrib.muon(
        rate,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda leaf: patches_to_features if jnp.ndim(leaf) == 4 else None, params
        ),
    )


def with_learned_rates(
    optimizer: optax.GradientTransformation, factor: float = 5.0
) -> optax.GradientTransformation:
    """The outer optimizer for ``MAMLPlusPlusParams``: its step, ``factor`` times for the rates."""

    def scale(updates: Any, params: Any) -> metajax.MAMLPlusPlusParams:
        del params
        return updates._replace(log_rates=optax.tree.scale(factor, updates.log_rates))

    return optax.chain(optimizer, optax.stateless(scale))
