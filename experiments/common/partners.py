"""Processes that run together: they meet within a minute, and each notices when another is lost.

JAX's own way out is to end the process from C++, minutes later and with the stack of its threads.
"""

import atexit
import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from experiments.common.config import RunError

MEETING = 45.0
"""Seconds within which all processes must be there."""
SILENCE = 45.0
"""Seconds without a word after which a process counts as lost."""
BEAT = 5.0
"""Seconds between two words."""
CLUSTER = 300.0
"""Seconds that a cluster may take to start all of them, from a shared disk say."""
_WORD, _GOODBYE = b".", b"q"


def meet(coordinator: str, count: int, index: int) -> None:
    """Returns when all processes are at the coordinator's port, which is free again then.

    Args:
        coordinator: host:port of the first process.
        count: how many processes there are.
        index: which one this is, from 0.

    Raises:
        RunError: one of them is missing, or two have the same number, or the port is taken; on
            every process that is there.
    """
    host, port = coordinator.rsplit(":", 1)
    deadline = time.monotonic() + MEETING
    answer = _receive if index == 0 else _call
    problem = answer(host, int(port), count, index, deadline)
    if problem:
        raise RunError(problem)


def _server(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _receive(host: str, port: int, count: int, index: int, deadline: float) -> str:
    """Waits for the others as the first process; what is wrong, in words."""
    try:
        server = _server(port)
    except OSError as error:
        said = "is in use" if error.errno == errno.EADDRINUSE else f"can't be used ({error})"
        return (
            f"coordinator: port {port} {said} on this machine. Give all processes another one; or "
            "two of them have --process-id 0"
        )
    problem, there = "", {}
    with server:
        while len(there) < count - 1 and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [each for each in range(1, count) if each not in there]
                problem = (
                    f"coordinator: after {MEETING:.0f} s at {host}:{port}, of {count} processes "
                    f"these are missing: {', '.join(map(str, missing))}. Start all of them within "
                    "that time"
                )
                break
            try:
                connection.settimeout(5)
                number, asked = json.loads(connection.recv(100))
            except (OSError, ValueError, TypeError):  # a stranger at this port
                connection.close()
                continue
            if asked != count:
                problem = f"processes is {count} for process 0 and {asked} for process {number}"
            elif number in there or number == index:
                problem = f"process_id: {number} was given to two processes"
            there[number if number not in there else -1] = connection
        for connection in there.values():
            with connection, contextlib.suppress(OSError):
                connection.sendall(problem.encode() or b"go")
    return problem


def _call(host: str, port: int, count: int, index: int, deadline: float) -> str:
    """Goes to the first process; what is wrong, in words."""
    while True:
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=5) as connection:
                connection.sendall(json.dumps([index, count]).encode())
                connection.settimeout(max(1.0, deadline + 5 - time.monotonic()))
                said = connection.recv(1000).decode()
                if said:
                    return "" if said == "go" else said
        except OSError:  # not there yet, or no such host
            pass
        if time.monotonic() > deadline:
            return (
                f"coordinator: process {index} of {count} found nobody at {host}:{port} within "
                f"{MEETING:.0f} s. Start process 0 there, or mend the address"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends the process, with a word, where processes that a cluster started don't meet in time."""
    words = f"after {seconds:.0f} s some of the processes are missing"
    timer = threading.Timer(seconds, _end, ["of several", words])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watch(index: int, count: int, from_first: Callable[[Any], Any]) -> None:
    """From now on this process ends, with a word, soon after another one was lost.

    All processes call it. The first hears from each, and each from the first.

    Args:
        index: which process this is, from 0.
        count: how many there are.
        from_first: gives all the first process's value.
    """
    server = _server(0) if index == 0 else None
    port = server.getsockname()[1] if server else 0
    address: Mapping[str, Any] = from_first({"host": socket.gethostname(), "port": port})
    connections: dict[int, socket.socket] = {}
    try:
        if server:
            with server:
                server.settimeout(MEETING)
                while len(connections) < count - 1:
                    connection, _ = server.accept()
                    connection.settimeout(MEETING)
                    connections[int.from_bytes(connection.recv(4), "big")] = connection
        else:
            connections[0] = socket.create_connection((address["host"], address["port"]), MEETING)
            connections[0].sendall(index.to_bytes(4, "big"))
    except OSError as error:
        warnings.warn(
            f"process {index} can't hear from all others ({error}): JAX alone notices a lost one",
            stacklevel=2,
        )
    for other, connection in connections.items():
        connection.settimeout(SILENCE)
        threading.Thread(target=_listen, args=(connection, index, other), daemon=True).start()
    threading.Thread(target=_talk, args=(list(connections.values()),), daemon=True).start()
    atexit.register(_say, list(connections.values()), _GOODBYE)


def _talk(connections: list[socket.socket]) -> None:
    while True:
        _say(connections, _WORD)
        time.sleep(BEAT)


def _say(connections: list[socket.socket], word: bytes) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(word)


def _listen(connection: socket.socket, index: int, other: int) -> None:
    while True:
        try:
            heard = connection.recv(64)
        except TimeoutError:
            _end(index, f"process {other} has not answered for {SILENCE:.0f} s")
        except OSError:
            heard = b""
        if not heard:
            _end(index, f"process {other} has ended")
        if _GOODBYE in heard:
            return


def _end(index: int | str, problem: str) -> NoReturn:
    print(
        f"process {index}: error: distributed: {problem}. Start all of them again with --resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
