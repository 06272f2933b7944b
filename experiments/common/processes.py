"""Runs of several processes: how they find one another, who writes, and how all agree.

Every process runs the same program. The first one reads and writes the run's files, and says what
there is to say; what it read, and what any of them decided, reaches the others through
``jax.distributed``. No file system need be shared.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common import partners
from experiments.common.config import DistributedConfig, RunError
from metajax import parallel
from metajax.errors import MetajaxError


def connect(config: DistributedConfig) -> None:
    """Sets JAX's devices up: those of all processes, or else every core of this machine's CPU.

    Call it before JAX is first used. With ``--distributed`` it returns when all processes are
    there; where no accelerator is, each of them is one device then.

    Raises:
        RunError: the processes don't find one another; the message names the option.

    >>> connect(DistributedConfig(steps=5))
    """
    if not config.distributed:
        parallel.use_every_core()
        return
    # Its handler of SIGTERM would take the place of the one that ends a process.
    jax.config.update("jax_enable_preemption_service", False)
    if config.coordinator is not None:
        assert config.processes is not None
        assert config.process_id is not None
        partners.meet(config.coordinator, config.processes, config.process_id)
    limit = partners.CLUSTER if config.coordinator is None else partners.MEETING
    try:
        # JAX's own ends are later, and in C++.
        with partners.within(limit):
            jax.distributed.initialize(
                config.coordinator,
                config.processes,
                config.process_id,
                initialization_timeout=round(limit) + 15,
                heartbeat_timeout_seconds=2 * round(partners.SILENCE),
                shutdown_timeout_seconds=60,
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        if "called before" in reason or "called once" in reason:
            raise RunError(
                f"distributed: the processes must meet before JAX is used ({reason})"
            ) from error
        if config.coordinator is None:
            raise RunError(
                f"distributed: JAX does not know where the processes are ({reason}). Outside of"
                " SLURM and TPU pods, give --coordinator host:port, --processes and --process-id"
            ) from error
        raise RunError(
            f"coordinator: process {config.process_id} of {config.processes} found no others at"
            f" {config.coordinator} ({reason})"
        ) from error
    # Gloo, between CPUs, gives up where processes are half a minute apart at their first exchange:
    # they have it now, while all are here.
    any_of(0)
    partners.watch(jax.process_index(), jax.process_count(), from_first)
    if not first():
        logging.getLogger("metajax").setLevel(logging.WARNING)


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes: the first, or the only one.

    >>> first()
    True
    """
    return not several() or jax.process_index() == 0


def show(text: str, *, file: Any = None) -> None:
    """Prints, once however many processes run.

    >>> show("Everything is in runs/demo.")
    Everything is in runs/demo.
    """
    if first():
        print(text, file=file, flush=True)


def any_of(number: int) -> int:
    """The largest of all processes' numbers: what one of them asked for, all do.

    >>> any_of(15)
    15
    """
    if not several():
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def from_first(value: Any) -> Any:
    """The first process's value, which JSON can hold, on all of them.

    >>> from_first({"step": 40})
    {'step': 40}
    """
    if not several():
        return value
    return json.loads(bytes_from_first(json.dumps(value).encode()))


def array_from_first(array: np.ndarray | None, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """The first process's array, which the others know the shape and dtype of."""
    if not several():
        assert array is not None
        return array
    content = b"" if array is None else np.ascontiguousarray(array).tobytes()
    return np.frombuffer(bytes_from_first(content), like.dtype).reshape(like.shape)


def bytes_from_first(content: bytes) -> bytes:
    """The same for bytes."""
    return parallel.from_first(lambda: content)


def on_first(work: Callable[[], Any]) -> Any:
    """Does what one process should do, reading and writing; all get its JSON value, or its error.

    Raises:
        RunError: on the other processes, what the first one raised.

    >>> on_first(lambda: 3)
    3
    """
    if not several():
        return work()
    outcome, raised = {}, None
    if first():
        try:
            outcome = {"value": work()}
        except Exception as error:  # whatever it is, the others must not wait for what won't come
            outcome, raised = {"error": f"{error or type(error).__name__}"}, error
    outcome = from_first(outcome)
    if raised is not None:
        raise raised
    if "error" in outcome:
        raise RunError(outcome["error"])
    return outcome["value"]


def check_alike(name: str, identity: dict[str, Any]) -> None:
    """Raises a RunError on every process unless all were asked for the same."""
    if not several():
        return
    mine = {"experiment": name, **identity}
    theirs = from_first(mine)
    differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if any_of(bool(differing)):
        found = f" (here: {', '.join(differing)})" if differing else ""
        raise RunError(
            f"distributed: the processes were started with different options{found}. Start all"
            " of them with the same, but for --process-id"
        )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Within it, an error of one process ends it at once, not when the others are done: they wait
    for it, and learn of its end."""
    try:
        yield
    except Exception as error:
        if not several():
            raise
        # Where another one was lost, the partners' watch has the better words.
        time.sleep(1)
        who = f"process {jax.process_index()}"
        if isinstance(error, MetajaxError):
            print(f"{who}: error: {error}", file=sys.stderr, flush=True)
        else:
            logging.getLogger("metajax").error("%s failed", who, exc_info=error)
        sys.stdout.flush()
        os._exit(1)
