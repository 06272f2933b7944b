"""Times the second-order meta-step of MAML on one device and on several.

    python -m experiments.benchmarks.devices --devices 1 2

On a CPU every core is a device, and one device alone uses all cores for each operation: so the
figures say what sharing the tasks brings over that. The numbers of devices take turns, and a figure
is the median of its turns. On busy cores the figures mean little.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import optax

import metajax
from experiments import common
from experiments.benchmarks import jax_programs
from experiments.benchmarks.report import provenance, write
from experiments.benchmarks.workload import (
    CELLS,
    Workload,
    check_cells,
    initial_weights,
    random_episodes,
)
from experiments.common.report import markdown_table


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    devices: tuple[int, ...] = (1, 2)
    """Numbers of devices."""
    cell: str = "5-way 1-shot"
    """The network and the episodes; a cell of experiments.benchmarks.meta_step."""
    rounds: int = 20
    """Turns of each number of devices."""
    steps: int = 3
    """Meta-steps in a turn."""
    out: Path = Path("runs/bench")
    """Folder for devices.json and devices.md; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(self, "rounds", "steps")
        check_cells("cell", (self.cell,))
        if not self.devices or min(self.devices) < 1:
            raise metajax.ArgumentError(f"devices must be above zero; got {self.devices}")


def turn_of(workload: Workload, count: int, steps: int) -> Callable[[], float]:
    """Trains on so many devices; the function returned takes some meta-steps, and their time."""
    params = jax_programs.to_tree(initial_weights(workload, 0))
    episodes = jax_programs.as_episodes(random_episodes(workload, 1))

    def sample(key):
        index = jax.random.randint(key, (), 0, workload.tasks)
        return jax.tree.map(lambda leaf: leaf[index], episodes)

    mesh = None
    if count > 1:
        mesh = metajax.task_mesh(workload.tasks, devices=jax.devices()[:count])
    if mesh is not None and mesh.size != count:
        raise metajax.ArgumentError(
            f"devices must divide the {workload.tasks} tasks, and be at most the"
            f" {jax.device_count()} that there are; got {count}"
        )
    trainer = metajax.meta_trainer(
        jax_programs.metajax_learner(workload),
        optax.adam(workload.outer_rate),
        sample,
        meta_batch=workload.tasks,
        mesh=mesh,
    )
    state = trainer.init(params, jax.random.key(0))

    def turn() -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(steps):
            state, _ = trainer.step(state)
        jax.block_until_ready(state)
        return (time.perf_counter() - started) / steps

    return turn


def run(config: Config) -> str:
    """Measures, and writes both files; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    turns = {n: turn_of(CELLS[config.cell], n, config.steps) for n in config.devices}
    seconds: dict[int, list[float]] = {n: [] for n in turns}
    for turn in turns.values():
        turn()  # compiles
    for _ in range(config.rounds):
        for count, turn in turns.items():
            seconds[count].append(turn())
    medians = {count: statistics.median(found) for count, found in seconds.items()}
    base = medians[config.devices[0]]
    table = markdown_table(
        {
            "devices": [str(count) for count in medians],
            "ms a meta-step": [f"{1000 * median:.1f}" for median in medians.values()],
            f"times as fast as {config.devices[0]}": [
                f"{base / median:.2f}" for median in medians.values()
            ],
        }
    )
    result = {
        "command": common.command("experiments.benchmarks.devices", config),
        "cell": config.cell,
        "seconds": seconds,
        "environment": common.environment(),
    }
    lines = [f"# MAML's meta-step, {config.cell}", "", *table, "", *provenance(result), ""]
    text = "\n".join(lines)
    write(config.out, "devices", result, text)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    metajax.use_every_core()
    print(run(common.parse(Config, arguments, __doc__ or "")))


if __name__ == "__main__":
    common.guard(main)
