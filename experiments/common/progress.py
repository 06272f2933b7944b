"""What a long run shows while it goes on, and how it is asked to stop."""

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import tqdm

from experiments.common import processes
from experiments.common.folder import Run


class _Lines:
    """A stream into a log file: each state of a bar is a line of its own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(name: str, step: int, steps: int, *, unit: str = "step") -> Any:
    """A bar with a rate and the time that is left.

    On a terminal it moves. In a log file there is a line every 30 seconds. A line has 80 columns
    where the terminal has no more: a long name is cut then, and the bar goes before the numbers do.

    >>> with progress("rounds", 0, 2, unit="round") as bar:
    ...     _ = bar.update(2)
    """
    terminal = sys.stderr.isatty()
    width = min(shutil.get_terminal_size().columns, 110)
    numbers = "{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return tqdm.tqdm(
        total=steps,
        initial=step,
        desc=name if len(name) <= width // 4 else name[: width // 4 - 1] + "…",
        unit=unit,
        mininterval=0.1 if terminal else 30.0,
        ncols=width,
        bar_format=None if terminal and width > 100 else "{desc}: " + numbers,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        disable=not processes.first(),
    )


def finish(path: Path, *shown: str, then: str) -> None:
    """Shows what a run found, where everything is, and what can be done next.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "table.md").touch()
    ...     finish(Path(folder), "99 %", then="make demo")  # doctest: +ELLIPSIS
    <BLANKLINE>
    99 %
    Everything is in ...: table.md
    Next: make demo
    """
    files = sorted(file.name for file in path.iterdir() if file.suffix in {".md", ".png", ".txt"})
    lines = (*shown, f"Everything is in {path}: {', '.join(files)}", f"Next: {then}")
    processes.show("\n" + "\n".join(lines))


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
