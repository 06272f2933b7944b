"""How far one machine's settings part in the same training run, in a table.

    python -m experiments.benchmarks.determinism_settings

The run of experiments.benchmarks.determinism, in processes of their own: the same again, which must
give the same bits, then with one thing changed each time. Of every change it says whether bits
differ, and by how much: relative to the loss, and to the norm of parameters and test scores. A
setting that this machine or version of XLA doesn't have is left out, and said.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm

from experiments.benchmarks import determinism
from experiments.benchmarks.report import provenance
from metajax import runs
from metajax._files import write_atomically
from metajax.runs.report import markdown_table

ONE_CORE = "METAJAX_ONE_CORE"
BASE = "as it is, one device"
SETTINGS: dict[str, dict[str, str]] = {
    "the same again": {},
    "one core": {ONE_CORE: "1"},
    "two devices": {"JAX_NUM_CPU_DEVICES": "2"},
    "XLA's older code for loops": {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"},
    "instructions of AVX2 at most": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "instructions of SSE4.2 at most": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
}
"""Environment variables of each; ``ONE_CORE`` is ours."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run."""

    networks: tuple[determinism.Network, ...] = ("sinusoid", "conv4")
    """Tasks and their networks."""
    dtypes: tuple[determinism.Dtype, ...] = ("float32", "float64")
    """Types of parameters and data."""
    steps: int = 100
    """Meta-steps of each run."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """What is changed, one after another."""
    out: Path = Path("runs/bench")
    """Folder for determinism.json and determinism.md; existing ones are replaced."""

    def __post_init__(self) -> None:
        runs.check_positive(self, "steps")
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise ValueError(f"settings must be among {list(SETTINGS)}; got {unknown}")


def one_run(
    folder: Path, network: str, dtype: str, steps: int, setting: dict[str, str], *words: str
) -> dict[str, Any] | None:
    """A run in its own process: what it wrote, or None if that process ended otherwise."""
    command = [sys.executable, "-m", "experiments.benchmarks.determinism"]
    command += ["--network", network, "--dtype", dtype, "--steps", str(steps), "--dispatch", "1"]
    own = {"JAX_NUM_CPU_DEVICES": "1", **setting}
    done = subprocess.run(
        [*command, "--out", str(folder), *words],
        env=os.environ | own,
        capture_output=True,
        preexec_fn=_on_one_core if ONE_CORE in setting else None,
        check=False,
    )
    if done.returncode:
        return None
    return json.loads((folder / f"determinism-{network}-{dtype}.json").read_text())


def _on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def measure(config: Config) -> list[dict[str, Any]]:
    """A row for each network, type and setting; ``differences`` is None where it didn't run."""
    rows: list[dict[str, Any]] = []
    cases = [(n, dtype) for n in config.networks for dtype in config.dtypes]
    with (
        tempfile.TemporaryDirectory() as name,
        tqdm.tqdm(total=len(cases) * (1 + len(config.settings)), unit="run") as bar,
    ):
        for network, dtype in cases:
            base = Path(name) / "base"
            found = one_run(base, network, dtype, config.steps, {})
            bar.update()
            if found is None:
                raise runs.RunError(f"The run of {network} in {dtype} didn't come to its end")
            compare = ("--compare", str(base / f"determinism-{network}-{dtype}.npz"))
            for label in config.settings:
                other = one_run(
                    Path(name) / "other", network, dtype, config.steps, SETTINGS[label], *compare
                )
                bar.update()
                rows.append(
                    {
                        "network": network,
                        "dtype": dtype,
                        "setting": label,
                        "same bits": other and other["digests"] == found["digests"],
                        "differences": other and other["differences"],
                    }
                )
    return rows


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the table.

    >>> row = {"network": "conv4", "dtype": "float32", "setting": "one core", "same bits": False}
    >>> gaps = {"episode": 0.0, "loss of step 1": 1e-7, "params": 2e-7, "scores": 3e-7}
    >>> report([{**row, "differences": gaps}])[-1][43:]
    '| 0.0e+00 | 1.0e-07   | 2.0e-07    | 3.0e-07     |'
    """

    def shown(row: dict[str, Any], name: str) -> str:
        return "didn't run" if row["differences"] is None else f"{row['differences'][name]:.1e}"

    known = next((row["differences"] for row in rows if row["differences"]), {})
    names = {
        "episode": "episode",
        **{name: name.replace("of step", "at") for name in known if name.startswith("loss")},
        "params": "parameters",
        "scores": "test losses",
    }
    return markdown_table(
        {
            "network": [row["network"] for row in rows],
            "type": [row["dtype"] for row in rows],
            "changed": [row["setting"] for row in rows],
            "same bits": ["yes" if row["same bits"] else "no" for row in rows],
            **{title: [shown(row, name) for row in rows] for name, title in names.items()},
        }
    )


def run(config: Config) -> str:
    """Measures, and writes both files; returns the table."""
    rows = measure(config)
    result = {
        "command": "python -m experiments.benchmarks.determinism_settings",
        "environment": runs.environment(),
        "steps": config.steps,
        "rows": rows,
    }
    lines = [
        f"# A fixed training run of {config.steps} meta-steps, beside {BASE}",
        "",
        *report(rows),
        "",
        "Relative: |a - b| / |a| of a loss, of norms elsewhere.",
        "",
        *provenance(result),
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out / "determinism.json", json.dumps(result, indent=1) + "\n")
    write_atomically(config.out / "determinism.md", "\n".join(lines) + "\n")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    print(run(runs.parse(Config, arguments, __doc__ or "")))


if __name__ == "__main__":
    runs.guard(main)
