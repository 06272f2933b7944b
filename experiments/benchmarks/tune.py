"""Which tasks_per_chunk, gradient mode and form of the convolution are fastest on this device.

    python -m experiments.benchmarks.tune

Milliseconds of metajax's meta-gradient in cells of the benchmark, for every combination. A
combination that doesn't fit the memory is reported as such.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

import metajax
from experiments import common
from experiments.benchmarks import jax_programs, report
from experiments.benchmarks.workload import CELLS, Workload, check_cells
from metajax.models import Algorithm

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
        check_cells("cells", self.cells)
        if min(self.chunks, default=0) <= 0:
            raise ValueError(f"chunks must be numbers above zero; got {self.chunks}")
        common.check_positive(self, "timed")


def measure(
    workload: Workload, chunk: int, mode: str, convolution: Algorithm, timed: int
) -> dict[str, Any]:
    """Median milliseconds and temporary memory, or why there are none."""
    learner = jax_programs.metajax_learner(workload, mode=MODES[mode](), convolution=convolution)
    try:
        return jax_programs.measure_gradient(workload, learner, tasks_per_chunk=chunk, timed=timed)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error).splitlines()[0]}


def run(config: Config) -> list[dict[str, Any]]:
    """Measures every combination, and writes ``tune.json`` into ``config.out`` after each."""
    config.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    result = {
        "command": common.command("experiments.benchmarks.tune", config),
        "environment": common.environment(),
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
                    report.say(rows[-1])
                    (config.out / "tune.json").write_text(json.dumps(result, indent=1) + "\n")
    return rows


def main() -> None:
    """The command line: prints the fastest of each cell."""
    config = common.parse(Config, None, __doc__ or "")
    rows = run(config)
    for cell in config.cells:
        timed = [row for row in rows if row["cell"] == cell and "median_ms" in row]
        if timed:
            print(min(timed, key=lambda row: row["median_ms"]))


if __name__ == "__main__":
    common.guard(main)
