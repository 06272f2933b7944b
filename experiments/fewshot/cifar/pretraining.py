"""A classifier of all training classes, whose features decide new tasks: see
``experiments.fewshot.cifar.train``."""

import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import metajax
from experiments import common
from experiments.common import plots
from experiments.fewshot import comparing, target_domain, training
from experiments.fewshot.cifar.config import WAYS, Config, changed, load, module_of, plain
from experiments.fewshot.cifar.published import TITLES, published
from experiments.fewshot.schedules import muon, warmup_cosine
from metajax import lm, losses
from metajax.data import ClassData
from metajax.learners import Learner
from metajax.types import Batch, Episode, Sampler

BATCH = 128
SHOTS = (1, 5)
"""Shots of the test tasks: training knows none."""


def image_sampler(data: ClassData, batch: int) -> Sampler:
    """Batches of all classes, as the query sets of tasks without support."""
    targets = np.repeat(np.arange(len(data.counts)), data.counts)
    return Partial(functools.partial(_draw, batch), data.examples, targets)


def _draw(batch: int, examples: jax.Array, targets: jax.Array, key: jax.Array) -> Episode:
    index = jax.random.randint(key, (batch,), 0, len(examples))
    images = jnp.asarray(examples)[index].astype(jnp.float32) / 255
    drawn = Batch(images, jnp.asarray(targets)[index])
    return Episode(jax.tree.map(lambda leaf: leaf[:0], drawn), drawn)


def probes(config: Config) -> dict[str, Learner]:
    """What decides a task by the network's features, by its description."""
    _, apply = _network(config)
    embed = functools.partial(apply, train=False)
    return {
        "logistic regression on features of length 1: not transductive": metajax.linear_probe(
            embed, n_way=WAYS
        ),
        "nearest class mean by the cosine: not transductive": metajax.prototypical(
            embed, n_way=WAYS, distance="cosine"
        ),
    }


def _network(config: Config, **options: Any) -> tuple[Any, losses.Apply]:
    module = module_of(config, norm="running", **options)
    return metajax.from_linen(module, comparing.keys_of(config)[0], jnp.zeros((1, 32, 32, 3)))


def train_and_test(run: common.Run, config: Config, *, command: str) -> str:
    """Trains, tests and writes the table into the run folder; returns it."""
    data = load(config.data_set)
    _, key_batches, key_validation = comparing.keys_of(config)
    variables, apply = _network(config, n_classes=len(data["train"].counts))
    sample = image_sampler(data["train"], BATCH)
    # The batch's statistics normalise, so that it isn't shared between devices.
    trainer = metajax.meta_trainer(
        lm.supervised(losses.cross_entropy(apply, mutable=["batch_stats"])),
        muon(warmup_cosine(config.rate, config.steps)),
        changed(sample) if config.augment else sample,
        meta_batch=1,
        carry=metajax.carry_statistics,
        non_finite=config.non_finite,
    )
    learners = probes(config)

    def evaluator(learner: Learner, sample: Sampler, episodes: int):
        return metajax.evaluator(
            learner,
            sample,
            episodes=episodes,
            curve=False,
            mesh=metajax.task_mesh(episodes),
        )

    def sampler(split: str, k_shot: int) -> Sampler:
        return plain(data[split], WAYS, k_shot, comparing.QUERY_AT_TEST)

    first = next(iter(learners.values()))
    score = evaluator(first, sampler("validation", config.k_shot), training.VALIDATION_EPISODES)
    fitted = common.fit(
        run,
        trainer,
        trainer.init(variables, key_batches),
        steps=config.steps,
        validate=lambda params: score(params, key_validation).mean,
        validate_every=config.validate_every,
    )

    started = time.perf_counter()
    known = published(config.data_set, config.body, config.method)
    rows = []
    other = target_domain.read(config.target_domain, size=32, channels=3, known=data["train"].names)
    for k_shot in sorted({*SHOTS, config.k_shot}):
        tests = [(f"{WAYS}-way {k_shot}-shot", sampler("test", k_shot), known.figures.get(k_shot))]
        if other is not None:
            tests.append((other.task(k_shot), other.sample(k_shot, comparing.QUERY_AT_TEST), None))
        for (task, sample, figure), (protocol, learner) in itertools.product(
            tests, learners.items()
        ):
            key = jax.random.fold_in(jax.random.key(training.TEST_SEED), k_shot)
            score = evaluator(learner, sample, config.test_episodes)
            scores = score(fitted.state.params, key)
            rows.append(
                common.Row(
                    task=task,
                    evaluation=protocol,
                    mean=100 * scores.mean["accuracy"],
                    ci95=100 * scores.ci95["accuracy"],
                    paper=figure if learner is first else None,
                    episodes=scores.episodes,
                    inner_steps=0,
                    query=comparing.QUERY_AT_TEST,
                    transductive=False,
                )
            )
    report = common.Report(
        title=f"{TITLES[config.method]} on {config.data_set.upper()}",
        metric="accuracy in % ± 95 % CI",
        source=known.source,
        schedule=config.words,
        training={
            "steps": config.steps,
            "images a step": BATCH,
            "classes": len(data["train"].counts),
            "seed": config.seed,
        },
        rows=rows,
        seconds={"training": fitted.seconds, "evaluation": time.perf_counter() - started},
        command=command,
        environment=common.environment(),
    )
    table = common.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    return table
