"""Kills a training again and again, and checks that nothing is lost.

    make soak                         (or: python -m experiments.benchmarks.soak)

A small training (--trainer few-shot, language or evolution) is killed by SIGKILL at random moments,
half of them inside a checkpoint's writing, and resumed in a new process, which is killed in its
turn. When the run has come through, its parameters, its optimizer's state, its best parameters and
its metrics (but for times) must have the bits of a run that nobody disturbed, and each process must
have gone on from the newest whole checkpoint. What was found is in soak.json, written after every
kill, and in soak.md. It ends with status 1 if a run was not like the undisturbed one. 100 kills
take minutes.
"""

import dataclasses
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import common
from experiments.benchmarks.report import provenance
from experiments.benchmarks.soak_training import PHASES, Kind, Marks, train
from experiments.common.disk import damage_in
from experiments.common.report import markdown_table
from metajax.files import write_atomically

AIMS = {"checkpoint": 0.5, "training": 0.2, "validation": 0.1, "starting": 0.1, "metrics": 0.1}
"""Share of the kills aimed at each; a process may have gone on to another before it is hit."""

LONGEST = 4
"""A kill waits for up to so many beginnings of its phase."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is killed."""

    trainer: Kind = "few-shot"
    """What trains: MAML, a language model, or the rounds of self-evolution."""
    kills: int = 100
    """Kills in all."""
    kills_per_run: int = 10
    """A run is left to end after so many, and the next one begins."""
    seed: int = 0
    """Of the moments."""
    steps: int = 240
    """Meta-steps of a run."""
    out: Path = Path("runs/soak")
    """Folder for soak.json, soak.md and the runs."""

    def __post_init__(self) -> None:
        common.check_positive(self, "kills", "kills_per_run", "steps")


