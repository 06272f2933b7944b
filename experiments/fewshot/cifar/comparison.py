"""How learners that compare are trained and tested: see ``experiments.fewshot.cifar.train``."""

import jax
import jax.numpy as jnp

import metajax
from experiments import common
from experiments.fewshot import comparing
from experiments.fewshot.cifar.config import (
    SIZE,
    WAYS,
    Config,
    augmented,
    load,
    module_of,
    plain,
    target_of,
)
from experiments.fewshot.cifar.published import published
from experiments.fewshot.schedules import muon, warmup_cosine


def network_of(config: Config, key: jax.Array) -> comparing.Network:
    """A network without a head; its statistics are kept."""
    body = module_of(config, norm="running")
    variables, apply = metajax.from_linen(body, key, jnp.zeros((1, SIZE, SIZE, 3)))
    return comparing.Network(variables, comparing.reporting(apply), keyed=config.body == "resnet12")


def train_and_test(run: common.Run, config: Config, *, command: str) -> str:
    """Trains, tests and writes the table into the run folder; returns it."""
    known = published(config.data_set, config.body, config.method)
    data = load(config.data_set)
    return comparing.train_and_test(
        run,
        config,
        comparing.Comparison(
            method=config.method,
            data_set=config.data_set.upper(),
            source=known.source,
            published={(WAYS, shots): figure for shots, figure in known.figures.items()},
            network=network_of(config, comparing.keys_of(config)[0]),
            description=config.words,
            optimizer=muon(warmup_cosine(config.rate, config.steps)),
            data=data,
            sample=augmented if config.augment else plain,
            test_sample=plain,
            query=config.query,
            ways=(WAYS,),
            target_domain=target_of(config, data),
        ),
        command=command,
    )
