"""What checkpoints cost a training, and how long a long run takes to go on.

    make bench-checkpoints            (or: python -m experiments.benchmarks.checkpoints)

Of three experiments, with their sizes and their own intervals: the time of a meta-step, of a
checkpoint (metrics on the disk, state, SHA-256 of its files) and of the best parameters by
validation, written beside. And from the start of a process to its first meta-step, for a run of
60,000 meta-steps whose metrics have 600 lines. It takes about three minutes on two idle cores.
"""

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.benchmarks.report import provenance, write
from experiments.common.best import Best
from experiments.fewshot import networks, schedules, sinusoid
from experiments.language.shakespeare import config as shakespeare
from metajax import losses, models
from metajax.data import episode_sampler, from_arrays, sinusoid_sampler
from metajax.lm import training
from metajax.models import Transformer

DONE, LINES = 60_000, 600
"""Meta-steps of the run that goes on, and lines of its metrics."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    checkpoints: int = 15
    """Checkpoints written of each; their median is reported."""
    dispatches: int = 5
    """Timed dispatches of each; their median is reported."""
    resumes: int = 3
    """Processes that go on with the long run; their median is reported."""
    out: Path = Path("runs/bench")
    """Folder for checkpoints.json, .md and .png; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(self, "checkpoints", "dispatches", "resumes")


class Case(NamedTuple):
    """A training as an experiment has it.

    Attributes:
        trainer: from ``meta_trainer``.
        state: before the first meta-step.
        interval: meta-steps from checkpoint to checkpoint.
        dispatch: meta-steps that are timed together.
    """

    trainer: metajax.Trainer
    state: Any
    interval: int
    dispatch: int


def few_shot() -> Case:
    """5-way 1-shot MAML with Conv-4 as in the demo; what the images show doesn't matter."""
    images = np.random.default_rng(0).random((400, 28, 28, 1), np.float32)
    data = from_arrays(images, np.repeat(np.arange(20), 20))
    network = networks.conv4(5, jax.random.key(0))
    trainer = metajax.meta_trainer(
        schedules.maml_learner(1.0)(network, 1),
        optax.adam(3e-3),
        episode_sampler(data, n_way=5, k_shot=1, query=1),
        meta_batch=16,
    )
    state = trainer.init(network.params, jax.random.key(1))
    return Case(trainer, state, common.RunConfig.checkpoint_every, 5)


def language_model() -> Case:
    """The character model of ``make shakespeare``; what the text says doesn't matter."""
    config, size = shakespeare.Config(steps=2000), 65
    model = Transformer(shakespeare.model_config(config, size))
    params, apply = metajax.from_linen(model, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    tokens = np.random.default_rng(0).integers(0, size, 100_000).astype(np.int32)
    draw = training.text_sampler(tokens, length=config.length, batch=config.batch)
    trainer = metajax.meta_trainer(
        training.supervised(training.next_token_loss(apply)),
        shakespeare.optimizer_of(config),
        training.as_episodes(draw),
        meta_batch=1,
    )
    return Case(trainer, trainer.init(params, jax.random.key(1)), config.checkpoint_every, 5)


def regression() -> Case:
    """The sinusoid: the shortest meta-steps that there are."""
    params, apply = metajax.from_linen(models.MLP(), jax.random.key(0), jnp.zeros((1, 1)))
    learner = metajax.maml(losses.mean_squared_error(apply), optax.sgd(0.01), steps=1)
    batch = sinusoid.META_BATCH
    trainer = metajax.meta_trainer(
        learner, optax.adam(1e-3), sinusoid_sampler(10, 10), meta_batch=batch, tasks_per_chunk=batch
    )
    state = trainer.init(params, jax.random.key(1))
    return Case(trainer, state, sinusoid.Config.checkpoint_every, 200)


CASES: dict[str, Callable[[], Case]] = {
    "5-way 1-shot, Conv-4": few_shot,
    "Shakespeare, 0.8 M parameters": language_model,
    "sinusoid": regression,
}


def median_seconds(call: Callable[[int], object], times: int) -> float:
    """The median time of a call, after one that isn't timed."""
    seconds = []
    for number in range(times + 1):
        started = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def overhead(case: Case, config: Config, folder: Path) -> dict[str, Any]:
    """Seconds of meta-step, checkpoint and best parameters; their share at the interval."""
    states = [case.state]

    def dispatch(_: int) -> None:
        states[0] = jax.block_until_ready(case.trainer.run(states[0], case.dispatch)[0])

    step = median_seconds(dispatch, config.dispatches) / case.dispatch
    (state,) = states
    run = long_run(folder)
    with (
        common.Checkpoints(folder / "checkpoints", run=run) as checkpoints,
        Best(run, state.params) as best,
        common.MetricsLog(folder) as log,
    ):

        def save(number: int) -> None:
            log.append(number, {"loss": 0.0})
            log.sync()
            checkpoints.save(number, state)

        checkpoint = median_seconds(save, config.checkpoints)
        kept = median_seconds(
            lambda number: best.offer(number, state.params, {"loss": -float(number)}),
            config.checkpoints,
        )
    newest = checkpoints.path(config.checkpoints)
    return {
        "interval": case.interval,
        "step_ms": 1e3 * step,
        "checkpoint_ms": 1e3 * checkpoint,
        "best_ms": 1e3 * kept,
        "bytes": sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()),
        "share": checkpoint / (case.interval * step),
        "share_with_best": (checkpoint + kept) / (case.interval * step),
    }