def differences(outcome: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Names of what a run ended with otherwise than the undisturbed one.

    >>> same = {"state": {"w": "a"}, "best": {"w": "b"}, "metrics": [{"step": 10}]}
    >>> differences(same, same), differences({**same, "best": {"w": "c"}}, same)
    ([], ["best: {'w': 'c'}, not {'w': 'b'}"])
    """
    return [
        f"{part}: {outcome[part]}, not {expected[part]}"
        for part in ("state", "best", "metrics")
        if outcome[part] != expected[part]
    ]


class Training:
    """A process that trains, as seen from outside.

    Args:
        kind: of training.
        folder: the run's.
        steps: meta-steps.
    """

    _context = multiprocessing.get_context("forkserver")
    # Else imports would take most of a short process.
    _context.set_forkserver_preload(["experiments.benchmarks.soak_training"])

    def __init__(self, kind: Kind, folder: Path, steps: int) -> None:
        marks, self.log = folder.with_suffix(".marks"), folder.with_suffix(".log")
        marks.unlink(missing_ok=True)
        self.marks = Marks(marks)
        self.expected = newest_whole(folder)
        self._process = self._context.Process(
            target=train, args=(kind, folder, steps, marks, self.log)
        )
        self._process.start()

    def kill_at(self, phase: str, beginning: int, delay: float) -> bool:
        """Kills it ``delay`` seconds into a phase's n-th beginning; False if it ended before."""
        while self._process.is_alive():
            if self.marks.read()[2][phase] >= beginning or phase == "starting":
                self._process.join(delay)
                break
            time.sleep(0.0005)
        self._process.kill()
        return self.end() == -9

    def end(self) -> int:
        """Waits for its end; its exit code."""
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        return -1 if code is None else code

    def problem(self) -> str | None:
        """Why it did not go on from where it should, if it came as far as to go on."""
        _, resumed, counts = self.marks.read()
        if not counts["training"] or resumed == self.expected:
            return None
        return f"went on from step {resumed}, not {self.expected}"


def newest_whole(folder: Path) -> int:
    """The newest checkpoint whose every byte is as it was written; -1 where there is none."""
    steps = [path for path in folder.glob("**/checkpoints/*") if path.name.isdecimal()]
    whole = [int(path.name) for path in steps if damage_in(path) is None]
    return max(whole, default=-1)


class Aim(NamedTuple):
    """When a process is to be killed: see ``Training.kill_at``."""

    phase: str
    beginning: int
    delay: float


def aims(rng: random.Random, typical: dict[str, float]) -> Aim:
    """A random moment."""
    (phase,) = rng.choices(list(AIMS), list(AIMS.values()))
    return Aim(phase, rng.randint(1, LONGEST), rng.uniform(0, typical[phase]))


def soak(config: Config) -> dict[str, Any]:
    """Kills and resumes; the report."""
    config.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(config.seed)
    undisturbed = config.out / "undisturbed"
    if undisturbed.exists():
        raise common.RunError(f"out: {config.out} holds another soak. Remove it, or name another")
    started = time.perf_counter()
    whole = Training(config.trainer, undisturbed, config.steps)
    if whole.end() != 0:
        raise common.RunError(f"The undisturbed training failed; see {whole.log}")
    seconds = time.perf_counter() - started
    expected = json.loads((undisturbed / "outcome.json").read_text())
    # Of a checkpoint's writing, roughly; more than is needed only misses the phase.
    typical = dict.fromkeys(PHASES, seconds / 60) | {"starting": seconds / 3}
    report: dict[str, Any] = {
        "command": common.command("experiments.benchmarks.soak", config),
        "seed": config.seed,
        "trainer": config.trainer,
        "undisturbed_seconds": seconds,
        "environment": expected["environment"],
        "kills": [],
        "runs": [],
    }
    with common.progress("kills", 0, config.kills, unit="kill") as bar:
        while len(report["kills"]) < config.kills:
            folder = config.out / f"run-{len(report['runs']) + 1}"
            one_run(config, folder, rng, typical, expected, report, bar.update)
            bar.set_postfix(lost=sum(not run["recovered"] for run in report["runs"]))
    report["hits"] = dict(Counter(kill["hit"] for kill in report["kills"]))
    report["recovered"] = sum(kill["recovered"] is True for kill in report["kills"])
    report["seconds"] = time.perf_counter() - started
    _write(config, report)
    write_atomically(config.out / "soak.md", "\n".join(table(report)) + "\n")
    return report


def table(report: dict[str, Any]) -> list[str]:
    """The lines of soak.md: what was killed where, and what of it was lost."""
    kills = report["kills"]
    phases = [*sorted({kill["hit"] for kill in kills}), "all"]
    of = {phase: [k for k in kills if phase in (k["hit"], "all")] for phase in phases}
    lost = [run for run in report["runs"] if not run["recovered"]]
    return [
        f"# {len(kills)} kills of a training{_of(report)}, in {len(report['runs'])} runs",
        "",
        *markdown_table(
            {
                "killed in": phases,
                "kills": [str(len(of[phase])) for phase in phases],
                "left something half-written": [
                    str(sum(bool(kill["left"]) for kill in of[phase])) for phase in phases
                ],
                "recovered to the bit": [
                    str(sum(kill["recovered"] is True for kill in of[phase])) for phase in phases
                ],
            }
        ),
        "",
        *(f"- {run['run']}: {'; '.join(run['problems'])[:500]}" for run in lost),
        *([""] if lost else []),
        *provenance(report),
    ]


def _of(report: dict[str, Any]) -> str:
    return {"language": " of a language model", "evolution": " by self-evolution"}.get(
        report.get("trainer", ""), ""
    )


def one_run(
    config: Config,
    folder: Path,
    rng: random.Random,
    typical: dict[str, float],
    expected: dict[str, Any],
    report: dict[str, Any],
    killed: Callable[[], object],
) -> None:
    """A run with its kills; adds to the report."""
    first = len(report["kills"])
    quota = min(config.kills_per_run, config.kills - first)
    problems: list[str] = []
    while True:
        training = Training(config.trainer, folder, config.steps)
        if len(report["kills"]) - first < quota:
            aim = aims(rng, typical)
            if training.kill_at(*aim):
                kill = {"run": folder.name, "aimed": aim.phase, "hit": training.marks.read()[0],
                        "left": left_in(folder), "recovered": None}  # fmt: skip
                report["kills"].append(kill)
                problems += filter(None, [training.problem()])
                _write(config, report)
                killed()
                continue
        else:
            training.end()
        problems += filter(None, [training.problem()])
        break
    if (folder / "outcome.json").exists():
        problems += differences(json.loads((folder / "outcome.json").read_text()), expected)
    else:
        lines = training.log.read_text(errors="replace").splitlines() or ["nothing"]
        problems.append(f"failed: {lines[-1]} (see {training.log})")
    for kill in report["kills"][first:]:
        kill["recovered"] = not problems
    report["runs"].append(
        {"run": folder.name, "kills": len(report["kills"]) - first, "recovered": not problems,
         "problems": problems}
    )  # fmt: skip
    _write(config, report)


def left_in(folder: Path) -> list[str]:
    """What a kill left that isn't a whole checkpoint."""
    found = [*folder.glob("**/checkpoints/*"), *(folder / "best").glob("*")]
    return sorted(
        f"{path.parent.name}/{path.name}" for path in found if damage_in(path) is not None
    )


def _write(config: Config, report: dict[str, Any]) -> None:
    write_atomically(config.out / "soak.json", json.dumps(report, indent=1) + "\n")


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    report = soak(config)
    lost = [run for run in report["runs"] if not run["recovered"]]
    hits = ", ".join(f"{count} in {phase}" for phase, count in sorted(report["hits"].items()))
    print(
        f"{len(report['kills'])} kills ({hits}) in {len(report['runs'])} runs:"
        f" {report['recovered']} recovered to the bit, in {report['seconds']:.0f} s"
    )
    if lost:
        sys.exit("\n".join(f"{run['run']}: {'; '.join(run['problems'])[:500]}" for run in lost))


if __name__ == "__main__":
    common.guard(main)
