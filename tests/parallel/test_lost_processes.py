"""A process that is missing, frozen, killed, or there twice: the others say so and end, soon."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import HERE, environment, free_port, own_words

pytestmark = pytest.mark.slow
SCRIPT = "several_processes_lost.py"
STACK = ("*** Check failure stack trace", "    @     0x")


def start(port, count, index, limits=("8", "8", "1")):
    return subprocess.Popen(
        [sys.executable, SCRIPT, f"localhost:{port}", str(count), str(index), *limits],
        env=environment(),
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, status):
    """What a process said at its end, which comes soon and without a stack of C++."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert not any(words in said for words in STACK), said
    return own_words(said)


@pytest.mark.ci
def test_one_that_is_missing_and_a_first_that_is_missing():
    port = free_port()
    said = ended(start(port, 3, 0), 2)
    assert (
        f"coordinator: after 8 s at localhost:{port}, of 3 processes these are missing: 1, 2"
        in said
    )
    said = ended(start(free_port(), 3, 1), 2)
    assert "coordinator: process 1 of 3 found nobody at localhost:" in said


@pytest.mark.ci
def test_a_port_in_use_and_a_number_given_twice():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"coordinator: port {port} is in use" in ended(start(port, 2, 0), 2)
    port = free_port()
    processes = [start(port, 3, index) for index in (0, 1, 1)]
    for process in processes:
        assert "process_id: 1 was given to two processes" in ended(process, 2)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("sent", "word"), [(signal.SIGSTOP, "not answered"), (signal.SIGKILL, "ended")]
)
def test_one_that_is_frozen_or_killed(lost, sent, word):
    port = free_port()
    processes = [start(port, 2, index) for index in (0, 1)]
    for process in processes:
        while "met" not in process.stdout.readline():
            assert process.poll() is None
    time.sleep(1)
    os.kill(processes[lost].pid, sent)
    said = ended(processes[1 - lost], 1)
    processes[lost].kill()
    processes[lost].communicate()
    assert f"process {lost} has {word}" in said
    assert "--resume" in said
