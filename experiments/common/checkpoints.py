"""Checkpoints of a training state, written by Orbax: atomic, checked when they are read."""

import contextlib
import errno
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.common import _digests
from experiments.common._closing import Closing
from experiments.common._disk import cannot_write, first_line, writing
from experiments.common.config import RunError
from metajax import trees
from metajax.errors import ArgumentError

StateT = TypeVar("StateT")


class Checkpoints(Closing):
    """The checkpoints in one folder, named by meta-step; the newest few are kept.

    A state is any pytree of arrays, typed random keys included. It is stored as a flat dictionary
    from path to array, so a checkpoint can be read without the code that wrote it, and with the
    SHA-256 of every file: one that isn't byte for byte as it was written is not used.

    One process at a time may write (see ``fit``); reading changes nothing in the folder.

    Args:
        folder: where they are, or will be.
        keep: how many to keep, two at least: an older one is left if the newest is damaged.

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

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 2:
            raise ArgumentError(f"keep must be at least 2, so that one is left; got {keep}")
        self.folder = folder.absolute()
        self._keep = keep
        self._damaged: list[int] = []
        # Of this process alone, which waits for no other; see shared.py for runs of several.
        me = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # those that are too many go once the new one is whole
            create=False,
            enable_async_checkpointing=False,
            lightweight_initialize=True,  # damaged metadata is for restore to find
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}
            ),
        )
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def close(self) -> None:
        """Lets go of the folder."""
        self._manager.close()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a meta-step is."""
        return self.folder / str(step)

    def latest(self) -> int | None:
        """The newest checkpoint's meta-step, damaged or not; None where there is none."""
        return max(self._steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint; a step that has one already keeps it.

        It counts from when its ``SHA256SUMS`` is there, the last to be written. Checkpoints that
        ``restore`` found damaged are set aside first, as ``damaged-...``.

        Raises:
            RunError: it can't be written. Those before are kept.
        """
        if not self.folder.is_dir():  # Orbax would make it again, without the rest of the run
            raise cannot_write(self.folder, FileNotFoundError(errno.ENOENT, ""))
        with writing(self.folder):
            self._tidy()
        if step in self._steps():
            return
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_flatten(state)))
            _digests.write(self.path(step))
            for old in sorted(self._steps())[: -self._keep]:
                shutil.rmtree(self.path(old))
        except Exception as error:  # whatever Orbax and TensorStore make of a full disk
            with contextlib.suppress(OSError):
                shutil.rmtree(self.path(step), ignore_errors=True)
                self._tidy()
            raise cannot_write(self.path(step), error) from error

    def restore(self, template: StateT) -> tuple[StateT, int] | None:
        """The newest state that is as it was written, and its meta-step; None where there is none.

        A damaged checkpoint is passed over with a warning that names it, for the one before. The
        first, where its writing was cut short and no other was ever written, counts as none.

        Args:
            template: a state of the same structure, shapes and dtypes.

        Raises:
            RunError: the checkpoint is of another model or optimizer, or none can be read.
        """
        steps = sorted(self._steps(), reverse=True)
        if not steps:
            return None
        if len(steps) == 1 and not _digests.written(self.path(steps[0])):
            warnings.warn(
                f"the checkpoint {self.path(steps[0])}, the first, was not written to its end;"
                " beginning without it",
                stacklevel=2,
            )
            self._damaged = steps
            return None
        for step in steps:
            problem = _digests.problem(self.path(step))
            if problem is None:
                try:
                    stored = self._manager.restore(step, args=ocp.args.StandardRestore())
                except Exception as error:  # of another version of Orbax, say
                    problem = first_line(error)
                else:
                    state = self._unflatten(template, stored, step)
                    # What comes after it would be in the way of new ones.
                    self._damaged = [later for later in steps if later > step]
                    return state, step
            warnings.warn(
                f"the checkpoint {self.path(step)} cannot be read ({problem});"
                " trying the one before",
                stacklevel=2,
            )
        self._damaged = steps
        raise RunError(
            f"resume: none of the checkpoints in {self.folder} can be read (steps {steps})."
            " Start a new run with another --out"
        )

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]

    def _tidy(self) -> None:
        """Removes what a kill left unfinished, and sets aside what is damaged."""
        for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path)
        for step in self._damaged:
            aside = self.folder / f"damaged-{step}"
            number = 2
            while aside.exists():
                aside, number = self.folder / f"damaged-{step}-{number}", number + 1
            self.path(step).rename(aside)
        self._damaged = []
        self._manager.reload()

    def _unflatten(self, template: StateT, stored: Mapping[str, Any], step: int) -> StateT:
        paths, structure = jax.tree_util.tree_flatten_with_path(template)
        wanted = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
        problems = [f"{name} is missing" for name in wanted if name not in stored]
        problems += [f"{name} is unknown" for name in stored if name not in wanted]
        leaves = []
        for name, leaf in wanted.items():
            if name not in stored:
                continue
            value, plain = np.asarray(stored[name]), _plain(leaf)
            if value.shape != plain.shape or value.dtype != plain.dtype:
                problems.append(
                    f"{name} is {value.dtype}{list(value.shape)},"
                    f" not {plain.dtype}{list(plain.shape)}"
                )
            leaves.append(_like(leaf, value))
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise RunError(
                f"resume: the checkpoint {self.path(step)} is of another model or optimizer:"
                f" {'; '.join(problems[:3])}{more}. Resume with the code and options that wrote"
                " it, or start a new run with another --out"
            )
        return jax.tree.unflatten(structure, leaves)


def _plain(leaf: Any) -> Any:
    """An array that can be stored: a typed key's data, anything else as it is."""
    return jax.random.key_data(leaf) if trees.is_key(leaf) else jnp.asarray(leaf)


def _like(leaf: Any, value: np.ndarray) -> jax.Array:
    if trees.is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
    return (
        jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else jnp.asarray(value)
    )


def _flatten(state: Any) -> dict[str, np.ndarray]:
    # As NumPy arrays: what is stored then names no device, and reads back on any machine.
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in paths}
