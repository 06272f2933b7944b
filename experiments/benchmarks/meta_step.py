"""Times the second-order meta-step of metajax beside programs that compute the same.

    make bench                        (or: python -m experiments.benchmarks.meta_step)

In one process, on the same random episodes and initial weights, for each cell of the table. The
programs' meta-gradients are compared first, and nothing is timed unless they agree. PyTorch, higher
and TorchOpt are optional (the extra ``bench``); one that is missing is reported as such. It takes
twenty minutes on two idle cores; on busy ones the ratios mean little, since the programs suffer
unequally.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

import metajax
from experiments import common
from experiments.benchmarks import jax_programs, measure, report
from experiments.benchmarks.workload import (
    CELLS,
    PEERS,
    Arrays,
    Program,
    Weights,
    Workload,
    check_cells,
    in_float64,
    initial_weights,
    random_episodes,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    cells: tuple[str, ...] = tuple(CELLS)
    """The cells of the table."""
    rounds: int = 10
    """Turns of each program in a cell."""
    turn_seconds: float = 0.4
    """How long a turn takes; one meta-step at least."""
    budget_seconds: float = 20.0
    """A program that took longer in a cell sits out what follows its third turn."""
    of_the_mean: tuple[str, ...] = ("5-way 1-shot",)
    """Cells with ordinary Flax in its usual form too, the gradient of the mean loss, which takes
    several times as long as the mean of gradients on a CPU."""
    compile_steps: tuple[int, ...] = (1, 5, 32)
    """Numbers of inner steps to measure metajax's compile time at, in the first cell."""
    compile_repeats: int = 3
    """Compilations of each; their median is reported."""
    tolerance: float = 1e-9
    """Largest relative difference of two programs' meta-gradients (Euclidean norm), computed in
    float64 for the first two tasks."""
    float32_tolerance: float = 0.2
    """The same in float32 for all tasks. It isn't smaller because a rounding error moves some of a
    cell's millions of activations across the kink of a ReLU or of a maximum; five inner steps
    amplify that."""
    platform: Literal["cpu", "gpu"] = "cpu"
    """Where the programs run."""
    tf32: bool = False
    """Whether a GPU's products may round their operands to TF32, in JAX and in PyTorch."""
    seed: int = 0
    """Seed of the episodes and the initial weights."""
    out: Path = Path("runs/bench")
    """Folder for meta_step.json, meta_step.md and meta_step.png; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(
            self, "rounds", "turn_seconds", "budget_seconds", "compile_repeats", "tolerance"
        )
        check_cells("cells", self.cells)
        check_cells("of_the_mean", self.of_the_mean)
        if not self.cells:
            raise ValueError("cells must name at least one cell; got none")
        if min(self.compile_steps, default=1) <= 0:
            raise ValueError(f"compile_steps must be above zero; got {self.compile_steps}")


def build_programs(
    config: Config, cell: str, workload: Workload, weights: Weights, arrays: Arrays
) -> tuple[list[Program], dict[str, str]]:
    """All programs that can be had here, metajax first, and why others cannot."""
    programs = [jax_programs.metajax_program(workload, weights, arrays)]
    if jax.local_device_count() > 1 and cell == config.cells[0]:
        programs.append(jax_programs.metajax_program(workload, weights, arrays, shared=False))
    missing: dict[str, str] = {}
    try:
        from experiments.benchmarks import torch_programs
    except ImportError as error:
        reason = f"PyTorch cannot be imported ({error}); pip install 'metajax[bench]'"
        missing.update(dict.fromkeys(PEERS, reason))
    else:
        device = "cpu" if config.platform == "cpu" else "cuda"
        builders = (
            torch_programs.functional_program,
            torch_programs.higher_program,
            torch_programs.torchopt_program,
            torch_programs.parallel_metalearn_program,
            torch_programs.iteryne_program,
        )
        for name, build in zip(PEERS, builders, strict=True):
            try:
                programs.append(build(workload, weights, arrays, device=device))
            except ImportError as error:
                missing[name] = f"{error}; pip install 'metajax[bench]'"
    for of_the_mean in (False, True) if cell in config.of_the_mean else (False,):
        programs.append(
            jax_programs.ordinary_program(workload, weights, arrays, of_the_mean=of_the_mean)
        )
    return programs, missing


def prepare_torch(cores: int, *, tf32: bool = False) -> None:
    """Gives PyTorch all cores and the same precision."""
    with contextlib.suppress(ImportError):
        from experiments.benchmarks import torch_programs

        torch_programs.use_threads(cores)
        torch_programs.use_tf32(tf32)


def prepare_jax(platform: str, *, tf32: bool = False) -> None:
    """Where JAX computes, how precisely, and that it really compiles."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # all programs on the same processor
        metajax.use_every_core()
    elif not tf32:
        jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured


