"""A check that nothing is compiled."""

import contextlib
import functools

import jax


@functools.cache
def _heard():
    """The running list of compilations in this process."""
    events = []

    def listen(name, _duration, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


@contextlib.contextmanager
def no_compilation():
    """Fails if anything is compiled inside."""
    heard = _heard()
    before = len(heard)
    jax.jit(lambda x: x + before)(0.0)
    assert len(heard) == before + 1, "the listener is deaf"
    yield
    assert len(heard) == before + 1, "something was compiled"
