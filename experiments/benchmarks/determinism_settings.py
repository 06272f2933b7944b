"""How far one machine's settings part in the same training run, in a table.

    python -m experiments.benchmarks.determinism_settings

The run of experiments.benchmarks.determinism, in processes of their own: the same again, which must
give the same bits, then with one thing changed each time. Of every change it says whether bits
differ, and by how much: relative to the loss, and to the norm of parameters and test scores. A
setting that this machine or version of XLA doesn't have is named as one that didn't run.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import common
from experiments.benchmarks import determinism
from experiments.benchmarks.report import provenance, write
from experiments.common.report import markdown_table


class Setting(NamedTuple):
    """What a run is made with.

    Attributes:
        devices: CPU devices that share the tasks.
        cores: that the process may use; all of them if None.
        flags: of XLA, beside those that are set.
    """

    devices: int = 1
    cores: int | None = None
    flags: str = ""


SETTINGS: dict[str, Setting] = {
    "the same again": Setting(),
    "one core": Setting(cores=1),
    "two devices": Setting(devices=2),
    "XLA's older code for loops": Setting(flags="--xla_cpu_use_fusion_emitters=false"),
    "instructions of AVX2 at most": Setting(flags="--xla_cpu_max_isa=AVX2"),
    "instructions of SSE4.2 at most": Setting(flags="--xla_cpu_max_isa=SSE4_2"),
}
"""What is changed, one thing each time."""


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
        common.check_positive(self, "steps")
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise ValueError(f"settings must be among {list(SETTINGS)}; got {unknown}")


def one_run(
    folder: Path, network: str, dtype: str, steps: int, setting: Setting, *words: str
) -> dict[str, Any]:
    """A run in its own process: what it wrote; a RunError if it came to no end."""
    command = [sys.executable, "-m", "experiments.benchmarks.determinism"]
    command += ["--network", network, "--dtype", dtype, "--steps", str(steps), "--dispatch", "1"]
    if setting.cores is not None:
        command += ["--cores", str(setting.cores)]
    done = subprocess.run(
        [*command, "--out", str(folder), *words],
        env=os.environ
        | {
            "JAX_NUM_CPU_DEVICES": str(setting.devices),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {setting.flags}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise common.RunError(f"{network} in {dtype}: the run ended without a result ({said[-1]})")
    return json.loads((folder / f"determinism-{network}-{dtype}.json").read_text())


def measure(config: Config) -> list[dict[str, Any]]:
    """A row for each network, type and setting; both answers are None where it didn't run."""
    rows: list[dict[str, Any]] = []
    cases = list(itertools.product(config.networks, config.dtypes))
    with (
        tempfile.TemporaryDirectory() as name,
        common.progress("runs", 0, len(cases) * (1 + len(config.settings)), unit="run") as bar,
    ):
        base, other = Path(name) / "base", Path(name) / "other"
        for network, dtype in cases:
            unchanged = one_run(base, network, dtype, config.steps, Setting())
            bar.update()
            compare = ("--compare", str(base / f"determinism-{network}-{dtype}.npz"))
            for label in config.settings:
                row = {"network": network, "dtype": dtype, "setting": label}
                try:
                    changed = one_run(
                        other, network, dtype, config.steps, SETTINGS[label], *compare
                    )
                except common.RunError as error:
                    row |= {"same bits": None, "differences": None, "problem": str(error)}
                else:
                    same = changed["digests"] == unchanged["digests"]
                    row |= {"same bits": same, "differences": changed["differences"]}
                rows.append(row)
                bar.update()
    return rows


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the table.

    >>> row = {"network": "conv4", "dtype": "float32", "setting": "one core", "same bits": False}
    >>> gaps = {"episode": 0.0, "loss of step 1": 1e-7, "params": 2e-7, "scores": 3e-7}
    >>> report([{**row, "differences": gaps}])[-1][43:]
    '| 0.0e+00 | 1.0e-07   | 2.0e-07    | 3.0e-07     |'
    """

    def shown(row: dict[str, Any], name: str) -> str:
        return "–" if row["differences"] is None else f"{row['differences'][name]:.1e}"

    same = {True: "yes", False: "no", None: "didn't run"}

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
            "same bits": [same[row["same bits"]] for row in rows],
            **{title: [shown(row, name) for row in rows] for name, title in names.items()},
        }
    )


def run(config: Config) -> str:
    """Measures, and writes both files; returns the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    rows = measure(config)
    result = {
        "command": common.command("experiments.benchmarks.determinism_settings", config),
        "environment": common.environment(),
        "steps": config.steps,
        "rows": rows,
    }
    lines = [
        f"# A fixed training run of {config.steps} meta-steps, beside one device and no flag",
        "",
        *report(rows),
        "",
        "Relative: |a - b| / |a| of a loss, of norms elsewhere.",
        "",
        *provenance(result),
    ]
    write(config.out, "determinism", result, "\n".join(lines) + "\n")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    print(run(common.parse(Config, arguments, __doc__ or "")))


if __name__ == "__main__":
    common.guard(main)
