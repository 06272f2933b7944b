"""Metric-based meta-learning on Omniglot, beside the papers' numbers.

python -m experiments.fewshot.omniglot.metric trains Prototypical Networks: episodes of 60 classes, the four
rotations of a character as classes of their own, five query images a class. The model is tested on
5-way and 20-way tasks alike, with running statistics: no query image sees another one.

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
from experiments.fewshot import classification
from experiments.fewshot.omniglot.networks import Method, learner_of, network_of
from experiments.fewshot.omniglot.schedules import UNCHECKED
from metajax.data import ClassData, episode_sampler, omniglot
from metajax.errors import ArgumentError

TITLES: dict[str, str] = {
    "prototypical": "Prototypical Networks",
    "matching": "Matching Networks",
    "relation": "Relation Networks",
    "r2d2": "R2-D2",
}

# Accuracy in % by (n_way, k_shot), with the source.
PUBLISHED: dict[str, tuple[str, dict[tuple[int, int], str]]] = {
    "prototypical": (
        "Snell et al. 2017, table 1",
        {(5, 1): "98.8", (5, 5): "99.7", (20, 1): "96.0", (20, 5): "98.9"},
    ),
    "matching": (
        "Vinyals et al. 2016, table 1",
        {(5, 1): "98.1", (5, 5): "98.9", (20, 1): "93.8", (20, 5): "98.5"},
    ),
    "relation": (
        "Sung et al. 2018",
        {
            (5, 1): "99.6" + UNCHECKED,
            (5, 5): "99.8" + UNCHECKED,
            (20, 1): "97.6" + UNCHECKED,
            (20, 5): "99.1" + UNCHECKED,
        },
    ),
    "r2d2": (
        "Bertinetto et al. 2019",
        {
            (5, 1): "98.91" + UNCHECKED,
            (5, 5): "99.74" + UNCHECKED,
            (20, 1): "96.2" + UNCHECKED,
            (20, 5): "99.2" + UNCHECKED,
        },
    ),
}
QUERY_IN_TRAINING = 5
QUERY_AT_TEST = 15
TEST_WAYS = (5, 20)


@dataclasses.dataclass(frozen=True)
class Config(common.TrainingConfig):
    """Options of the experiment."""

    method: Method = "prototypical"
    """The learner."""
    k_shot: int = 1
    """Support images of each class, in training and at test."""
    train_way: int | None = None
    """Classes of a training episode; without it 60 for prototypical, 20 for the others."""
    protocol: Literal["fast", "paper"] = "fast"
    """How to train: our faster schedule, or that of Prototypical Networks' published code."""
    test_episodes: int = 1000
    """Test tasks in each row of the table."""
    validate_every: int = 500
    """Meta-steps between validations (200 20-way tasks of the validation classes)."""
    data: Path | None = None
    """Folder with Omniglot's zip files, or with them unpacked; as for experiments.fewshot.omniglot.train."""

    may_differ: ClassVar[frozenset[str]] = common.TrainingConfig.may_differ | {
        "data",
        "test_episodes",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "k_shot", "validate_every")
        if self.train_way is None:
            object.__setattr__(self, "train_way", 60 if self.method == "prototypical" else 20)
        elif self.train_way < 2:
            raise ArgumentError(f"train_way must be at least 2; got {self.train_way}")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")


def steps_of(config: Config) -> int:
    """The schedule's meta-steps, where none were asked for; of five shots an episode is larger."""
    if config.protocol == "paper":
        return 20_000
    count = {"matching": 1500, "r2d2": 3000}.get(config.method, 2000)
    return count if config.k_shot == 1 else count * 3 // 4


def optimizer_of(config: Config, steps: int) -> tuple[str, optax.GradientTransformation]:
    """The outer optimizer, in words and as it is."""
    if config.protocol == "paper":
        halved = optax.exponential_decay(1e-3, 2000, 0.5, staircase=True)
        return "the paper's: Adam at 1e-3, halved every 2,000 episodes", optax.adam(halved)
    rate = classification.warmup_cosine(5e-3, steps)
    return "ours: Muon with warm-up and cosine decay", classification.muon(rate)


def sampler(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes in which the four rotations of a character are classes of their own."""
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query, rotations="as_classes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = common.parse(Config, arguments, __doc__ or "")
    config = dataclasses.replace(config, steps=config.steps or steps_of(config))
    assert config.steps is not None
    assert config.train_way is not None
    run = common.open_run(f"omniglot-{config.method}-{config.k_shot}shot", config)
    data = {
        split: omniglot(split, protocol="vinyals", folder=config.data)
        for split in ("train", "validation", "test")
    }

    key_network, key_tasks, key_validation = jax.random.split(jax.random.key(config.seed), 3)
    network = network_of(config.method, key_network)
    description, optimizer = optimizer_of(config, config.steps)
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

    score = evaluator("validation", TEST_WAYS[-1], classification.VALIDATION_EPISODES)
    fitted = common.fit(
        run,
        trainer,
        trainer.init(network.variables, key_tasks),
        steps=config.steps,
        validate=lambda params: score(params, key_validation).mean,
        validate_every=config.validate_every,
    )

    started = time.perf_counter()
    source, published = PUBLISHED[config.method]
    rows = []
    for n_way in TEST_WAYS:
        key = jax.random.fold_in(jax.random.key(classification.TEST_SEED), n_way)
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
        title=f"{TITLES[config.method]} on Omniglot, {config.k_shot}-shot",
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
        command=common.command("experiments.fewshot.omniglot.metric", config),
        environment=common.environment(),
    )
    table = common.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    print(f"\n{table}\nEverything is in {run.path}.")


if __name__ == "__main__":
    common.guard(main)
