"""A run's folder: where it is, whether it may be written to, and what it was made with.

==================  ========================================================
``config.json``     the experiment's name and the config that identifies the run
``metrics.jsonl``   one line of JSON an interval
``checkpoints/``    Orbax checkpoints, named by meta-step; in each the SHA-256 of its files
``best/``           the best parameters by validation, where ``fit`` was given one
``result.json``     the numbers at the end; ``table.md`` shows them
``*.png``           pictures
==================  ========================================================
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import processes
from experiments.common.config import RunConfig, RunError, identity
from experiments.common.disk import LOCK, locked, writing
from metajax.files import read_bytes, read_json, write_atomically

ROOT = Path("runs")
"""Where run folders go that the user did not name, relative to the working directory."""


class Run(NamedTuple):
    """One run of an experiment.

    Attributes:
        name: the experiment, such as ``"omniglot-fast-5way-1shot"``.
        path: the run folder; it exists once ``create`` was called.
        config: what the run was asked for.
    """

    name: str
    path: Path
    config: RunConfig


def open_run(name: str, config: RunConfig) -> Run:
    """Finds the run's folder and checks that the run may use it; writes nothing yet.

    A resumed run must have the same config; only the fields in ``config.may_differ`` are free. The
    number of steps too must be the same, because a learning-rate schedule may depend on it, unless
    ``config.goes_on_from`` says otherwise.

    Args:
        name: the experiment; also the folder's name where the user gave none.
        config: the run's config.

    Raises:
        RunError: a new run in a folder that holds something, a resume of nothing, a resume with
            another config, or processes with different ones.
    """
    processes.check_alike(name, identity(config) | {"resume": config.resume})
    return Run(name, Path(processes.on_first(lambda: str(_path(name, config)))), config)


def _path(name: str, config: RunConfig) -> Path:
    if config.resume:
        path = config.out or _newest(name)
        _check_same(name, path, config)
    else:
        path = config.out or _unused(name)
        try:
            taken = path.exists() and (not path.is_dir() or any(map(_counts, path.iterdir())))
        except OSError as error:
            raise RunError(f"out: {path} cannot be used ({error}); name another folder") from error
        if taken:
            raise RunError(
                f"out: {path} is already there and not empty. Add --resume to go on with the run"
                " in it, name another folder with --out, or remove it"
            )
    return path


def create(run: Run) -> None:
    """Makes the run folder and writes ``config.json``, unless they are as they should be.

    Raises:
        RunError: it can't be written, or another process has it or has just started a run there.
    """
    processes.on_first(lambda: _create(run))


def _create(run: Run) -> None:
    file = run.path / "config.json"
    text = json.dumps({"experiment": run.name, "config": identity(run.config)}, indent=2) + "\n"
    with locked(run.path), writing(file):
        before = read_bytes(file) if file.exists() else None
        if before not in (None, text.encode()) and not run.config.resume:
            raise RunError(
                f"out: another process has started another run in {run.path} meanwhile. Name"
                " another folder with --out"
            )
        if before != text.encode():
            write_atomically(file, text)


def owner(run: Run) -> dict[str, Any]:
    """What a checkpoint of the run says whose it is: all that decides its numbers, but for its
    length.

    Example:
        >>> owner(Run("toy", ROOT, RunConfig(steps=5, seed=1)))["config"]["seed"]
        1
    """
    config = {name: value for name, value in identity(run.config).items() if name != "steps"}
    return json.loads(json.dumps({"experiment": run.name, "config": config}))


def _counts(path: Path) -> bool:
    """Whether a file makes a folder a run's: not what a kill before ``config.json`` leaves."""
    return path.name != LOCK and not path.name.startswith(".config.json.")


def _numbered(name: str) -> dict[int, Path]:
    """The folders of this name under ``ROOT``: name, name-2, name-3, ... by their number."""
    found = {}
    for path in ROOT.glob(f"{name}*"):
        match = re.fullmatch(r"(?:-(\d+))?", path.name.removeprefix(name))
        if match and path.is_dir() and any(map(_counts, path.iterdir())):
            found[int(match[1] or 1)] = path
    return found


def _unused(name: str) -> Path:
    number = max(_numbered(name), default=0) + 1
    return ROOT / (name if number == 1 else f"{name}-{number}")


def _newest(name: str) -> Path:
    found = _numbered(name)
    if not found:
        raise RunError(
            f"resume: there is no run under {ROOT / name} to go on with. Leave --resume out to"
            " start one, or name the run's folder with --out"
        )
    return found[max(found)]


def _is_count(steps: Any) -> bool:
    return type(steps) is int


def _check_same(name: str, path: Path, config: RunConfig) -> None:
    file = path / "config.json"
    try:
        if not file.exists():
            raise RunError(
                f"resume: {path} holds no run (no config.json). Leave --resume out to start one"
                " there"
            )
        saved = read_json(file)
        before, experiment = dict(saved["config"]), saved["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"resume: {file} is not a run's config ({error}); start anew") from error
    now = identity(config)
    differing = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not (key == "steps" and _is_count(before.get(key)) and config.goes_on_from(before[key]))
    ]
    if experiment != name and not differing:
        differing = [f"the experiment was {experiment!r} and is now {name!r}"]
    if differing:
        raise RunError(
            f"resume: the run in {path} was started with another config: {'; '.join(differing)}."
            " Use the same options to go on, or start a new run with another --out"
        )
