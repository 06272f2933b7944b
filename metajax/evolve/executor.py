"""Runs a Python program that a model wrote, in a process of its own, for users who need that.

Nothing else in metajax calls it: the tasks of ``metajax.evolve.programs`` never evaluate text.

What it does, in plain words. The program runs in a new process (``python -I -S``) with an empty
environment. An empty folder, in which it can make nothing, is the root of all files that it sees.
It runs as a user that owns nothing, or as the caller's in namespaces of its own. It can't start
processes or threads, nor signal those of others. Memory, processor time, open files, output and
wall-clock time are bounded. Where the system allows it, it has a network of its own, without any
connection; whether it has is in the result. What it prints is read as one Python literal. Where
something that this depends on can't be had, the network apart, the program isn't run.

What it is not: **a security boundary.** The program runs on the same kernel, beside the caller's
processes. Bugs of the kernel and of Python are open to it, and so are side channels, and the
network where there is no namespace for it. Where root may make no namespaces, as in many
containers, what a program allocates as System V shared memory is neither bounded nor removed. For
text that someone hostile may have written use a virtual machine, or a service made for it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve import _confinement

MODULES = (
    "bisect",
    "collections",
    "copy",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "string",
)
"""What a program can import, unless told otherwise."""
_GRACE = 5.0
"""Seconds that the supervisor has for itself, beyond the program's."""
_LONGEST_SOURCE = 1 << 20


class Outcome(NamedTuple):
    """What came of a program.

    Attributes:
        ok: whether it ended by itself, without an error, and printed one literal.
        value: the literal's value; None if not ``ok``.
        reason: why it isn't ``ok``, in words; empty if it is.
        text: what it printed, up to the bound.
        network_off: whether it was kept from the network.
    """

    ok: bool
    value: Any
    reason: str
    text: str
    network_off: bool


def run_python(
    source: str,
    *,
    timeout: float = 2.0,
    memory: int = 256 << 20,
    output: int = 64 << 10,
    modules: Sequence[str] = MODULES,
    network: str = "off if possible",
) -> Outcome:
    """Runs a program and reads the one literal that it prints; no security boundary (see above).

    Nothing that a program does is an error of the caller: it fails, and the outcome says why. So it
    does where this system can't confine it. Functions registered with ``atexit`` aren't called.

    Args:
        source: the program.
        timeout: seconds of wall-clock time, at most a day. Processor time is bounded by about as
            much.
        memory: bytes of address space, the interpreter's own (about 30 MB) among them.
        output: bytes that it may print, at most 1 MiB.
        modules: what it can import, besides what is part of the interpreter and what its
            confinement has used. They are imported before its files are taken away, with the
            caller's rights.
        network: ``"off if possible"``, or ``"off"`` to fail where it can't be taken away.

    Returns:
        An ``Outcome``.

    Raises:
        ArgumentError: an argument is out of range.
        NotImplementedError: the system isn't Linux.

    Example:
        >>> outcome = run_python("print(sorted([3, 1, 2]))")
        >>> outcome.value in ([1, 2, 3], None)  # None where the system can't confine it
        True
        >>> run_python("while True: pass", timeout=0.2).ok
        False
    """
    timeout = _checks.positive_float("timeout", timeout)
    memory = _checks.at_least("memory", memory, 64 << 20)
    output = _checks.positive_int("output", output)
    for name, value, most in (("timeout", timeout, 86400), ("output", output, 1 << 20)):
        if value > most:
            raise ArgumentError(f"{name} must be at most {most}, got {value}.")
    _checks.one_of("network", network, ("off", "off if possible"))
    if not isinstance(source, str):
        raise ArgumentError(f"source must be a string, got {type(source).__name__}.")
    if sys.platform != "linux":
        raise NotImplementedError(f"run_python needs Linux, got {sys.platform}.")
    if len(source) > _LONGEST_SOURCE:
        return _failed(f"it is longer than {_LONGEST_SOURCE} characters")
    with tempfile.TemporaryDirectory(prefix="metajax-") as folder:
        Path(folder).chmod(0o555)
        request = {
            "source": source,
            "timeout": timeout,
            "memory": memory,
            "output": output,
            "modules": list(modules),
            "network": network,
            "folder": folder,
        }
        answer = _supervised(json.dumps(request).encode("ascii"), timeout + _GRACE, folder)
    if answer is None:
        return _failed("its supervisor failed")
    if answer["reason"]:
        return _failed(answer["reason"], answer["text"], answer["network"])
    ok, value = _confinement.read_literal(answer["text"])
    if not ok:
        return _failed("what it printed is no literal", answer["text"], answer["network"])
    return Outcome(True, value, "", answer["text"], answer["network"])


def _failed(reason: str, text: str = "", network_off: bool = False) -> Outcome:
    return Outcome(False, None, reason, text, network_off)


def _supervised(request: bytes, seconds: float, folder: str) -> dict[str, Any] | None:
    """The supervisor's answer; None if it failed. None of its processes is left."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", _confinement.__file__]
    # Without preexec_fn, since that would fork a process in which JAX's threads run.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=folder,
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(request, timeout=seconds)
        return json.loads(answer) if process.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    """Asks the supervisor to end the program and itself, and ends it if it doesn't."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
