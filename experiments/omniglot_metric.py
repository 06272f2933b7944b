"""Metric-based meta-learning on Omniglot, beside the papers' numbers.

python -m experiments.omniglot_metric trains Prototypical Networks: episodes of 60 classes, the four
rotations of a character as classes of their own, five query images a class. The model is tested on
5-way and 20-way tasks alike, with running statistics: no query image sees another one.

--method takes another learner on the same network, --k-shot the shots of training and test, and
--protocol paper the published schedule of Prototypical Networks: Adam at 1e-3, halved every 2,000
episodes.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax import models, runs
from metajax.data import ClassData, episode_sampler, omniglot
from metajax.runs import fewshot, plots

Method = Literal["prototypical", "matching", "r2d2"]

# Accuracy in % by (n_way, k_shot), with the source.
PUBLISHED: dict[Method, tuple[str, dict[tuple[int, int], str]]] = {
    "prototypical": (
        "Snell et al. 2017, table 1",
        {(5, 1): "98.8", (5, 5): "99.7", (20, 1): "96.0", (20, 5): "98.9"},
    ),
    "matching": (
        "Vinyals et al. 2016, table 1",
        {(5, 1): "98.1", (5, 5): "98.9", (20, 1): "93.8", (20, 5): "98.5"},
    ),
    "r2d2": ("none", {}),
}
SIZE = 28
QUERY_IN_TRAINING = 5
QUERY_AT_TEST = 15
TEST_WAYS = (5, 20)
DEFAULT_STEPS = {"fast": 3000, "paper": 20_000}
MATCHING_SCALE = 10.0
"""What the cosine is multiplied by: within [-1, 1] a softmax over 60 images can't be sure."""


@dataclasses.dataclass(frozen=True)
class Config(runs.RunConfig):
    """Options of the experiment."""

    method: Method = "prototypical"
    """The learner."""
    k_shot: int = 1
    """Support images of each class, in training and at test."""
    train_way: int = 60
    """Classes of a training episode."""
    protocol: Literal["fast", "paper"] = "fast"
    """How to train: our faster schedule, or that of Prototypical Networks' published code."""
    test_episodes: int = 1000
    """Test tasks in each row of the table."""
    validate_every: int = 500
    """Meta-steps between validations (200 20-way tasks of the validation classes)."""
    data: Path | None = None
    """Folder with Omniglot's zip files, or with them unpacked; as for experiments.omniglot."""

    may_differ: ClassVar[frozenset[str]] = runs.RunConfig.may_differ | {"data", "test_episodes"}

    def __post_init__(self) -> None:
        super().__post_init__()
        runs.check_positive(self, "k_shot", "validate_every")
        if self.train_way < 2:
            raise ValueError(f"train_way must be at least 2; got {self.train_way}")
        if self.test_episodes < 2:
            raise ValueError(f"test_episodes must be at least 2; got {self.test_episodes}")


def network_of(key: jax.Array, features: int = 64) -> tuple[Any, metajax.losses.Apply]:
    """The four-layer network with max-pooling: its variables, and its apply function."""
    body = models.Conv4(None, features=features, form="pool", norm="running")
    return metajax.from_linen(body, key, jnp.zeros((1, SIZE, SIZE, 1)))


def learner_of(
    method: Method, apply: metajax.losses.Apply, *, n_way: int, train: bool
) -> metajax.Learner:
    """The method on episodes of so many classes.

    In training the batch's statistics normalise, and the running ones are reported; at test these
    do.
    """

    def embed(variables, inputs):
        if train:
            return apply(variables, inputs, mutable=["batch_stats"])
        return apply(variables, inputs, train=False)

    if method == "matching":
        return metajax.matching(embed, n_way=n_way, scale=MATCHING_SCALE)
    build = metajax.prototypical if method == "prototypical" else metajax.r2d2
    return build(embed, n_way=n_way)


