"""MAML on sinusoid regression: Finn et al. 2017 (arXiv 1703.03400), section 5.1 and figure 3.

python -m experiments.fewshot.sinusoid trains for 20,000 meta-steps; --steps 70000 is the paper's
number.

Compared are MAML; the same network trained on all tasks together and then fine-tuned, at the best
of several rates; and an oracle, a network that is given each task's amplitude and phase as inputs
and does not adapt.

Expected after 20,000 meta-steps (10 points, seed 0, 600 test tasks): a mean squared error of 0.37
after one inner step and 0.10 after ten; 1.70 for the fine-tuned network, 0.005 for the oracle. It
took 40 seconds on two CPU cores.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.common import plots
from metajax import losses, models
from metajax.data import sinusoid_sampler
from metajax.errors import ArgumentError
from metajax.learners import Learner

META_BATCH = 25
TEST_SEED = 2017
TEST_STEPS = 10
TEST_QUERY = 100
FINE_TUNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclasses.dataclass(frozen=True)
class Config(common.RunConfig):
    """Options of the sinusoid experiment."""

    k_shot: int = 10
    """Points that a task is learnt from, and as many query points in training."""
    inner_rate: float = 0.01
    """Inner learning rate (0.01 in the paper, 0.001 in its published code)."""
    steps: int = 20_000
    """Outer updates (meta-steps)."""
    test_episodes: int = 600
    """Test tasks."""
    log_every: int = 1000
    """Meta-steps in one dispatch to the device, and in one line of metrics.jsonl."""
    checkpoint_every: int = 10_000
    """Meta-steps between checkpoints; one is written at the end in any case."""

    may_differ: ClassVar[frozenset[str]] = common.RunConfig.may_differ | {"test_episodes"}

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_positive(self, "k_shot", "inner_rate")
        if self.test_episodes < 2:
            raise ArgumentError(f"test_episodes must be at least 2; got {self.test_episodes}")


def pooled(learner: Learner, loss_fn: Any) -> Learner:
    """The learner's opposite: ordinary training on all tasks together, without adaptation."""

    def gradient(params, episode):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), episode.support, episode.query)
        loss, gradient = jax.value_and_grad(loss_fn)(params, both)
        return gradient, {"loss": loss}

    return learner._replace(gradient=gradient)