def peer_versions(names: Sequence[str] = ("torch", "higher", "torchopt")) -> dict[str, str]:
    """The versions of the optional peers that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def check(config: Config, cell: str, workload: Workload) -> dict[str, float]:
    """That all programs compute the same in float64, for the first two tasks."""
    workload = dataclasses.replace(workload, tasks=min(2, workload.tasks))
    with jax.enable_x64(True):
        weights, arrays = in_float64(
            initial_weights(workload, config.seed), random_episodes(workload, config.seed + 1)
        )
        programs, _ = build_programs(config, cell, workload, weights, arrays)
        programs = [p for p in programs if p.name != f"{jax_programs.METAJAX}, one device"]
        return measure.check_agreement(programs, programs[0], tolerance=config.tolerance)


def measure_cell(config: Config, cell: str) -> dict[str, Any]:
    """Builds, checks and times the programs of one cell.

    Raises:
        RunError: if the programs don't compute the same.
    """
    workload = CELLS[cell]
    report.say(f"{cell}: comparing the meta-gradients in float64 ...")
    float64_errors = check(config, cell, workload)
    weights = initial_weights(workload, config.seed)
    arrays = random_episodes(workload, config.seed + 1)
    programs, missing = build_programs(config, cell, workload, weights, arrays)
    report.say(f"{cell}: compiling ...")
    compilations = [program.compile() for program in programs]
    errors = measure.check_agreement(programs, programs[0], tolerance=config.float32_tolerance)
    report.say(f"{cell}: timing {'; '.join(program.name for program in programs)} ...")
    seconds, peaks = measure.interleaved(
        programs,
        rounds=config.rounds,
        turn_seconds=config.turn_seconds,
        budget_seconds=config.budget_seconds,
    )
    rows = measure.rows(
        programs,
        compilations,
        seconds,
        peaks,
        flops=workload.flops(),
        float64_errors=float64_errors,
        float32_errors=errors,
    )
    return {
        "name": cell,
        "workload": dataclasses.asdict(workload),
        "flops": workload.flops(),
        "matmul_gflops": measure.matmul_gflops(),
        "programs": rows,
        "missing": missing,
    }


def compilation(config: Config) -> list[dict[str, Any]]:
    """Compile times of metajax's meta-step by number of inner steps, measured in turns."""
    workload = CELLS[config.cells[0]]
    weights = initial_weights(workload, config.seed)
    arrays = random_episodes(workload, config.seed + 1)
    seconds: dict[int, list[float]] = {steps: [] for steps in config.compile_steps}
    for _ in range(config.compile_repeats):
        for steps, found in seconds.items():
            found.append(jax_programs.compile_seconds(workload, weights, arrays, inner_steps=steps))
    return [
        {"inner_steps": steps, "median_seconds": statistics.median(found), "seconds": found}
        for steps, found in seconds.items()
    ]


def results(config: Config) -> Iterator[dict[str, Any]]:
    """Measures cell by cell.

    Yields:
        The result so far as JSON values, after each cell and at the end.
    """
    environment = common.environment()
    environment["versions"] |= peer_versions()
    prepare_torch(environment["cores"], tf32=config.tf32)
    result: dict[str, Any] = {
        "command": common.command("experiments.benchmarks.meta_step", config),
        "environment": environment,
        "rounds": config.rounds,
        "turn_seconds": config.turn_seconds,
        "tolerance": config.tolerance,
        "float32_tolerance": config.float32_tolerance,
        "tf32": config.tf32,
        "cells": [],
        "compilation": [],
    }
    for cell in config.cells:
        result["cells"].append(measure_cell(config, cell))
        yield result
    report.say(f"compiling metajax's meta-step with {config.compile_steps} inner steps ...")
    result["compilation"] = compilation(config)
    yield result


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out`` after each cell; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    table = ""
    for result in results(config):
        table = report.table(result)
        report.write(config.out, "meta_step", result, table, report.chart)
    return table


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    prepare_jax(config.platform, tf32=config.tf32)
    print(run(config))
    report.say(f"written to {config.out}")


if __name__ == "__main__":
    common.guard(main)