def optimizer_of(config: Config, steps: int) -> tuple[str, optax.GradientTransformation]:
    """The outer optimizer, in words and as it is."""
    if config.protocol == "paper":
        halved = optax.exponential_decay(1e-3, 2000, 0.5, staircase=True)
        return "the paper's: Adam at 1e-3, halved every 2,000 episodes", optax.adam(halved)
    rate = fewshot.warmup_cosine(5e-3, steps)
    return "ours: Muon with warm-up and cosine decay", fewshot.muon(rate)


def sampler(data: ClassData, n_way: int, k_shot: int, query: int) -> metajax.Sampler:
    """Episodes in which the four rotations of a character are classes of their own."""
    return episode_sampler(data, n_way=n_way, k_shot=k_shot, query=query, rotations="as_classes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, evaluates, and leaves everything in the run folder."""
    metajax.use_every_core()
    config = runs.parse(Config, arguments, __doc__ or "")
    config = dataclasses.replace(config, steps=config.steps or DEFAULT_STEPS[config.protocol])
    assert config.steps is not None
    run = runs.open_run(f"omniglot-{config.method}-{config.k_shot}shot", config)
    data = {
        split: omniglot(split, protocol="vinyals", folder=config.data)
        for split in ("train", "validation", "test")
    }

    key_network, key_tasks, key_validation = jax.random.split(jax.random.key(config.seed), 3)
    variables, apply = network_of(key_network)
    description, optimizer = optimizer_of(config, config.steps)
    learner = learner_of(config.method, apply, n_way=config.train_way, train=True)
    # An episode is one batch to the normalisation, so it isn't shared between devices: all cores
    # work on its large operations.
    trainer = metajax.meta_trainer(
        learner,
        optimizer,
        sampler(data["train"], config.train_way, config.k_shot, QUERY_IN_TRAINING),
        meta_batch=1,
        carry=metajax.carry_statistics,
    )

    @functools.cache  # evaluate compiles a learner and a sampler once, if they are the same objects
    def test(split, n_way):
        learner = learner_of(config.method, apply, n_way=n_way, train=False)
        return learner, sampler(data[split], n_way, config.k_shot, QUERY_AT_TEST)

    def score(params, split, n_way, key, episodes):
        learner, sample = test(split, n_way)
        mesh = metajax.task_mesh(episodes)
        return metajax.evaluate(learner, params, sample, key, episodes=episodes, mesh=mesh)

    def validate(params):
        n_way, episodes = TEST_WAYS[-1], fewshot.VALIDATION_EPISODES
        return score(params, "validation", n_way, key_validation, episodes).mean

    fitted = runs.fit(
        run,
        trainer,
        trainer.init(variables, key_tasks),
        steps=config.steps,
        validate=validate,
        validate_every=config.validate_every,
    )

    started = time.perf_counter()
    source, published = PUBLISHED[config.method]
    rows = []
    for n_way in TEST_WAYS:
        key = jax.random.fold_in(jax.random.key(fewshot.TEST_SEED), n_way)
        scores = score(fitted.state.params, "test", n_way, key, config.test_episodes)
        rows.append(
            runs.Row(
                task=f"{n_way}-way {config.k_shot}-shot",
                evaluation="running statistics: not transductive",
                mean=100 * scores.mean["accuracy"],
                ci95=100 * scores.ci95["accuracy"],
                paper=published.get((n_way, config.k_shot)),
                episodes=scores.episodes,
                inner_steps=0,
                query=QUERY_AT_TEST,
            )
        )
    report = runs.Report(
        title=f"{config.method.capitalize()} on Omniglot, {config.k_shot}-shot",
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
        command=runs.command("experiments.omniglot_metric", config),
        environment=runs.environment(),
    )
    table = runs.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", fitted.metrics)
    print(f"\n{table}\nEverything is in {run.path}.")


if __name__ == "__main__":
    runs.guard(main)
