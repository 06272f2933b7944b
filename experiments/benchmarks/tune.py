"""Which tasks_per_chunk, gradient mode and form of the convolution are fastest on this device.

    python -m experiments.benchmarks.tune

Milliseconds of metajax's meta-gradient in cells of the benchmark, for every combination. A
combination that doesn't fit the memory is reported as such.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro

import metajax
from experiments.benchmarks import jax_programs
from experiments.benchmarks.workload import CELLS, Workload, initial_weights, random_episodes
from metajax import runs
from metajax.models.conv import Algorithm

MODES = {"unrolled": metajax.unrolled, "mixed": metajax.mixed}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tried."""

    cells: tuple[str, ...] = ("5-way 1-shot", "20-way 1-shot", "max-pool 84×84×3")
    """Cells of the benchmark."""
    chunks: tuple[int, ...] = (1, 4, 16, 32)
    """Tasks that are computed together; more than a cell has are left out."""
    convolutions: tuple[Algorithm, ...] = ("patches", "winograd", "direct")
    """Forms of the convolution; Winograd's only where the stride is 1."""
    timed: int = 5
    """Timed runs of each; their median is reported."""
    out: Path = Path("runs/bench")
    """Folder for tune.json, written after every combination."""

    def __post_init__(self) -> None:
        for cell in self.cells:
            if cell not in CELLS:
                raise ValueError(f"cells: {cell!r} is none of {', '.join(map(repr, CELLS))}")
        if min(self.chunks, default=0) <= 0:
            raise ValueError(f"chunks must be numbers above zero; got {self.chunks}")
        if not self.timed > 0:
            raise ValueError(f"timed must be above zero; got {self.timed}")


def measure(
    workload: Workload, chunk: int, mode: str, convolution: Algorithm, timed: int
) -> dict[str, Any]:
    """Median milliseconds and temporary memory, or why there are none."""
    learner = jax_programs.metajax_learner(workload, mode=MODES[mode](), convolution=convolution)
    params = jax_programs.to_tree(initial_weights(workload, 0))
    episodes = jax_programs.as_episodes(random_episodes(workload, 1))
    gradient_fn = metajax.meta_gradient(learner, tasks_per_chunk=chunk)
    try:
        compiled = jax.jit(gradient_fn).lower(params, episodes).compile()
        jax.block_until_ready(compiled(params, episodes))
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0]}
    seconds = []
    for _ in range(timed):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, episodes))
        seconds.append(time.perf_counter() - start)
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "temporary_bytes": jax_programs.temporary_bytes(compiled),
    }


def run(config: Config) -> list[dict[str, Any]]:
    """Measures every combination, and writes ``tune.json`` into ``config.out`` after each."""
    config.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    result = {
        "command": "python -m experiments.benchmarks.tune",
        "environment": runs.environment(),
        "rows": rows,
    }
    for cell in config.cells:
        workload = CELLS[cell]
        for convolution in config.convolutions:
            if convolution == "winograd" and workload.form != "pool":
                continue
            for mode in MODES:
                # The default form of the loop first: it is the likeliest answer.
                for chunk in sorted(config.chunks, reverse=jax.default_backend() != "cpu"):
                    if chunk > workload.tasks:
                        continue
                    found = measure(workload, chunk, mode, convolution, config.timed)
                    what = {
                        "cell": cell,
                        "convolution": convolution,
                        "mode": mode,
                        "tasks_per_chunk": chunk,
                    }
                    rows.append(what | found)
                    print(rows[-1], file=sys.stderr, flush=True)
                    (config.out / "tune.json").write_text(json.dumps(result, indent=1) + "\n")
    return rows


def main() -> None:
    """The command line: prints the fastest of each cell."""
    config = tyro.cli(Config, description=__doc__)
    rows = run(config)
    for cell in config.cells:
        timed = [row for row in rows if row["cell"] == cell and "median_ms" in row]
        if timed:
            print(min(timed, key=lambda row: row["median_ms"]))


if __name__ == "__main__":
    runs.guard(main)
