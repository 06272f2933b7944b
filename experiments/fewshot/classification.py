"""What experiments in few-shot image classification share: training, test protocols, pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import metajax
from experiments.common import plots, processes
from experiments.common.config import command
from experiments.common.fit import Fitted, fit
from experiments.common.folder import Run
from experiments.common.report import Report, Row, environment, write_report
from metajax import losses, models
from metajax.data import ClassData, Rotations, episode_sampler, random_shifts
from metajax.learners import Learner
from metajax.modes import GradientMode
from metajax.parallel import TasksPerChunk
from metajax.types import Batch, Params, Sampler

TEST_SEED = 2017
"""Test tasks are drawn from this seed, whatever the seed of the run."""

HEAD_STD = 0.125
"""Standard deviation of the head's initial weights in our own schedules: Flax's default for 64
features. From the paper's 1 the first thousand meta-steps go into unlearning the head."""

VALIDATION_EPISODES = 200
"""Tasks of the validation classes in each validation."""

CURVE_STEPS = 10
"""Accuracy is drawn after 0 to so many inner steps, where a learner serves as many."""


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


def conv4(
    n_way: int,
    key: jax.Array,
    *,
    head_std: float = 1.0,
    features: int = 64,
    size: int = 28,
    **options: Any,
) -> Network:
    """The network of MAML's Omniglot experiments, for ``size`` × ``size`` images.

    ``head_std`` is the standard deviation of the head's initial weights; ``options`` are others of
    ``models.Conv4``.
    """
    example = jnp.zeros((1, size, size, 1))
    network = models.Conv4(
        n_way, features=features, head_init=nn.initializers.normal(head_std), **options
    )
    params, apply = metajax.from_linen(network, key, example)
    _, apply_with = metajax.from_linen(network.copy(norm="support"), key, example)
    return Network(params, apply, apply_with)


