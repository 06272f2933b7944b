"""Metric-based meta-learning on Omniglot, beside the papers' numbers.

python -m experiments.fewshot.omniglot.metric trains Prototypical Networks: episodes of 60 classes,
the four rotations of a character as classes of their own, five query images a class. The model is
tested on 5-way and 20-way tasks alike, with running statistics: no query image sees another one.

--method takes another learner, in episodes of 20 classes: matching, r2d2, or relation with a
network of its own. --k-shot gives the shots of training and test, and --protocol paper the
published schedule of Prototypical Networks: Adam at 1e-3, halved every 2,000 episodes.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import jax
import optax

import metajax
from experiments import common
from experiments.common import plots
from experiments.fewshot.omniglot.networks import Method, learner_of, network_of
from experiments.fewshot.omniglot.published import BY_COMPARISON, METRIC_TITLES
from experiments.fewshot.schedules import muon, warmup_cosine
from experiments.fewshot.training import TEST_SEED, VALIDATION_EPISODES
from metajax.data import ClassData, episode_sampler, omniglot
from metajax.errors import ArgumentError

QUERY_IN_TRAINING = 5
QUERY_AT_TEST = 15
TEST_WAYS = (5, 20)


Protocol = Literal["fast", "paper"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.TrainingConfig):
    """Options of the experiment; steps and train_way are by default the schedule's."""

    method: Method = "prototypical"
    """The learner."""
    k_shot: int = 1
    """Support images of each class, in training and at test."""
    train_way: int
    """Classes of a training episode."""
    protocol: Protocol = "fast"
    """How to train: our faster schedule, or that of Prototypical Networks' published code."""
    test_episodes: int = 1000
    """Test tasks in each row of the table."""
    validate_every: int = 500
    """Meta-steps between validations (200 20-way tasks of the validation classes)."""
    data: Path | None = None
    """Folder with Omniglot's zip files, or with them unpacked; as for omniglot itself."""

    may_differ: ClassVar[frozenset[str]] = common.TrainingConfig.may_differ | {
        "data",
        "test_episodes",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "k_shot", "validate_every")
        if self.train_way < 2:
            raise ArgumentError(f"train_way must be at least 2; got {self.train_way}")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "", preset=preset)
    run = common.open_run(f"omniglot-{config.method}-{config.k_shot}shot", config)
    data = {
        split: omniglot(split, protocol="vinyals", folder=config.data)
        for split in ("train", "validation", "test")
    }

    key_network, key_tasks, key_validation = jax.random.split(jax.random.key(config.seed), 3)
    network = network_of(config.method, key_network)
    description, optimizer = optimizer_of(config)
    learner = learner_of(config.method, network, n_way=config.train_way, train=True)
    # An episode is one batch to the normalisation, so it isn't shared between devices: all cores
    # work on its large operations.
    trainer = metajax.meta_trainer(
        learner,
        optimizer,
        sampler(data["train"], config.train_way, config.k_shot, QUERY_IN_TRAINING),
        meta_batch=1,
        carry=metajax.carry_statistics,
        non_finite=config.non_finite,
    )

    def evaluator(split, n_way, episodes):
        return metajax.evaluator(
            learner_of(config.method, network, n_way=n_way, train=False),
            sampler(data[split], n_way, config.k_shot, QUERY_AT_TEST),
            episodes=episodes,
            curve=False,
            mesh=metajax.task_mesh(episodes),
        )

    score = evaluator("validation", TEST_WAYS[-1], VALIDATION_EPISODES)
    fitted = common.fit(
        run,
        trainer,
        trainer.init(network.variables, key_tasks),
        steps=config.steps,
        validate=lambda params: score(params, key_validation).mean,
        validate_every=config.validate_every,
    )

    started = time.perf_counter()
    source, published = BY_COMPARISON[config.method]
    rows = []
    for n_way in TEST_WAYS:
        key = jax.random.fold_in(jax.random.key(TEST_SEED), n_way)
        scores = evaluator("test", n_way, config.test_episodes)(fitted.state.params, key)
        rows.append(
            common.Row(
                task=f"{n_way}-way {config.k_shot}-shot",
                evaluation="running statistics: not transductive",
                mean=100 * scores.mean["accuracy"],
                ci95=100 * scores.ci95["accuracy"],
                paper=published.get((n_way, config.k_shot)),
                episodes=scores.episodes,
                inner_steps=0,
                query=QUERY_AT_TEST,
                transductive=False,
            )
        )
    report = common.Report(
        title=f"{METRIC_TITLES[config.method]} on Omniglot, {config.k_shot}-shot",
        metric="accuracy in % ± 95 % CI",
        source=source,
        schedule=description,
        training={
            "steps": config.steps,
            "ways": config.train_way,
            "shots": config.k_shot,
            "query per class": QUERY_IN_TRAINING,
            "seed": config.seed,
        },
        rows=rows,
        seconds={"training": fitted.seconds, "evaluation": time.perf_counter() - started},
        command=common.command("experiments.fewshot.omniglot.metric", config, preset=preset),
        environment=common.environment(),
    )
    table = common.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    print(f"\n{table}\nEverything is in {run.path}.")


if __name__ == "__main__":
    common.guard(main)
