"""What experiments in few-shot image classification share: learners, test protocols, pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from metajax import losses, models
from metajax.learners import Learner
from metajax.modes import GradientMode
from metajax.runs import plots
from metajax.runs.report import Row
from metajax.types import Batch, Params, Sampler

TEST_SEED = 2017
"""Test tasks are drawn from this seed, whatever the seed of the run."""

CURVE_STEPS = 10
"""Accuracy is drawn after 0 to so many inner steps."""


class Network(NamedTuple):
    """MAML's four-layer network, with its two ways to normalise.

    Attributes:
        params: initial parameters.
        apply: ``apply(params, images) -> logits``, with the statistics of all images given
            (transductive).
        apply_with: ``apply_with(params, images, reference=n) -> logits``, with the statistics of
            the first n images.
    """

    params: Params
    apply: losses.Apply
    apply_with: losses.Apply


def conv4(n_way: int, key: jax.Array, *, features: int = 64, size: int = 28) -> Network:
    """The network of MAML's Omniglot experiments, for ``size`` × ``size`` images."""
    example = jnp.zeros((1, size, size, 1))
    params, apply = metajax.from_linen(models.Conv4(n_way, features=features), key, example)
    _, apply_with = metajax.from_linen(
        models.Conv4(n_way, features=features, norm="support"), key, example
    )
    return Network(params, apply, apply_with)


def maml_learner(
    network: Network,
    *,
    inner_rate: float,
    steps: int,
    transductive: bool = True,
    mode: GradientMode | None = None,
) -> Learner:
    """MAML as published: gradient descent on all but the normalisation's shift.

    Args:
        network: from ``conv4``.
        inner_rate: the learning rate on the mean cross-entropy over the support set.
        steps: inner steps.
        transductive: whether a query batch is normalised with its own statistics; if not, with the
            support set's.
        mode: how the outer gradient passes through the inner loop.
    """
    return metajax.maml(
        losses.cross_entropy(network.apply),
        optax.sgd(inner_rate),
        steps=steps,
        mode=mode,
        trainable=models.adapts_in_maml,
        outer_loss=None if transductive else losses.cross_entropy_given_support(network.apply_with),
    )


class Evaluation(NamedTuple):
    """One row of the table, before it is measured.

    Attributes:
        task: such as ``"5-way 1-shot"``.
        protocol: the protocol in words.
        learner: adapts for at least ``inner_steps``; for more, if the curve is to show them.
        sample: draws the test tasks.
        inner_steps: after how many the row's number is taken.
        query: query images a class.
        paper: the published figure, where this is its evaluation.
    """

    task: str
    protocol: str
    learner: Learner
    sample: Sampler
    inner_steps: int
    query: int
    paper: str | None = None


def measure(
    params: Params, evaluations: Sequence[Evaluation], *, episodes: int
) -> tuple[list[Row], list[plots.Curve]]:
    """Evaluates, in percent; the curves are those of more inner steps than their row's."""
    rows, curves = [], []
    for index, evaluation in enumerate(evaluations):
        key = jax.random.fold_in(jax.random.key(TEST_SEED), index)
        scores = metajax.evaluate(
            evaluation.learner, params, evaluation.sample, key, episodes=episodes
        )
        mean, ci95 = 100 * scores.curve["accuracy"], 100 * scores.curve_ci95["accuracy"]
        at = evaluation.inner_steps
        rows.append(
            Row(
                task=evaluation.task,
                evaluation=evaluation.protocol,
                mean=float(mean[at]),
                ci95=float(ci95[at]),
                paper=evaluation.paper,
                episodes=scores.episodes,
                inner_steps=at,
                query=evaluation.query,
            )
        )
        if len(mean) > at + 1:
            curves.append(plots.Curve(f"{evaluation.task}, {evaluation.protocol}", mean, ci95))
    return rows, curves


def draw_episode(
    path: Path, network: Network, params: Params, learner: Learner, sample: Sampler
) -> None:
    """Adapts to one test episode and draws it with the (transductive) predictions."""
    episode = sample(jax.random.key(TEST_SEED))
    adapted, _ = learner.adapt(params, episode.support)
    logits = network.apply(adapted, episode.query.inputs)
    support, query = _arrays(episode.support), _arrays(episode.query)
    plots.episode_grid(path, support, query, np.asarray(logits.argmax(axis=-1)))


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(batch.inputs), np.asarray(batch.targets)
