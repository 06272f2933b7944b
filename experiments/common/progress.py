"""What a long run shows while it goes on, and how it is asked to stop."""

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import tqdm

from experiments.common import processes
from experiments.common.folder import Run


def progress(name: str, step: int, steps: int, *, unit: str = "step") -> Any:
    """A bar with a rate and the time that is left.

    >>> with progress("rounds", 0, 2, unit="round") as bar:
    ...     _ = bar.update(2)
    """
    # Into a log file, a line now and then; on a terminal, a bar that moves.
    interval = 0.1 if sys.stderr.isatty() else 30.0
    width = min(shutil.get_terminal_size().columns, 110)
    return tqdm.tqdm(
        total=steps, initial=step, desc=name, unit=unit, mininterval=interval, ncols=width,
        disable=not processes.first(),
    )  # fmt: skip


def _say(message: str) -> None:
    processes.show(message, file=sys.stderr)


class Stop:
    """The signal that asked the run to stop; None until one did."""

    received: signal.Signals | None = None

    def leave(self, last: str, run: Run) -> NoReturn:
        """Ends as the signal would have; ``last`` is what was finished."""
        _say(f"stopped after {last}; --resume --out {run.path} goes on from there")
        raise KeyboardInterrupt if self.received == signal.SIGINT else SystemExit(143)


@contextlib.contextmanager
def stop_requests(unit: str) -> Iterator[Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request; the second acts at once.

    The state is donated to the running program: an exception in the middle would lose it.

    Args:
        unit: what the user is told will be finished.

    >>> with stop_requests("round") as stop:
    ...     print(stop.received)
    None
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: Any) -> None:
        stop.received = signal.Signals(number)
        restore()
        _say(f"stopping after this {unit}, with a checkpoint; again to stop at once")

    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
