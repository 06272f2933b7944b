"""Starting a script as several processes that find one another."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

HERE = pathlib.Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(**variables: str) -> dict[str, str]:
    """That of a process with one CPU device, which imports this checkout and its tests."""
    paths = [*map(str, (HERE.parent.parent, HERE.parent, HERE)), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        **variables,
    }


def run_together(
    commands: Sequence[Sequence[str]],
    environments: Sequence[dict[str, str]],
    *,
    timeout: int = 1200,
) -> list[subprocess.CompletedProcess]:
    """Runs Python commands at the same time; returns what each wrote, and its status."""
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            env=variables,
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, variables in zip(commands, environments, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def own_words(text: str) -> str:
    """What the program itself said: not gloo's greeting, nor the lines of JAX's C++ logger."""
    foreign = ("[Gloo]", "WARNING: All log messages before absl", "I0000", "W0000")
    return "\n".join(line for line in text.splitlines() if not line.startswith(foreign))
