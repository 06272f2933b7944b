"""Runs one Python program confined; started by ``executor``, in a process of its own.

Standard library alone: it is run as a file, by ``python -I -S``. Two processes take part. The
supervisor, started by the caller, prepares what only it may do, and forks the program's process,
which gives up all rights and runs the text. What the program prints goes through a pipe to the
supervisor, which sends the caller one line of JSON.
"""

import ast
import contextlib
import ctypes
import importlib
import json
import os
import random
import resource
import select
import signal
import sys
import time
from typing import Any, NoReturn

_NEWNS, _NEWIPC, _NEWUSER = 0x00020000, 0x08000000, 0x10000000
_NEWPID, _NEWNET = 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, of this process
_CAP_KILL = 5


def read_literal(text: str) -> tuple[bool, Any]:
    """Whether text is one Python literal of finite numbers, and its value."""
    try:
        value = ast.literal_eval(text.strip())
        return (True, value) if _finite(value) else (False, None)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError):
        return False, None


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_finite(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_finite, value))
    if isinstance(value, complex):
        return _finite(value.real) and _finite(value.imag)
    return not isinstance(value, float) or abs(value) < float("inf")


def _unshare(flags: int) -> bool:
    return _libc.unshare(flags) == 0


class Confinement:
    """What the system allows; taken by the supervisor before it forks."""

    def __init__(self) -> None:
        self.uid, self.gid = os.geteuid(), os.getegid()
        self.is_root = self.uid == 0
        self.user = self.is_root or self._own_user_namespace()
        # One by one: a system may allow some of them.
        self.network = self.user and _unshare(_NEWNET)
        self.processes = self.user and _unshare(_NEWPID)
        self.mounts = self.user and _unshare(_NEWNS)
        if self.user and _unshare(_NEWIPC):
            self._no_shared_memory()

    def _own_user_namespace(self) -> bool:
        """An ordinary user has the rights to the other namespaces only within one of its own."""
        if not _unshare(_NEWUSER):
            return False
        maps = (("setgroups", "deny"), ("uid_map", f"0 {self.uid} 1"))
        for name, content in (*maps, ("gid_map", f"0 {self.gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(content)
        return True

    def _no_shared_memory(self) -> None:
        """In its own namespace: what programs share would be beside their limit of memory."""
        for name in ("shmmni", "msgmni"):
            path = f"/proc/sys/kernel/{name}"
            with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
                file.write("0")

    def refusal(self, network: str) -> str:
        """Why the program isn't run, or nothing."""
        if not self.user:
            return "this system gives an ordinary user no namespaces, so it wasn't run"
        if self.is_root and not _capabilities()[0] >> _CAP_KILL & 1:
            return "root may not end other users' processes here, so it wasn't run"
        if network == "off" and not self.network:
            return "this system gives it no network of its own, so it wasn't run"
        return ""

    def enter(self, folder: str) -> None:
        """Makes the program's process what it is to be: all of it holds, or an error is raised."""
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._empty_root(folder)
        if self.is_root:
            self._become_nobody()
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(_libc.capset(_CAPABILITIES, (ctypes.c_uint32 * 6)()))
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user has undone it
        if any(_capabilities()) or (self.is_root and 0 in os.getresuid()):
            raise PermissionError("rights are left")
        if not self.processes and not self.is_root:
            raise PermissionError("the program could signal its caller's processes")

    def _empty_root(self, folder: str) -> None:
        """An empty folder, in which nothing can be made, becomes the root of all files."""
        if self.mounts:
            kind = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
            options = b"size=4k,nr_inodes=2,mode=555"
            _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
            _check(_libc.mount(b"none", os.fsencode(folder), b"tmpfs", kind, options))
        elif not self.is_root:
            raise PermissionError("the caller's files could be changed")
        os.chroot(folder)
        os.chdir("/")
        if os.listdir("/"):
            raise PermissionError("files are left")

    def _become_nobody(self) -> None:
        """A user of its own where there are as many, so that no other process is the same's."""
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        own = random.SystemRandom().randrange(2**30, 2**31 - 1)
        try:
            os.setresuid(own, own, own)
        except OSError:
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _capabilities() -> list[int]:
    """Effective, permitted and inheritable, the lower 32 of each before the others."""
    own = (ctypes.c_uint32 * 6)()
    _check(_libc.capget(_CAPABILITIES, own))
    return list(own)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _limit(memory: int, seconds: int) -> None:
    """Limits of the system, which can't be raised again, and a test that no process can be made."""
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 16,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        os._exit(0)
    raise PermissionError("processes aren't limited")


def _run(request: dict[str, Any], confinement: Confinement, output: int) -> NoReturn:
    """The program's process; it never returns."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(null, 2)
        os.closerange(3, 65536)
        confinement.enter(request["folder"])
        _limit(request["memory"], int(request["timeout"]) + 2)
        os.write(1, b"\n")  # says that all of it holds
    except BaseException:
        os._exit(1)
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        sys.argv = [""]
        os.environ.clear()
        source = request["source"]
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = 0 if stop.code in (None, 0) else 1
    except BaseException:
        status = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(status)


def _watch(child: int, source: int, deadline: float, limit: int) -> tuple[str, bytes]:
    """Waits for the program: why it failed, or nothing, and what it printed."""
    text = b""
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return "it ran past its timeout", text
        part = os.read(source, 65536)
        text += part
        if len(text) > limit + 1:
            return f"it printed more than {limit} bytes", text[: limit + 1]
        if not part:
            break
    # It may have closed its output and gone on.
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return _reason(os.waitstatus_to_exitcode(status)), text
        time.sleep(0.002)
    return "it ran past its timeout", text


def _reason(code: int) -> str:
    if code < 0:
        return f"it was ended by signal {-code}"
    return f"it ended with exit status {code}" if code else ""


def _imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def _supervise(request: dict[str, Any]) -> dict[str, Any]:
    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    # Before anything is given up that they may need.
    missing = [name for name in request["modules"] if not _imported(name)]
    confinement = Confinement()
    refusal = confinement.refusal(request["network"])
    if missing:
        refusal = f"the module {missing[0]!r} can't be imported"
    if refusal:
        return {"reason": refusal, "text": "", "network": confinement.network}
    source, output = os.pipe()
    deadline = time.monotonic() + request["timeout"]
    # The caller ends a call by SIGTERM, which mustn't come between the fork and what follows it.
    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        _run(request, confinement, output)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.close(output)
        reason, text = _watch(child, source, deadline, request["output"])
    finally:
        # Until it has been waited for, its number is no other process's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
    if not text.startswith(b"\n"):
        reason = "this system doesn't allow to confine it, so it wasn't run"
    printed = text[1:].decode("utf-8", "replace")
    if not reason and (not _is_utf8(text) or not read_literal(printed)[0]):
        # Tried here first: a literal can be such that reading it ends the process.
        reason = "what it printed is no literal"
    return {"reason": reason, "text": printed, "network": confinement.network}


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    """Reads a request, runs it, writes what came of it."""
    sys.stdout.write(json.dumps(_supervise(json.loads(sys.stdin.buffer.read()))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
