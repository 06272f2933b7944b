"""What several processes agree on: a value of the first one reaches the others."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from metajax.errors import MetajaxError
from metajax.parallel import _devices as devices

T = TypeVar("T")


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def from_first(work: Callable[[], T]) -> T:
    """What ``work()`` gives on the first process, on all of them; the others don't call it.

    With several processes arrays become NumPy arrays. All processes must call it.

    Args:
        work: any function of no arguments. Its result is a pytree of arrays, numbers and text.

    Raises:
        MetajaxError: on the other processes, what ``work`` raised on the first one.

    Example:
        >>> from_first(lambda: {"kept": 3})
        {'kept': 3}
    """
    if not several():
        return work()
    outcome, raised = None, None
    if jax.process_index() == 0:
        try:
            outcome = True, jax.device_get(work())
        except BaseException as error:  # even Ctrl-C: the others must not wait for what won't come
            outcome, raised = (False, f"{type(error).__name__}: {error}"), error
    content = b"" if outcome is None else pickle.dumps(outcome)
    fine, value = pickle.loads(_bytes_from_first(content))
    if raised is not None:
        raise raised
    if not fine:
        raise MetajaxError(f"process 0 failed: {value}")
    return value


def agreed(value: T) -> T:
    """The first process's value, on all of them.

    Example:
        >>> agreed(2.5)
        2.5
    """
    if not several():
        return value
    value = devices.to_host(value)  # which all of them must do
    return from_first(lambda: value)


def _bytes_from_first(content: bytes) -> bytes:
    """The first process's bytes, on all of several."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # As integers: a sum of floats with zeros would turn -0.0 to 0.0. As a power of two, so that few
    # programs are compiled.
    buffer: Any = np.zeros(1 << max(length - 1, 0).bit_length(), np.uint8)
    if jax.process_index() == 0:
        buffer[:length] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(buffer).tobytes()[:length]