def with_parameters(sample: metajax.Sampler) -> metajax.Sampler:
    """Episodes whose inputs are x, amplitude and phase.

    y = A sin(x - p) is linear in (A cos p, -A sin p) and has no noise: least squares finds both.
    """

    def sample_with_parameters(key: jax.Array, /) -> metajax.Episode:
        episode = sample(key)
        x = jnp.concatenate([episode.support.inputs, episode.query.inputs])
        y = jnp.concatenate([episode.support.targets, episode.query.targets])
        basis = jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=1)
        sine, cosine = jnp.linalg.lstsq(basis, y)[0][:, 0]
        phase = jnp.arctan2(-cosine, sine)
        # Phases are in [0, pi]: rounding must not take pi to -pi.
        phase = jnp.where(phase < -jnp.pi / 2, phase + 2 * jnp.pi, phase)
        known = jnp.stack([jnp.hypot(sine, cosine), phase])

        def extend(batch):
            extra = jnp.broadcast_to(known, (len(batch.inputs), 2))
            return batch._replace(inputs=jnp.concatenate([batch.inputs, extra], axis=1))

        return metajax.Episode(extend(episode.support), extend(episode.query))

    return sample_with_parameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the three, compares them, and leaves everything in the run folder."""
    config = common.parse(Config, arguments, __doc__ or "")
    run = common.open_run(f"sinusoid-{config.k_shot}shot", config)

    sample = sinusoid_sampler(k_shot=config.k_shot, query=config.k_shot)
    key_params, key_oracle, key_tasks = jax.random.split(jax.random.key(config.seed), 3)
    params, apply = metajax.from_linen(models.MLP(), key_params, jnp.zeros((1, 1)))
    oracle_params, oracle_apply = metajax.from_linen(models.MLP(), key_oracle, jnp.zeros((1, 3)))
    loss_fn, oracle_loss = losses.mean_squared_error(apply), losses.mean_squared_error(oracle_apply)

    def learner(steps: int, rate: float = config.inner_rate, loss: Any = loss_fn) -> Learner:
        return metajax.maml(loss, optax.sgd(rate), steps=steps)

    def train(
        run: common.Run, learner: Learner, sample: metajax.Sampler, params: Any
    ) -> common.Fitted:
        trainer = metajax.meta_trainer(
            learner, optax.adam(1e-3), sample, meta_batch=META_BATCH, tasks_per_chunk=META_BATCH
        )
        return common.fit(run, trainer, trainer.init(params, key_tasks), steps=config.steps)

    def part(name: str) -> common.Run:
        return run._replace(name=name, path=run.path / name)

    maml = train(run, learner(1), sample, params)
    joint = train(part("pretrained"), pooled(learner(1), loss_fn), sample, params)
    sample_oracle, oracle_learner = with_parameters(sample), learner(1, loss=oracle_loss)
    oracle = train(
        part("oracle"), pooled(oracle_learner, oracle_loss), sample_oracle, oracle_params
    )

    started = time.perf_counter()
    key_tune, key_test = jax.random.split(jax.random.key(TEST_SEED))
    sample_test = sinusoid_sampler(k_shot=config.k_shot, query=TEST_QUERY)

    def test(learner, params, sample=sample_test, key=key_test):
        return metajax.evaluate(
            learner, params, sample, key, episodes=config.test_episodes, tasks_per_chunk=100
        )

    with np.errstate(invalid="ignore"):  # too high a rate diverges, and is not chosen
        tuned = {
            rate: test(learner(TEST_STEPS, rate), joint.state.params, key=key_tune).mean["loss"]
            for rate in FINE_TUNING_RATES
        }
    rate = min(tuned, key=lambda rate: tuned[rate] if np.isfinite(tuned[rate]) else np.inf)
    scores = {
        "MAML": test(learner(TEST_STEPS), maml.state.params),
        f"trained on all tasks, fine-tuned at rate {rate:g}": test(
            learner(TEST_STEPS, rate), joint.state.params
        ),
        "oracle, given amplitude and phase": test(
            oracle_learner, oracle.state.params, with_parameters(sample_test)
        ),
    }
    task = f"{config.k_shot} points"
    rows = [
        common.Row(
            task=task,
            evaluation=name,
            mean=float(score.curve["loss"][steps]),
            ci95=float(score.curve_ci95["loss"][steps]),
            paper=None,
            episodes=score.episodes,
            inner_steps=steps,
            query=TEST_QUERY,
        )
        for name, score in scores.items()
        for steps in ((0,) if name.startswith("oracle") else (0, 1, 5, TEST_STEPS))
    ]
    # The oracle does not adapt: its error is drawn as a level.
    level = lambda name, values: values[:1].repeat(TEST_STEPS + 1) if "oracle" in name else values
    curves = [
        plots.Curve(name, level(name, score.curve["loss"]), level(name, score.curve_ci95["loss"]))
        for name, score in scores.items()
    ]
    report = common.Report(
        title="MAML on sinusoid regression",
        metric="mean squared error ± 95 % CI",
        source="none",
        schedule="the paper's: constant Adam, 1e-3",
        training={
            "steps": config.steps,
            "meta-batch": META_BATCH,
            "inner steps": 1,
            "inner rate": config.inner_rate,
            "seed": config.seed,
        },
        rows=rows,
        seconds={
            "training": maml.seconds,
            "training the others": joint.seconds + oracle.seconds,
            "evaluation": time.perf_counter() - started,
        },
        command=common.command("experiments.fewshot.sinusoid", config),
        environment=common.environment(),
        query="query points",
        curves=curves,
    )
    table = common.write_report(run.path, report)
    plots.training_curve(run.path / "training.png", maml.metrics, metric="loss")
    plots.inner_steps(run.path / "inner_steps.png", curves, ylabel="mean squared error", log=True)
    draw_fit(
        run,
        apply,
        sample_test,
        {
            "MAML": (learner(TEST_STEPS), maml.state.params),
            "trained on all tasks": (learner(TEST_STEPS, rate), joint.state.params),
        },
    )
    common.finish(run.path, table, then="fit.png shows a task. make demo classifies images.")


def draw_fit(
    run: common.Run,
    apply: losses.Apply,
    sample: metajax.Sampler,
    learners: dict[str, tuple[Learner, Any]],
) -> None:
    """Draws one test task's fit before adaptation and after 1 and 10 inner steps."""
    episode = sample(jax.random.key(TEST_SEED))
    order = jnp.argsort(episode.query.inputs[:, 0])
    grid = episode.query.inputs[order]
    fits = {}
    for name, (learner, params) in learners.items():
        _, info = learner.adapt(params, episode.support, observe=lambda p: apply(p, grid)[:, 0])
        fits[name] = [
            (label, info.observed[steps])
            for label, steps in (
                ("before adaptation", 0),
                ("after 1 step", 1),
                (f"after {TEST_STEPS} steps", TEST_STEPS),
            )
        ]
    plots.regression_fit(
        run.path / "fit.png",
        inputs=np.asarray(grid[:, 0]),
        truth=np.asarray(episode.query.targets[order, 0]),
        support=(
            np.asarray(episode.support.inputs[:, 0]),
            np.asarray(episode.support.targets[:, 0]),
        ),
        fits=fits,
    )


if __name__ == "__main__":
    common.guard(main)
