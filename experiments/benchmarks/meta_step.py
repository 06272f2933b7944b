"""Times the second-order meta-step of metajax beside programs that compute the same.

    make bench                        (or: python -m experiments.benchmarks.meta_step)

On the CPU, in one process, on the same random episodes and initial weights. The programs' meta-
gradients are compared first, and nothing is timed unless they agree. PyTorch and higher are
optional (the extra ``bench``); one that is missing is reported as such. It takes six minutes
on two idle cores; on busy ones the ratios mean little, since the programs suffer unequally.
"""

import contextlib
import dataclasses
import json
import shlex
import statistics
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import tyro

import metajax
from experiments.benchmarks import jax_programs, measure, report
from experiments.benchmarks.workload import (
    Arrays,
    Program,
    Weights,
    Workload,
    initial_weights,
    random_episodes,
)
from metajax import runs


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    workload: Workload = dataclasses.field(default_factory=Workload)
    """The meta-step."""
    rounds: int = 10
    """Turns of each program."""
    steps_per_turn: int = 3
    """Timed meta-steps in a turn."""
    compile_steps: tuple[int, ...] = (1, 5, 32)
    """Numbers of inner steps to measure metajax's compile time at."""
    compile_repeats: int = 3
    """Compilations of each; their median is reported."""
    tolerance: float = 1e-3
    """Largest relative difference of two programs' meta-gradients (Euclidean norm)."""
    seed: int = 0
    """Seed of the episodes and the initial weights."""
    out: Path = Path("runs/bench")
    """Folder for meta_step.json, meta_step.md and meta_step.png; existing ones are replaced."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps_per_turn", "compile_repeats", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above zero; got {getattr(self, name)}")
        if not self.compile_steps or min(self.compile_steps) <= 0:
            raise ValueError(f"compile_steps must be above zero; got {self.compile_steps}")


def build_programs(
    workload: Workload, weights: Weights, arrays: Arrays, *, cores: int
) -> tuple[list[Program], dict[str, str]]:
    """All programs that can be had here, metajax first, and why others cannot."""
    programs = [jax_programs.metajax_program(workload, weights, arrays, shared=True)]
    if jax.local_device_count() > 1:
        programs.append(jax_programs.metajax_program(workload, weights, arrays, shared=False))
    for of_the_mean in (False, True):
        programs.append(
            jax_programs.ordinary_program(workload, weights, arrays, of_the_mean=of_the_mean)
        )
    try:
        from experiments.benchmarks import torch_programs
    except ImportError as error:
        reason = f"PyTorch cannot be imported ({error}); pip install 'metajax[bench]'"
        return programs, dict.fromkeys(("PyTorch, torch.func vmap", "PyTorch, higher"), reason)
    torch_programs.use_threads(cores)
    programs.append(torch_programs.functional_program(workload, weights, arrays))
    try:
        programs.append(torch_programs.higher_program(workload, weights, arrays))
    except ImportError as error:
        reason = f"higher cannot be imported ({error}); pip install 'metajax[bench]'"
        return programs, {"PyTorch, higher": reason}
    return programs, {}


def peer_versions() -> dict[str, str]:
    """The versions of the optional peers that are installed."""
    found = {}
    for name in ("torch", "higher"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def command(config: Config) -> str:
    """The command that measures this again, without the folder, which names a machine's place."""
    words = ["python", "-m", "experiments.benchmarks.meta_step"]
    parts = [("", config, Config()), ("workload.", config.workload, Workload())]
    for prefix, values, defaults in parts:
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if field.name in ("workload", "out") or value == getattr(defaults, field.name):
                continue
            flag = "--" + (prefix + field.name).replace("_", "-")
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def compilation(config: Config, weights: Weights, arrays: Arrays) -> list[dict[str, Any]]:
    """Compile times of metajax's meta-step by number of inner steps, measured in turns."""
    seconds: dict[int, list[float]] = {steps: [] for steps in config.compile_steps}
    for _ in range(config.compile_repeats):
        for steps, found in seconds.items():
            found.append(
                jax_programs.compile_seconds(config.workload, weights, arrays, inner_steps=steps)
            )
    return [
        {"inner_steps": steps, "median_seconds": statistics.median(found), "seconds": found}
        for steps, found in seconds.items()
    ]


def measure_all(config: Config) -> dict[str, Any]:
    """Builds, checks and times the programs.

    Returns:
        The result as JSON values.

    Raises:
        RunError: if the programs don't compute the same.
    """
    weights = initial_weights(config.workload, config.seed)
    arrays = random_episodes(config.workload, config.seed + 1)
    environment = runs.environment()
    _say("compiling ...")
    programs, missing = build_programs(config.workload, weights, arrays, cores=environment["cores"])
    environment["versions"] |= peer_versions()
    _say("comparing the meta-gradients ...")
    reference = next(p for p in programs if not p.name.startswith(jax_programs.METAJAX))
    errors = measure.check_agreement(programs, reference, tolerance=config.tolerance)
    _say("timing " + "; ".join(program.name for program in programs) + " ...")
    seconds, peaks = measure.interleaved(
        programs, rounds=config.rounds, steps_per_turn=config.steps_per_turn
    )
    gflops = measure.matmul_gflops()
    _say(f"compiling metajax's meta-step with {config.compile_steps} inner steps ...")
    base = statistics.median(seconds[programs[0].name])
    rows = []
    for program in programs:
        found = seconds[program.name]
        lower, median, upper = statistics.quantiles(found, n=4, method="inclusive")
        rows.append(
            {
                "name": program.name,
                "median_ms": 1e3 * median,
                "lower_quartile_ms": 1e3 * lower,
                "upper_quartile_ms": 1e3 * upper,
                "ratio": median / base,
                "compile_seconds": program.compile_seconds,
                "temporary_bytes": program.temporary_bytes,
                "peak_bytes": peaks[program.name],
                "milliseconds": [round(1e3 * value, 2) for value in found],
            }
        )
    return {
        "command": command(config),
        "environment": environment,
        "matmul_gflops": gflops,
        "workload": dataclasses.asdict(config.workload),
        "rounds": config.rounds,
        "steps_per_turn": config.steps_per_turn,
        "agreement": {
            "reference": reference.name,
            "tolerance": config.tolerance,
            "errors": errors,
        },
        "programs": rows,
        "missing": missing,
        "compilation": compilation(config, weights, arrays),
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run(config: Config) -> str:
    """Measures, and writes the files into ``config.out``; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    result = measure_all(config)
    table = report.table(result)
    (config.out / "meta_step.json").write_text(json.dumps(result, indent=2) + "\n")
    (config.out / "meta_step.md").write_text(table)
    report.chart(result, config.out / "meta_step.png")
    return table


def main() -> None:
    """The command line."""
    jax.config.update("jax_platforms", "cpu")  # all programs on the same processor
    metajax.use_every_core()
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    config = tyro.cli(Config, description=__doc__)
    print(run(config))
    _say(f"written to {config.out}")


if __name__ == "__main__":
    runs.guard(main)
