"""Hostile texts against the task language and the executor: none escapes, none hangs.

Each is run alone. Afterwards no process is left, no file outside has changed, and what only the
caller knows hasn't come back.
"""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hostile_texts import ATTEMPTS, FAILURES, TEXTS

from metajax.evolve import programs as lang
from metajax.evolve.executor import run_python

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the executor is for Linux")
SECRET = "sesame-6127"
TIMEOUT = 0.3
MODULES = ("os", "time", "socket", "subprocess", "resource", "signal", "ctypes")


@pytest.fixture
def caller(tmp_path, monkeypatch):
    """What a program must not reach; afterwards, that it is as it was."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text(SECRET)
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("SECRET", SECRET)
    before = descendants()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield {
            "file": str(file),
            "folder": str(folder),
            "secret": SECRET,
            "pid": os.getpid(),
            "port": server.getsockname()[1],
        }
        with pytest.raises(BlockingIOError):
            server.accept()
    assert file.read_text() == SECRET
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "temporary"]
    assert descendants() <= before


def descendants():
    """Processes whose line of parents leads here, and confined ones that have lost theirs."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            commands[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])

    def ours(process):
        parent = parents.get(process, 0)
        lost = b"_confinement.py" in commands[process] and b"python" not in commands.get(
            parent, b""
        )
        while parent and parent != os.getpid():
            parent = parents.get(parent, 0)
        return parent == os.getpid() or lost

    return {process for process in parents if ours(process)}


def run(source):
    started = time.monotonic()
    # With modules that it needs, so that it isn't for want of these that it fails.
    outcome = run_python(source, timeout=TIMEOUT, memory=128 << 20, modules=MODULES)
    assert time.monotonic() - started < 8, "a hang: a start on a busy machine may take a second"
    assert SECRET not in outcome.text
    return outcome


NEED_NAMESPACES = ("connect", "connect by the kernel", "send", "hear the network", "shared memory")


@LINUX
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_comes_to_nothing(name, caller):
    outcome = run(ATTEMPTS[name].format(**caller))
    if name in NEED_NAMESPACES and not outcome.network_off:
        pytest.skip("this system gives it no namespaces")
    if outcome.ok:
        assert outcome.value is False


@LINUX
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_an_outcome(name, caller):
    outcome = run(FAILURES[name])
    assert not outcome.ok
    assert outcome.value is None
    assert outcome.reason


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:24]))
def test_a_hostile_text_is_no_program(text):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"unknown word|is no well-typed program"):
        lang.programs_of([text])
    assert time.monotonic() - started < 5


EXTREMES = [-(2**31), 2**31 - 1, -1, 58, 255, 2**30, 0, 2]


@pytest.mark.parametrize("number", EXTREMES)
def test_a_hostile_number_stays_inside(number):
    tokens = jnp.full((4, 13), number, jnp.int32)
    for read in (lang.parse, lang.parse_values, lambda own: lang.parse_proposals(own)[1:]):
        assert not read(tokens)[1].any()
    full = np.full((4, 4), number, np.int32)
    programs = lang.Programs(full, full, full[:, 0])
    inputs = lang.Values(np.full((4, 8), number, np.int32), full[:, 0], np.ones(4, bool))
    made = lang.run(programs, inputs)
    assert (made.lengths <= 8).all()
    assert (made.digits <= 9).all()
    assert not lang.well_typed(programs).any()