def long_run(folder: Path) -> common.Run:
    """The run that is to go on, as it is found in its folder."""
    config = common.RunConfig(steps=DONE + 1000, out=folder, resume=True)
    return common.Run("long", folder, config)


def prepare(folder: Path) -> None:
    """Leaves what a run of few-shot learning has after 60,000 meta-steps."""
    state = few_shot().state
    run = long_run(folder)
    run = run._replace(config=dataclasses.replace(run.config, resume=False))
    common.create(run)
    every = DONE // LINES
    with common.MetricsLog(folder) as log:
        for step in range(every, DONE + 1, every):
            values = {"loss": 0.1, "accuracy": 0.97, "grad_norm": 0.2}
            log.append(step, {**values, "validation_loss": 0.1, "seconds": 9.5})
    with (
        common.Checkpoints(folder / "checkpoints", run=run) as checkpoints,
        Best(run, state.params) as best,
    ):
        for step in (DONE - 1000, DONE):
            checkpoints.save(step, state._replace(step=jnp.int32(step)))
        best.offer(DONE - 5000, state.params, {"loss": 0.1})


def go_on(folder: Path) -> None:
    """Goes on with the prepared run; at its first meta-step says when that was, and ends."""
    case, entered = few_shot(), time.time()

    def run(state: Any, steps: int) -> Any:
        print(int(state.step), entered, time.time())
        raise SystemExit

    found = long_run(folder)
    trainer = case.trainer._replace(run=run)
    common.fit(found, trainer, case.state, steps=DONE + 1000, validate=lambda params: {"loss": 0})


def resume_seconds(folder: Path) -> tuple[float, float]:
    """From a process's start to its first meta-step, and how much of it ``fit`` takes."""
    code = (
        "import sys; from experiments.benchmarks.checkpoints import Path, go_on;"
        " go_on(Path(sys.argv[1]))"
    )
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True
    )
    step, entered, first = done.stdout.split()[-3:]
    if int(step) != DONE:
        raise common.RunError(f"The long run went on from step {step}, not {DONE}")
    return float(first) - started, float(first) - float(entered)


def measure_all(config: Config, cases: dict[str, Callable[[], Case]]) -> dict[str, Any]:
    """Measures everything; the result as JSON values."""
    rows = []
    with (
        tempfile.TemporaryDirectory(dir=config.out) as parent,
        common.progress("parts", 0, len(cases) + config.resumes, unit="part") as bar,
    ):
        for number, (name, build) in enumerate(cases.items()):
            folder = Path(parent) / str(number)
            folder.mkdir()
            rows.append({"setting": name, **overhead(build(), config, folder)})
            bar.update()
        folder = Path(parent) / "long"
        prepare(folder)
        resumes = []
        for _ in range(config.resumes):
            resumes.append(resume_seconds(folder))
            bar.update()
    return {
        "command": common.command("experiments.benchmarks.checkpoints", config),
        "environment": common.environment(),
        "rows": rows,
        "resume": {
            "steps": DONE,
            "lines": LINES,
            "seconds": [total for total, _ in resumes],
            "seconds_in_fit": [in_fit for _, in_fit in resumes],
        },
    }


def report(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| training | a meta-step, ms | a checkpoint, ms | MB | every | of the training's time "
        "| with the best parameters each time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['setting']} | {row['step_ms']:.1f} | {row['checkpoint_ms']:.0f} "
            f"| {row['bytes'] / 1e6:.1f} | {row['interval']:,} steps | {row['share']:.2%} "
            f"| {row['share_with_best']:.2%} |"
        )
    again = result["resume"]
    lines += [
        "",
        f"A run of {again['steps']:,} meta-steps with {again['lines']} lines of metrics goes on "
        f"{statistics.median(again['seconds']):.1f} s after its process starts, imports and set-up "
        f"included, of which `fit` takes {statistics.median(again['seconds_in_fit']):.2f} s.",
        "",
        *provenance(result),
    ]
    return "\n".join(lines) + "\n"


def chart(result: dict[str, Any], path: Path) -> None:
    """The share of checkpoints in the training's time, a bar a training."""
    from matplotlib.figure import Figure  # not by the processes that go on, which are timed

    figure = Figure(figsize=(7, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    names = [row["setting"] for row in result["rows"]]
    axes.barh(names, [100 * row["share_with_best"] for row in result["rows"]], label="with best")
    axes.barh(names, [100 * row["share"] for row in result["rows"]], label="checkpoints")
    axes.set_xlabel("% of the training's time")
    axes.legend(fontsize="small")
    figure.savefig(path)


def run(config: Config, cases: dict[str, Callable[[], Case]] = CASES) -> str:
    """Measures, and writes the files into ``config.out``; returns the tables."""
    config.out.mkdir(parents=True, exist_ok=True)
    result = measure_all(config, cases)
    table = report(result)
    write(config.out, "checkpoints", result, table, chart)
    return table


def main() -> None:
    """The command line."""
    print(run(common.parse(Config, None, __doc__ or "")))


if __name__ == "__main__":
    common.guard(main)
