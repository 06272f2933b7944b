"""Checkpoints and metrics of a run whose processes share them: the first writes and reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import processes
from experiments.common._closing import Closing
from experiments.common.checkpoints import Checkpoints
from experiments.common.metrics import MetricsLog
from metajax import parallel, trees

StateT = TypeVar("StateT")


def open_checkpoints(folder: Path) -> "Checkpoints | SharedCheckpoints":
    """``Checkpoints``; those of the first process, where there are several."""
    return SharedCheckpoints(folder) if processes.several() else Checkpoints(folder)


def open_metrics(folder: Path, *, step: int, tensorboard: bool) -> "MetricsLog | Unwritten":
    """``MetricsLog``; on further processes, one that writes nothing."""
    opened: list[MetricsLog] = []
    processes.on_first(
        lambda: opened.append(MetricsLog(folder, step=step, tensorboard=tensorboard))
    )
    return opened[0] if opened else Unwritten()


class Unwritten(Closing):
    """What a ``MetricsLog`` is on further processes.

    >>> with Unwritten() as log:
    ...     log.append(1, {"loss": 0.5})
    >>> log.records
    [{'step': 1, 'loss': 0.5}]
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def close(self) -> None:
        """There is nothing to close."""

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Keeps what the first process writes."""
        self.records.append({"step": step, **values})

    def sync(self) -> None:
        """Nothing is on its way to the disk here."""


class SharedCheckpoints(Closing):
    """``Checkpoints`` of several processes, all of which call the same methods.

    Args:
        folder: where they are, on the first process's machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: list[Checkpoints] = []  # none on further processes
        processes.on_first(lambda: self._opened.append(Checkpoints(folder)))

    def close(self) -> None:
        """Lets go of the folder."""
        for own in self._opened:
            own.close()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a meta-step is."""
        return self.folder / str(step)

    def latest(self) -> int | None:
        """The newest checkpoint's meta-step; None where there is none."""
        return processes.on_first(lambda: self._opened[0].latest())

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint: all processes give their parts, the first writes."""
        host = jax.tree.map(_local, state)
        processes.on_first(lambda: self._opened[0].save(step, host))

    def restore(self, template: StateT) -> tuple[StateT, int] | None:
        """What the first process restores, placed on every process as ``template`` is.

        Raises:
            RunError: on all processes, what it raised on the first.
        """
        found: list[Any] = []

        def read() -> int | None:
            restored = self._opened[0].restore(jax.tree.map(_blank, template))
            if restored is None:
                return None
            found.append(restored[0])
            return restored[1]

        step = processes.on_first(read)
        if step is None:
            return None
        state = found[0] if found else jax.tree.map(_blank, template)
        return jax.tree.map(_from_first, state, template), step


def _local(leaf: Any) -> Any:
    """The whole of a leaf, of this process alone."""
    if trees.is_key(leaf):
        data = jnp.asarray(parallel.to_host(jax.random.key_data(leaf)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return parallel.to_host(leaf)


def _blank(leaf: Any) -> Any:
    """Zeros of a leaf's shape, of this process alone."""
    if trees.is_key(leaf):
        shape = jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(
            jnp.zeros(shape.shape, shape.dtype), impl=jax.random.key_impl(leaf)
        )
    return np.zeros(jnp.shape(leaf), jnp.result_type(leaf))


def _from_first(leaf: Any, template: Any) -> Any:
    """The first process's leaf, placed as the template is."""
    if trees.is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        shared = jnp.asarray(_array_from_first(data))
        leaf = jax.random.wrap_key_data(shared, impl=jax.random.key_impl(leaf))
    else:
        leaf = _array_from_first(np.asarray(leaf))
    return parallel.put(leaf, template.sharding) if isinstance(template, jax.Array) else leaf


def _array_from_first(array: np.ndarray) -> np.ndarray:
    content = processes.bytes_from_first(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(content, array.dtype).reshape(array.shape)
