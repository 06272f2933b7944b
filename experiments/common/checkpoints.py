"""Checkpoints of a training state, written by Orbax: atomic, checked when they are read.

Where several processes share a run, all of them call the same methods: the first process writes and
reads, and the others get what it read.
"""

import contextlib
import errno
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.common import metrics, processes
from experiments.common.config import RunError
from experiments.common.disk import cannot_write, damage_in, first_line, write_digests, writing
from experiments.common.folder import Run, owner
from metajax import parallel, trees
from metajax.errors import ArgumentError
from metajax.files import read_json, sync_folder, write_atomically

StateT = TypeVar("StateT")

_STEP = re.compile(r"0|[1-9][0-9]*")
_NAME = re.compile(rf"({_STEP.pattern})$|unfinished-|damaged-")
_DAMAGED = "damaged-"
_OWNER = "run.json"
_UNFINISHED = "unfinished-"
"""How the name of a folder begins that is being written, or removed."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in one folder, named by meta-step; the newest few are kept.

    A state is any pytree of arrays, typed random keys included. It is stored as a flat dictionary
    from path to array, so a checkpoint can be read without the code that wrote it, and with the
    SHA-256 of every file: one that isn't byte for byte as it was written is not used.

    A folder gets its number once it is whole and on the disk. One process at a time may write (see
    ``fit``); reading changes nothing in the folder.

    Args:
        folder: where they are, or will be.
        keep: how many to keep, two at least: an older one is left if the newest is damaged.
        run: whose they are; those of another one are refused.

    Raises:
        ArgumentError: ``keep`` is below two.
        RunError: the folder can't be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, Checkpoints(Path(name)) as checkpoints:
        ...     checkpoints.save(10, {"w": jnp.ones(2)})
        ...     state, step = checkpoints.restore({"w": jnp.zeros(2)})
        >>> step, state["w"].tolist()
        (10, [1.0, 1.0])
    """

    def __init__(self, folder: Path, *, keep: int = 2, run: Run | None = None) -> None:
        if keep < 2:
            raise ArgumentError(f"keep must be at least 2, so that one is left; got {keep}")
        self.folder = folder.absolute()
        self._keep = keep
        self._run, self._metrics = run, self.folder.parent / "metrics.jsonl"
        # Of this process alone, which waits for no other.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._orbax = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        processes.on_first(self._make_folder)

    def __exit__(self, *error: object) -> None:
        self._orbax.close()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a meta-step is."""
        return self.folder / str(step)

    def latest(self) -> int | None:
        """The newest checkpoint's meta-step, damaged or not; None where there is none."""
        return processes.on_first(lambda: max(self._steps(), default=None))

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint; a step that has a whole one keeps it.

        A damaged checkpoint in its place is set aside, as ``damaged-...``; so is a later one, which
        training would have replaced were it whole.

        Raises:
            RunError: it can't be written. Those before are kept.
        """
        # As NumPy arrays: what is stored then names no device, and reads back on any machine.
        content = {
            name: np.asarray(parallel.to_host(_plain(leaf)))
            for name, leaf in _by_path(state).items()
            if np.size(leaf)  # Orbax writes no empty ones
        }
        processes.on_first(lambda: self._write(step, content))

    def restore(self, template: StateT) -> tuple[StateT, int] | None:
        """The newest state that is as it was written, and its meta-step; None where there is none.

        A damaged checkpoint is passed over with a warning that names it, for the one before.

        Args:
            template: a state of the same structure, shapes and dtypes; the leaves restored are
                placed on devices as its are.

        Raises:
            RunError: the checkpoint is of another model or optimizer, or none can be read.
        """
        content: dict[str, np.ndarray] = {}

        def read() -> int | None:
            found = self._read(template)
            content.update(found[1] if found else {})
            return found and found[0]

        step = processes.on_first(read)
        if step is None:
            return None

        def leaf_of(name: str, leaf: Any) -> jax.Array:
            like = jax.eval_shape(_plain, leaf)
            if not like.size:
                return _like(leaf, np.zeros(like.shape, like.dtype))
            return _like(leaf, processes.array_from_first(content.get(name), like))

        leaves = [leaf_of(name, leaf) for name, leaf in _by_path(template).items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), step

    def resume(self, template: StateT) -> tuple[StateT, int] | None:
        """The same where the run resumes, and None where it doesn't; a warning says so if there is
        nothing to go on from."""
        assert self._run is not None
        if not self._run.config.resume:
            return None
        found = self.restore(template)
        if found is None:
            problem = f"{self.folder} has no checkpoint, so the run starts from its beginning"
        else:
            problem = processes.on_first(lambda: self._changed_metrics(found[1]))
        if problem:
            warnings.warn(f"resume: {problem}", stacklevel=3)
        return found

    def _changed_metrics(self, step: int) -> str:
        """What is wrong with the lines of metrics before a checkpoint, if anything is."""
        then = read_json(self.path(step) / _OWNER).get("metrics")
        if then is None:
            return f"{self.path(step)} is of another version of metajax, and can't tell lost lines"
        if metrics.digest(self._metrics, step) == then:
            return ""
        return (
            f"{self._metrics} isn't what was written up to step {step}: lines are lost or changed"
        )

    def _make_folder(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def _write(self, step: int, content: Mapping[str, np.ndarray]) -> None:
        path, unfinished = self.path(step), self.folder / f"{_UNFINISHED}{step}"
        if not self.folder.is_dir():  # Orbax would make it again, without the rest of the run
            raise cannot_write(self.folder, FileNotFoundError(errno.ENOENT, ""))
        try:
            for left in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left)
            for later in self._steps():
                if later > step or (later == step and damage_in(path)):
                    self._set_aside(later)
            if path.exists():
                return
            self._orbax.save(unfinished, args=ocp.args.StandardSave(dict(content)))
            if self._run is not None:
                note = owner(self._run) | {"metrics": metrics.digest(self._metrics)}
                write_atomically(unfinished / _OWNER, json.dumps(note) + "\n")
            write_digests(unfinished)
            unfinished.rename(path)
            sync_folder(self.folder)
            for old in self._steps()[: -self._keep]:
                shutil.rmtree(self.path(old).rename(self.folder / f"{_UNFINISHED}{old}"))
        except Exception as error:  # whatever Orbax and TensorStore make of a full disk
            for left in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
            raise cannot_write(path, error) from error

    def _set_aside(self, step: int) -> None:
        names = {path.name for path in self.folder.iterdir()}
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        free = next(name for end in suffixes if (name := f"{_DAMAGED}{step}{end}") not in names)
        self.path(step).rename(self.folder / free)

    def _read(self, template: Any) -> tuple[int, dict[str, np.ndarray]] | None:
        steps = self._steps()[::-1]
        names = sorted(path.name for path in self.folder.iterdir())
        foreign = [name for name in names if not _NAME.match(name)]
        if foreign:
            warnings.warn(
                f"{self.folder}: what is no checkpoint is ignored: {', '.join(foreign[:5])}",
                stacklevel=4,
            )
        for step in steps:
            path = self.path(step)
            problem = damage_in(path)
            if problem is None:
                self._check_owner(path)
                try:
                    stored = self._orbax.restore(path, args=ocp.args.StandardRestore())
                except Exception as error:  # of another version of Orbax, say
                    problem = first_line(error)
                else:
                    stored = {name: np.asarray(value) for name, value in stored.items()}
                    _check_same_model(path, stored, template)
                    return step, stored
            warnings.warn(
                f"the checkpoint {path} cannot be read ({problem}); trying the one before",
                stacklevel=4,
            )
        if not steps:
            return None
        raise RunError(
            f"resume: none of the checkpoints in {self.folder} can be read (steps {steps})."
            " Start a new run with another --out"
        )

    def _check_owner(self, path: Path) -> None:
        if self._run is None:
            return
        file, ours = path / _OWNER, owner(self._run)
        theirs = read_json(file) if file.exists() else {"of": "another version of metajax"}
        theirs.pop("metrics", None)
        if theirs != ours:
            raise RunError(
                f"resume: the checkpoint {path} is of another run ({json.dumps(theirs)[:300]})."
                " Remove it, put this run's own there, or start a new run with another --out"
            )


def _by_path(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths}


def _plain(leaf: Any) -> Any:
    """An array that can be stored: a typed key's data, anything else as it is."""
    if trees.is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _like(leaf: Any, value: np.ndarray) -> jax.Array:
    """The value as the template's leaf is: a key where it is one, on the same devices.

    A leaf that isn't bound to its device, as a new key, stays so: a program on several takes it.
    """
    array: Any = value
    if trees.is_key(leaf):
        array = jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and leaf.committed:
        return parallel.put(array, leaf.sharding)
    return jnp.asarray(array)


def _check_same_model(path: Path, stored: Mapping[str, np.ndarray], template: Any) -> None:
    shown = lambda array: f"{array.dtype}{list(array.shape)}"
    shapes = {name: jax.eval_shape(_plain, leaf) for name, leaf in _by_path(template).items()}
    wanted = {name: shown(like) for name, like in shapes.items() if like.size}
    found = {name: shown(array) for name, array in stored.items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name]}, not {kind}"
        for name, kind in wanted.items()
        if found.get(name, kind) != kind
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RunError(
            f"resume: the checkpoint {path} is of another model or optimizer:"
            f" {'; '.join(problems[:3])}{more}. Resume with the code and options that wrote"
            " it, or start a new run with another --out"
        )