def inner_options(network: Network, *, transductive: bool = True) -> dict[str, Any]:
    """The loss of a network and what MAML's Omniglot experiments ask of a learner by gradients.

    All but the normalisation's shift and scale adapts.

    Args:
        network: from ``conv4``.
        transductive: whether a query batch is normalised with its own statistics; if not, with the
            support set's.
    """
    return {
        "loss_fn": losses.cross_entropy(network.apply),
        "trainable": models.adapts_in_maml,
        "outer_loss": None
        if transductive
        else losses.cross_entropy_given_support(network.apply_with),
    }


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
    patches_to_features = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return optax.contrib.muon(
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


def train(
    run: Run,
    network: Network,
    schedule: Schedule,
    data: ClassData,
    validation: ClassData,
    *,
    n_way: int,
    k_shot: int,
    validate_every: int,
    transductive: bool = True,
    tasks_per_chunk: TasksPerChunk = None,
    non_finite: Literal["raise", "skip", "clip"] | None = None,
) -> Fitted:
    """Meta-trains with ``k_shot`` support and as many query images a class, and validates."""
    key_tasks, key_validation = jax.random.split(jax.random.key(run.config.seed))
    trained = schedule.trained or schedule.learner
    sampler = lambda data, rotations, shots=k_shot: episode_sampler(
        data, n_way=n_way, k_shot=shots, query=k_shot, rotations=rotations
    )
    trainer = metajax.meta_trainer(
        trained(network, schedule.inner_steps, transductive=transductive),
        schedule.optimizer,
        random_shifts(
            sampler(data, schedule.rotations, schedule.train_shot or k_shot), schedule.shift
        ),
        meta_batch=schedule.meta_batch,
        tasks_per_chunk=tasks_per_chunk,
        mesh=metajax.task_mesh(schedule.meta_batch),
        non_finite=non_finite,
    )
    test_learner = schedule.learner(network, schedule.test_steps, transductive=transductive)
    # As at test: the paper turns each class of a test task too.
    turned: Rotations = "none" if schedule.rotations == "none" else "per_class"
    score = metajax.evaluator(
        test_learner,
        sampler(validation, turned),
        episodes=VALIDATION_EPISODES,
        curve=False,
        mesh=metajax.task_mesh(jax.device_count()),
    )

    return fit(
        run,
        trainer,
        trainer.init(network.params, key_tasks),
        steps=schedule.steps,
        validate=lambda params: score(params, key_validation).mean,
        validate_every=validate_every,
    )


class Evaluation(NamedTuple):
    """One row of the table, before it is measured.

    Attributes:
        task: such as ``"5-way 1-shot"``.
        protocol: the protocol in words.
        learner: adapts for ``inner_steps``; for more, if there is to be a curve of them.
        sample: draws the test tasks.
        inner_steps: after how many the row's number is taken.
        query: query images a class.
        transductive: whether a prediction depends on the other query images.
        paper: the published figure, where this is its evaluation.
        curve: whether the scores after each step are drawn.
    """

    task: str
    protocol: str
    learner: Learner
    sample: Sampler
    inner_steps: int
    query: int
    transductive: bool
    paper: str | None = None
    curve: bool = False


def measure(
    params: Params, evaluations: Sequence[Evaluation], *, episodes: int
) -> tuple[list[Row], list[plots.Curve]]:
    """Evaluates, in percent."""
    rows, curves = [], []
    for index, evaluation in enumerate(evaluations):
        key = jax.random.fold_in(jax.random.key(TEST_SEED), index)
        scores = metajax.evaluate(
            evaluation.learner,
            params,
            evaluation.sample,
            key,
            episodes=episodes,
            curve=evaluation.curve,
            mesh=metajax.task_mesh(jax.device_count()),  # equally or not
        )
        mean, ci95 = 100 * scores.curve["accuracy"], 100 * scores.curve_ci95["accuracy"]
        at = evaluation.inner_steps if evaluation.curve else -1
        rows.append(
            Row(
                task=evaluation.task,
                evaluation=evaluation.protocol,
                mean=float(mean[at]),
                ci95=float(ci95[at]),
                paper=evaluation.paper,
                episodes=scores.episodes,
                inner_steps=evaluation.inner_steps,
                query=evaluation.query,
                transductive=evaluation.transductive,
            )
        )
        if evaluation.curve:
            curves.append(plots.Curve(f"{evaluation.task}, {evaluation.protocol}", mean, ci95))
    return rows, curves


def publish(
    run: Run,
    network: Network,
    schedule: Schedule,
    fitted: Fitted,
    evaluations: Sequence[Evaluation],
    *,
    picture: Sampler,
    episodes: int,
    title: str,
    source: str,
    training: Mapping[str, Any],
    module: str,
) -> str:
    """Evaluates, and writes the table, ``result.json`` and the pictures; returns the table (where
    several processes run, the first writes it; the others return nothing).

    Args:
        run: the run.
        network: the network that was trained.
        schedule: how.
        fitted: the outcome.
        evaluations: the table's rows.
        picture: draws the test task of the picture.
        episodes: test tasks in each row.
        title: the table's heading.
        source: where the published figures are from.
        training: what the table says of the training beside the schedule.
        module: the experiment, as ``python -m`` knows it.
    """
    started = time.perf_counter()
    params = fitted.state.params
    rows, curves = measure(params, evaluations, episodes=episodes)
    if not processes.first():
        return ""
    report = Report(
        title=title,
        metric="accuracy in % ± 95 % CI",
        source=source,
        schedule=schedule.description,
        training={
            "steps": schedule.steps,
            "meta-batch": schedule.meta_batch,
            "inner steps": schedule.inner_steps,
            "inner rate": schedule.inner_rate,
            "head's initial deviation": schedule.head_std,
            **training,
        },
        rows=rows,
        seconds={"training": fitted.seconds, "evaluation": time.perf_counter() - started},
        command=command(module, run.config),
        environment=environment(),
        curves=curves,
    )
    table = write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    if curves:
        plots.inner_steps(run.path / "inner_steps.png", curves, ylabel="accuracy in %")

    learner = schedule.learner(network, schedule.test_steps)
    episode = picture(jax.random.key(TEST_SEED))
    params = jax.device_get(params)
    adapted, _ = jax.jit(learner.adapt)(params, episode.support)
    weights = adapted.params if isinstance(adapted, metajax.MAMLPlusPlusParams) else adapted
    logits = network.apply(weights, episode.query.inputs)
    plots.episode_grid(
        run.path / "episode.png",
        _arrays(episode.support),
        _arrays(episode.query),
        np.asarray(logits.argmax(axis=-1)),
    )
    return table


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(batch.inputs), np.asarray(batch.targets)
