"""A first look: MAML learns to tell five characters apart from one image of each.

python -m experiments.fewshot.demo needs no download. It draws the characters of many scripts from
matplotlib's fonts, meta-trains second-order MAML on most of them, and tests on characters that it
never saw.

Expected: 97.7 ± 0.6 % (seed 0, 600 test tasks, one query image a class), 93.4 ± 0.5 % without
looking at the other queries (15 query images a class).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import optax

from experiments import common
from experiments.fewshot import networks
from experiments.fewshot.schedules import CURVE_STEPS, Schedule, maml_learner, warmup_cosine
from experiments.fewshot.training import Evaluation, publish, tasks_of, train
from metajax.data import episode_sampler, glyphs
from metajax.errors import ArgumentError

N_WAY, K_SHOT = 5, 1


@dataclasses.dataclass(frozen=True)
class Config(common.DistributedConfig):
    """Options of the demo."""

    steps: int = 800
    """Outer updates (meta-steps); a multiple of --log-every saves the time to compile the rest."""
    test_episodes: int = 600
    """Test tasks in each row of the table."""

    may_differ: ClassVar[frozenset[str]] = common.DistributedConfig.may_differ | {"test_episodes"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the characters, meta-trains, tests, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    common.connect(config)
    schedule = Schedule(
        description="Adam with warm-up and cosine decay",
        steps=config.steps,
        meta_batch=16,
        learner=maml_learner(1.0),
        inner_rate=1.0,
        inner_steps=1,
        test_steps=3,
        head_std=networks.HEAD_STD,
        rotations="none",
        optimizer=optax.adam(warmup_cosine(3e-3, config.steps)),
    )
    run = common.open_run("demo", config)

    common.show("Drawing the characters (the first time; they are kept) ...")
    data = {split: glyphs(split) for split in ("train", "validation", "test")}
    sizes = ", ".join(f"{len(part.counts)} for {split}" for split, part in data.items())
    common.show(f"Classes: {sizes}. A task is {N_WAY} of them, {K_SHOT} image each.")

    network = networks.conv4(N_WAY, jax.random.key(config.seed), head_std=schedule.head_std)
    fitted = train(
        run,
        network,
        schedule,
        *tasks_of(schedule, data["train"], data["validation"], n_way=N_WAY, k_shot=K_SHOT),
        validate_every=400,
        non_finite=config.non_finite,
    )
    test_tasks = lambda query: episode_sampler(
        data["test"], n_way=N_WAY, k_shot=K_SHOT, query=query
    )
    evaluations = [
        Evaluation(
            task=f"{N_WAY}-way {K_SHOT}-shot",
            protocol=protocol,
            learner=schedule.learner(network, steps, transductive=transductive),
            sample=test_tasks(query),
            inner_steps=schedule.test_steps,
            query=query,
            transductive=transductive,
            curve=steps > schedule.test_steps,
        )
        for protocol, transductive, query, steps in (
            ("transductive, as in the MAML paper", True, K_SHOT, CURVE_STEPS),
            ("honest: not transductive", False, 15, schedule.test_steps),
        )
    ]
    table = publish(
        run,
        network,
        schedule,
        fitted,
        evaluations,
        picture=test_tasks(5),
        episodes=config.test_episodes,
        title="MAML on characters that it never saw",
        source="none",
        training={"seed": config.seed},
        command=common.command("experiments.fewshot.demo", config),
    )
    common.finish(
        run.path,
        table,
        then="episode.png shows a task and what MAML made of it. make omniglot has the paper's "
        "data and\nnumbers; metajax.data.from_folder takes your own images.",
    )


if __name__ == "__main__":
    common.guard(main)
