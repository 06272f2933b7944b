"""Meta-training and test of image classifiers: what the few-shot experiments share."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import metajax
from experiments.common import plots, processes
from experiments.common.fit import Fitted, fit
from experiments.common.folder import Run
from experiments.common.report import Report, Row, environment, write_report
from experiments.fewshot import seeds
from experiments.fewshot.networks import Network
from experiments.fewshot.schedules import Schedule
from metajax.data import ClassData, Rotations, episode_sampler, random_shifts
from metajax.learners import Learner
from metajax.parallel import TasksPerChunk
from metajax.types import Batch, Params, Sampler

TEST_SEED = 2017
"""Test tasks are drawn from this seed, whatever the seed of the run."""

VALIDATION_EPISODES = 200
"""Tasks of the validation classes in each validation."""


def tasks_of(
    schedule: Schedule, data: ClassData, validation: ClassData, *, n_way: int, k_shot: int
) -> tuple[Sampler, Sampler]:
    """Training and validation tasks with ``k_shot`` support and as many query images a class."""
    sampler = lambda data, rotations, shots=k_shot: episode_sampler(
        data, n_way=n_way, k_shot=shots, query=k_shot, rotations=rotations
    )
    # As at test: the paper turns each class of a test task too.
    turned: Rotations = "none" if schedule.rotations == "none" else "per_class"
    drawn = sampler(data, schedule.rotations, schedule.train_shot or k_shot)
    return random_shifts(drawn, schedule.shift), sampler(validation, turned)


def train(
    run: Run,
    network: Network | Sequence[Network],
    schedule: Schedule,
    tasks: Sampler,
    validation: Sampler,
    *,
    validate_every: int,
    transductive: bool = True,
    tasks_per_chunk: TasksPerChunk = None,
    non_finite: Literal["raise", "skip", "clip"] | None = None,
) -> Fitted:
    """Meta-trains on ``tasks``, and validates on others.

    Of several networks, which differ in their initial parameters, each is trained with a seed of
    its own, from the run's on, all as one program; the state is ``seeds.Together``.
    """
    several = [] if isinstance(network, Network) else list(network)
    one = network if isinstance(network, Network) else several[0]
    keys = [
        jax.random.split(jax.random.key(run.config.seed + number))
        for number in range(max(1, len(several)))
    ]
    key_tasks, key_validation = keys[0]
    trained = schedule.trained or schedule.learner
    trainer = metajax.meta_trainer(
        trained(one, schedule.inner_steps, transductive=transductive),
        schedule.optimizer,
        tasks,
        meta_batch=schedule.meta_batch,
        tasks_per_chunk=tasks_per_chunk,
        mesh=None if several else metajax.task_mesh(schedule.meta_batch),
        non_finite=non_finite,
    )
    score = metajax.evaluator(
        schedule.learner(one, schedule.test_steps, transductive=transductive),
        validation,
        episodes=VALIDATION_EPISODES,
        curve=False,
        mesh=metajax.task_mesh(jax.device_count()),
    )
    validate = lambda params: score(params, key_validation).mean
    start = trainer, trainer.init(one.params, key_tasks)
    if several:
        start = seeds.together(
            trainer, tasks, [each.params for each in several], [key for key, _ in keys]
        )
        validate = seeds.scores_together(validate, len(several))
    return fit(
        run,
        *start,
        steps=schedule.steps,
        validate=validate,
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


def both_ways(
    task: str, learner: Callable[[bool], Learner], sample: Sampler, **options: Any
) -> list[Evaluation]:
    """Rows of ``learner(transductive)``; the published figure and the curve are the first's.

    Args:
        task: such as ``"5-way 1-shot"``.
        learner: builds it.
        sample: draws the test tasks.
        **options: others of ``Evaluation``.
    """
    protocols = {
        True: "statistics of the query batch: transductive",
        False: "statistics of the support set: not transductive",
    }
    firsts = {name: options.pop(name) for name in ("paper", "curve") if name in options}
    return [
        Evaluation(
            task,
            protocol,
            learner(transductive),
            sample,
            transductive=transductive,
            **options,
            **(firsts if transductive else {}),
        )
        for transductive, protocol in protocols.items()
    ]


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
    command: str,
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
        command: what makes this run again.
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
        command=command,
        environment=environment(),
        curves=curves,
    )
    table = write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    if curves:
        plots.inner_steps(run.path / "inner_steps.png", curves, ylabel="accuracy in %")

    learner = schedule.learner(network, schedule.test_steps)
    assert learner.predict is not None
    episode = picture(jax.random.key(TEST_SEED))
    adapted, _ = jax.jit(learner.adapt)(jax.device_get(params), episode.support)
    logits = learner.predict(adapted, episode.support, episode.query.inputs)
    plots.episode_grid(
        run.path / "episode.png",
        _arrays(episode.support),
        _arrays(episode.query),
        np.asarray(logits.argmax(axis=-1)),
    )
    return table


def _arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(batch.inputs), np.asarray(batch.targets)
