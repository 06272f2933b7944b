"""A classifier of all training classes, whose features decide new tasks: see
``experiments.fewshot.cifar.train``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import metajax
from experiments import common
from experiments.fewshot import comparing
from experiments.fewshot.cifar.config import (
    SHOTS,
    SIZE,
    WAYS,
    Config,
    changed,
    load,
    module_of,
    plain,
    target_of,
)
from experiments.fewshot.cifar.published import TITLES, published
from experiments.fewshot.comparing import evaluation
from experiments.fewshot.schedules import muon, warmup_cosine
from metajax import lm, losses
from metajax.data import ClassData
from metajax.learners import Learner
from metajax.types import Batch, Episode, Sampler

BATCH = 128


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
        "logistic regression on features of length 1": metajax.linear_probe(embed, n_way=WAYS),
        "nearest class mean by the cosine": metajax.prototypical(
            embed, n_way=WAYS, distance="cosine"
        ),
    }


def _network(config: Config, **options: Any) -> tuple[Any, losses.Apply]:
    module = module_of(config, norm="running", **options)
    return metajax.from_linen(module, comparing.keys_of(config)[0], jnp.zeros((1, SIZE, SIZE, 3)))


def train_and_test(run: common.Run, config: Config, *, command: str) -> str:
    """Trains, tests and writes the table into the run folder; returns it."""
    data = load(config.data_set)
    _, key_batches, _ = comparing.keys_of(config)
    variables, apply = _network(config, n_classes=len(data["train"].counts))
    sample = image_sampler(data["train"], BATCH)
    classify = apply
    if config.body == "resnet12":
        classify = metajax.keyed(
            lambda params, images, key, **options: apply(params, images, key=key, **options)
        )
    # The batch's statistics normalise, so that it isn't shared between devices.
    trainer = metajax.meta_trainer(
        lm.supervised(losses.cross_entropy(classify, mutable=["batch_stats"])),
        muon(warmup_cosine(config.rate, config.steps)),
        changed(sample) if config.augment else sample,
        meta_batch=1,
        carry=metajax.carry_statistics,
        non_finite=config.non_finite,
    )
    known = published(config.data_set, config.body, config.method)
    other = target_of(config, data)
    learners = probes(config)
    first = next(iter(learners))
    sampler = lambda split, k_shot: plain(data[split], WAYS, k_shot, comparing.QUERY_AT_TEST)
    tests = []
    for k_shot in sorted({*SHOTS, config.k_shot}):
        for by, learner in learners.items():
            task, figure = f"{WAYS}-way {k_shot}-shot", known.figures.get(k_shot)
            paper = figure if by == first else None
            tests.append(evaluation(task, learner, sampler("test", k_shot), paper, by))
            if other is not None:
                sample = other.sample(k_shot, comparing.QUERY_AT_TEST)
                tests.append(evaluation(other.task(k_shot), learner, sample, None, by))
    return comparing.fit_and_test(
        run,
        config,
        trainer,
        trainer.init(variables, key_batches),
        validation=evaluation(
            "validation", learners[first], sampler("validation", config.k_shot), None, first
        ),
        tests=tests,
        title=f"{TITLES[config.method]} on {config.data_set.upper()}",
        source=known.source,
        schedule=config.words,
        training={"images a step": BATCH, "classes": len(data["train"].counts)},
        command=command,
    )
