"""The executor: what it returns, what it says, and that it fails closed. See also test_hostile."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metajax.evolve import _confinement, executor
from metajax.evolve.executor import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the executor is for Linux")


@pytest.fixture(scope="module")
def confines():
    if not run_python("print(1)").ok:
        pytest.skip("this system can't confine a program")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("print(1 + 1)", 2),
        ("print([1, 'a', None, (2.5, True), {3: {4}}])", [1, "a", None, (2.5, True), {3: {4}}]),
        ("import math\nprint(repr(math.factorial(20)))", 2432902008176640000),
        ("def f(x): return x[::-1]\nprint(f([1, 2]))", [2, 1]),
        ("print('\\n  [1,\\n 2]  ')", [1, 2]),
        ("print(repr('π ≠ ３'))", "π ≠ ３"),
        ("print(7); raise SystemExit", 7),
        ("import json, re, random, collections, itertools; print(json.loads('[3]'))", [3]),
        ("import os; print(dict(os.environ))", {}),
        ("import os; print(os.listdir('/'))", []),
        ("if __name__ == '__main__': print(1)", 1),
    ],
)
def test_what_a_program_prints_is_its_value(confines, source, value):
    outcome = run_python(source)
    assert outcome.ok, outcome.reason
    assert outcome.value == value
    assert type(outcome.value) is type(value)
    assert outcome.reason == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "it ended with exit status 1"),
        ("print(", "it ended with exit status 1"),
        ("import os; os._exit(120)", "it ended with exit status 120"),
        ("import os, signal; os.kill(os.getpid(), 9); x = ()\nwhile 1: pass", "it "),
        ("while True: pass", "it ran past its timeout"),
        ("print('1' * 2000)", "it printed more than 1000 bytes"),
        ("print('one')", "what it printed is no literal"),
        ("print()", "what it printed is no literal"),
        ("x = bytearray(1 << 30)", "it ended with exit status 1"),
        ("import decimal", "it ended with exit status 1"),
        ("#" * (1 << 20) + "#", "it is longer than 1048576 characters"),
    ],
)
def test_a_failure_says_why(confines, source, reason):
    outcome = run_python(source, timeout=0.5, output=1000)
    assert not outcome.ok
    assert outcome.value is None
    assert outcome.reason.startswith(reason)
    assert len(outcome.text) <= 1000


def test_what_was_printed_before_a_failure_is_told(confines):
    assert run_python("print('so far', flush=True); 1 / 0").text == "so far\n"


def test_modules_are_those_that_are_named(confines):
    assert (
        run_python("import decimal; print(int(decimal.Decimal(3)))", modules=["decimal"]).value == 3
    )
    outcome = run_python("print(1)", modules=["no_such_module"])
    assert outcome.reason == "the module 'no_such_module' can't be imported"


def test_programs_can_run_side_by_side(confines):
    values = {}

    def one(number):
        values[number] = run_python(f"print({number})", timeout=20).value

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == {number: number for number in range(4)}


def left_running():
    """Started here, or confined by what was and has ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"_confinement.py" in command and parent in (1, os.getpid()):
            found.append(int(folder.name))
    return found


def test_an_interrupted_call_leaves_nothing(confines, monkeypatch, tmp_path):
    def interrupted(self, request, timeout):
        self.stdin.write(request)
        self.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            self.wait(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_python("while True: pass", timeout=60)
    assert not left_running()
    assert not list(tmp_path.iterdir())


def test_a_supervisor_that_fails_or_hangs_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(executor, "_GRACE", 0.2)
    for number, text in enumerate(["1 / 0", "print('no json')", "import time; time.sleep(99)"]):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        monkeypatch.setattr(_confinement, "__file__", str(path))
        assert run_python("print(1)", timeout=0.2)[:3] == (False, None, "its supervisor failed")


@pytest.mark.parametrize(
    ("uid", "allowed", "rights", "network", "reason"),
    [
        (1000, False, 0, "off if possible", "this system gives an ordinary user no namespaces"),
        (0, False, 0, "off if possible", "root may not end other users' processes"),
        (0, False, 1 << 5, "off", "this system gives it no network of its own"),
        (0, False, 1 << 5, "off if possible", ""),
    ],
)
def test_where_the_system_allows_too_little_it_is_not_run(
    monkeypatch, uid, allowed, rights, network, reason
):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(_confinement, "_unshare", lambda flags: allowed)
    monkeypatch.setattr(_confinement, "_capabilities", lambda: [rights] * 6)
    refusal = _confinement.Confinement().refusal(network)
    assert refusal.startswith(reason)
    assert bool(refusal) == bool(reason)


SCRIPT = """
from metajax.evolve.executor import run_python
tried = "import os\\nfor f, a in ((os.fork, ()), (os.mkdir, ('a',)), (os.kill, ({pid}, 9))):\\n"
tried += "    try: f(*a); print(1)\\n    except OSError: pass\\nprint(os.listdir('/'))"
outcome = run_python(tried, timeout=20)
print(outcome.value, outcome.reason, outcome.network_off)
"""


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
@pytest.mark.parametrize(
    ("rights", "network_off"),
    [
        (["--bounding-set=-sys_admin"], False),
        (
            # It may read, so that it reaches an interpreter in somebody else's folder.
            [
                "--reuid=12345",
                "--regid=12345",
                "--clear-groups",
                "--inh-caps=+dac_read_search",
                "--ambient-caps=+dac_read_search",
            ],
            True,
        ),
    ],
    ids=["root without namespaces", "an ordinary user"],
)
def test_it_is_confined_whoever_the_caller_is(confines, rights, network_off):
    if os.geteuid() != 0:
        pytest.skip("only root can become others")
    command = ["setpriv", *rights, sys.executable, "-c", SCRIPT.replace("{pid}", str(os.getpid()))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == f"[]  {network_off}\n" or "wasn't run" in ran.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timeout": 0}, "timeout must be a positive finite number, got 0.0"),
        ({"timeout": float("nan")}, "timeout must be a positive finite number, got nan"),
        ({"timeout": 1e9}, "timeout must be at most 86400, got 1000000000.0"),
        ({"memory": 1}, "memory must be at least 67108864, got 1"),
        ({"output": 0}, "output must be at least 1, got 0"),
        ({"output": 1 << 21}, "output must be at most 1048576, got 2097152"),
        ({"network": "on"}, "network must be one of 'off', 'off if possible', got 'on'"),
        ({"source": b"print(1)"}, "source must be a string, got bytes"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        run_python(**{"source": "print(1)", **changed})


def test_other_systems_are_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NotImplementedError, match="run_python needs Linux, got darwin"):
        run_python("print(1)")


def test_nothing_else_in_the_library_uses_it():
    library = Path(executor.__file__).parents[1]
    own = {"executor.py", "_confinement.py"}
    users = [
        path.name
        for path in library.rglob("*.py")
        if path.name not in own and ("executor" in path.read_text() or "exec(" in path.read_text())
    ]
    assert not users
