"""Checkpoints of a training state, written by Orbax: atomic, checked when they are read."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from metajax.runs.config import RunError

StateT = TypeVar("StateT")


class Checkpoints:
    """The checkpoints in one folder, named by meta-step; the newest few are kept.

    A state is any pytree of arrays, typed random keys included. It is stored as a flat dictionary
    from path to array, so a checkpoint can be read without the code that wrote it.

    Args:
        folder: where they are, or will be.
        keep: how many to keep. With two or more, an older one is left if the newest is damaged.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of this process alone, which waits for no other; see shared.py for runs of several.
        me = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}
            ),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a meta-step is."""
        return self.folder / str(step)

    def latest(self) -> int | None:
        """The newest checkpoint's meta-step; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint; a step that has one already keeps it."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_flatten(state)))

    def restore(self, template: StateT) -> tuple[StateT, int] | None:
        """The newest state that can be read, and its meta-step; None where there is none.

        A damaged checkpoint is passed over with a warning that names it, for the one before, and
        set aside as ``damaged-...``.

        Args:
            template: a state of the same structure, shapes and dtypes.

        Raises:
            RunError: the checkpoint is of another model or optimizer, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return None
        for step in steps:
            try:
                stored = self._manager.restore(step, args=ocp.args.StandardRestore())
            except Exception as error:  # whatever Orbax and TensorStore make of damaged files
                warnings.warn(
                    f"the checkpoint {self.path(step)} cannot be read ({_first_line(error)});"
                    " trying the one before",
                    stacklevel=2,
                )
                continue
            state = self._unflatten(template, stored, step)
            # Steps past the restored one are damaged, and would be in the way of new ones.
            for later in steps[: steps.index(step)]:
                self.path(later).rename(self.folder / f"damaged-{later}")
            self._manager.reload()
            return state, step
        raise RunError(
            f"resume: none of the checkpoints in {self.folder} can be read (steps {steps})."
            " Start a new run with another --out"
        )

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


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """An array that can be stored: a typed key's data, anything else as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _like(leaf: Any, value: np.ndarray) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
    return (
        jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else jnp.asarray(value)
    )


def _flatten(state: Any) -> dict[str, np.ndarray]:
    # As NumPy arrays: what is stored then names no device, and reads back on any machine.
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in paths}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
