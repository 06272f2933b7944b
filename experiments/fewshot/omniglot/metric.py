"""Metric-based meta-learning on Omniglot, beside the papers' numbers.

python -m experiments.fewshot.omniglot.metric trains Prototypical Networks: episodes of 60 classes,
the four rotations of a character as classes of their own, five query images a class. The model is
tested on 5-way and 20-way tasks alike, with running statistics: no query image sees another one.

--method takes another learner, in episodes of 20 classes: matching, r2d2, or relation with a
network of its own. --k-shot gives the shots of training and test, and --protocol paper the
published schedule of Prototypical Networks: Adam at 1e-3, halved every 2,000 episodes.

--split lake is Lake's challenge: training on alphabets of the background set alone, and test tasks
of 20 characters of one alphabet of the evaluation set. The usual split trains on 236 characters of
the evaluation set.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import optax

import metajax
from experiments import common
from experiments.fewshot import comparing, target_domain
from experiments.fewshot.omniglot.networks import Method, network_of
from experiments.fewshot.omniglot.published import BY_COMPARISON, LAKE, NOTHING
from experiments.fewshot.schedules import muon, warmup_cosine
from metajax.data import ClassData, episode_sampler, omniglot

QUERY_IN_TRAINING = 5
TEST_WAYS = (5, 20)

Protocol = Literal["fast", "paper"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(comparing.Config):
    """Options of the experiment; steps and train_way are by default the schedule's."""

    method: Method = "prototypical"
    """The learner."""
    protocol: Protocol = "fast"
    """How to train: our faster schedule, or that of Prototypical Networks' published code."""
    split: Literal["vinyals", "lake"] = "vinyals"
    """Which characters train, validate and test: Vinyals' split of all, or Lake's two sets, with
    tasks within an alphabet in validation and test."""
    data: Path | None = None
    """Folder with Omniglot's zip files, or with them unpacked; as for omniglot itself."""

    may_differ: ClassVar[frozenset[str]] = comparing.Config.may_differ | {"data"}


def preset(method: Method = "prototypical", protocol: Protocol = "fast", k_shot: int = 1) -> Config:
    """The config of a method's schedule; an episode of five shots is larger, and fewer do."""
    steps = {"matching": 1500, "r2d2": 3000}.get(method, 2000)
    if protocol == "paper":
        steps = 20_000
    elif k_shot > 1:
        steps = steps * 3 // 4
    return Config(
        method=method,
        protocol=protocol,
        k_shot=k_shot,
        steps=steps,
        train_way=60 if method == "prototypical" else 20,
    )


def optimizer_of(config: Config) -> tuple[str, optax.GradientTransformation]:
    """The outer optimizer, in words and as it is."""
    if config.protocol == "paper":
        halved = optax.exponential_decay(1e-3, 2000, 0.5, staircase=True)
        return "the paper's: Adam at 1e-3, halved every 2,000 episodes", optax.adam(halved)
    rate = warmup_cosine(5e-3, config.steps)
    return "ours: Muon with warm-up and cosine decay", muon(rate)


def sampler(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes in which the four rotations of a character are classes of their own."""
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query, rotations="as_classes")


def within_alphabets(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes of characters of one alphabet each, as they are written."""
    alphabets = np.unique([name.split("/")[0] for name in data.names], return_inverse=True)[1]
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query, groups=alphabets)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "", preset=preset)
    lake = config.split == "lake"
    name = f"omniglot-{'lake-' if lake else ''}{config.method}-{config.k_shot}shot"
    run = common.open_run(name, config)
    data = {
        split: omniglot(split, protocol=config.split, folder=config.data)
        for split in ("train", "validation", "test")
    }

    network = network_of(config.method, comparing.keys_of(config)[0])
    description, optimizer = optimizer_of(config)
    source, published = (LAKE if lake else BY_COMPARISON).get(config.method, NOTHING)
    table = comparing.train_and_test(
        run,
        config,
        comparing.Comparison(
            method=config.method,
            data_set="Omniglot, within an alphabet" if lake else "Omniglot",
            source=source,
            published=published,
            network=network,
            description=description,
            optimizer=optimizer,
            data=data,
            sample=sampler,
            test_sample=within_alphabets if lake else sampler,
            query=QUERY_IN_TRAINING,
            ways=TEST_WAYS[-1:] if lake else TEST_WAYS,
            target_domain=target_domain.read(config.target_domain, size=28, channels=1, known=()),
        ),
        command=common.command("experiments.fewshot.omniglot.metric", config, preset=preset),
    )
    common.finish(run.path, table, then="make omniglot-table has all learners in one table.")


if __name__ == "__main__":
    common.guard(main)
