"""Texts that mean harm, or that are merely broken; for ``test_hostile``."""

LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"

# Each prints True if what it tries has worked, False or nothing if not. {file} is a file of the
# caller's, {folder} one that anybody may write to, {port} where the caller listens, {pid} its own.
ATTEMPTS = {
    # What others know.
    "environment": "import os; print({secret!r} in str(dict(os.environ)))",
    "environment of the interpreter": LIBC
    + "libc.getenv.restype = ctypes.c_char_p; print(libc.getenv(b'SECRET') is not None)",
    "environment of the caller": "print(bool(open('/proc/{pid}/environ').read()))",
    "environment of itself": "print(bool(open('/proc/self/environ').read()))",
    "command lines": "import os; print(any(p.isdigit() for p in os.listdir('/proc')))",
    "memory of the caller": "print(bool(open('/proc/{pid}/mem', 'rb')))",
    "trace the caller": LIBC + "print(libc.ptrace(16, {pid}, 0, 0) == 0)",
    # Files.
    "read a file": "print({secret!r} in open({file!r}).read())",
    "read passwords": "print(bool(open('/etc/passwd').read()))",
    "list the root": "import os; print(bool(os.listdir('/')))",
    "climb out of the folder": "import os; print(bool(os.listdir('/' + '../' * 20)))",
    "change root twice": "import os; os.mkdir('a'); os.chroot('a')\n"
    "os.chdir('../' * 20); print(True)",
    "open by number": "import os\n"
    "for i in range(3, 99):\n    try: os.fstat(i); print(True)\n    except OSError: pass",
    "write a file": "open({file!r}, 'w').write('changed'); print(True)",
    "remove a file": "import os; os.remove({file!r}); print(True)",
    "make a file": "open({folder!r} + '/new', 'w').close(); print(True)",
    "make a file here": "open('new', 'w').close(); print(True)",
    "make a folder here": "import os; os.mkdir('new'); print(True)",
    "link to a file": "import os; os.symlink({file!r}, 'link'); print(open('link').read())",
    "rename a file": "import os; os.rename({file!r}, {file!r} + '2'); print(True)",
    "make it writable": "import os; os.chmod('/', 0o777); open('/new', 'w'); print(True)",
    "mount": LIBC + "print(libc.mount(b'proc', b'/', b'proc', 0, None) == 0)",
    "a module from a file": "import sys; sys.path[:] = ['/usr/lib/python3.11']\n"
    "import sqlite3; print(True)",
    # Processes.
    "fork": "import os; print(os.fork() >= 0)",
    "fork without end": "import os\nwhile True:\n    os.fork()",
    "fork, however often refused": "import os\nwhile True:\n    try:\n        os.fork()\n"
    "    except OSError:\n        pass",
    "clone": LIBC + "print(libc.syscall(57) >= 0)",
    "a thread": "import _thread; _thread.start_new_thread(print, (1,)); print(True)",
    "subprocess": "import subprocess; print(subprocess.run(['/bin/true']).returncode == 0)",
    "system": "import os; print(os.system('true') == 0)",
    "spawn": "import os; print(os.posix_spawn('/bin/true', ['true'], {{}}) > 0)",
    "become another program": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo True'])",
    "a child that outlives": "import os\nif os.fork() == 0:\n    os.setsid()\n"
    "    import time\n    time.sleep(99)\nprint(True)",
    "a session of its own": "import os; os.setsid(); print(True)",
    "signal the caller": "import os; os.kill({pid}, 9); print(True)",
    "signal the parent": "import os; os.kill(os.getppid() or {pid}, 9); print(True)",
    "more processes by a limit": "import resource as r\n"
    "r.setrlimit(r.RLIMIT_NPROC, (99, 99)); print(True)",
    "more memory by a limit": "import resource as r\n"
    "r.setrlimit(r.RLIMIT_AS, (-1, -1)); print(True)",
    # Rights.
    "root again": "import os; os.setuid(0); open('/new', 'w'); print(True)",
    "all rights again": LIBC + "h = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
    "print(libc.capset(h, (ctypes.c_uint32 * 6)(*[255] * 6)) == 0)",
    "a namespace with rights": LIBC + "print(libc.unshare(0x10000000) == 0)",
    "shared memory": LIBC + "print(libc.shmget(0, 1 << 30, 0o1600) >= 0)",
    # Network.
    "connect": "import socket; socket.socket().connect(('127.0.0.1', {port})); print(True)",
    "connect by the kernel": LIBC + "s = libc.socket(2, 1, 0)\n"
    "a = (2).to_bytes(2, 'little') + ({port}).to_bytes(2, 'big') + bytes([127, 0, 0, 1])\n"
    "a += bytes(8)\n"
    "print(libc.connect(s, a, 16) == 0)",
    "send": "import socket as s\ns.socket(2, 2).sendto(b'1', ('127.0.0.1', {port})); print(True)",
    "send by a file": "import socket as s\n"
    "s.socket(1, 2).connect('/run/systemd/notify'); print(True)",
    "hear the network": "import socket; print(bool(socket.if_nameindex()[1]))",
    # Walks over attributes, to what files and imports would give.
    "walk to a loader": "c = ().__class__.__mro__[1].__subclasses__()\n"
    "loader = [x for x in c if x.__name__ == 'FileLoader'][0]('a', {file!r})\n"
    "print(bool(loader.get_data({file!r})))",
    "walk to popen": "c = ().__class__.__base__.__subclasses__()\n"
    "own = [x for x in c if 'wrap_close' in x.__name__][0].__init__.__globals__\n"
    "print(bool(own['popen']('id').read()))",
    "walk up the frames": "import sys; f = sys._getframe()\nwhile f.f_back: f = f.f_back\n"
    "print({secret!r} in str(f.f_globals))",
    "builtins again": "print(__builtins__['__import__']('os').fork() >= 0)",
}


def _recurse(body):
    return f"import sys; sys.setrecursionlimit(10**9)\ndef f(x): {body}\nf(0)"


# Each ends as a failure, with nothing to read.
FAILURES = {
    "a loop": "while True: pass",
    "a loop that catches": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "sleep": "import time; time.sleep(99)",
    "sleep with closed output": "import os, time; os.close(1); os.close(2); time.sleep(99)",
    "wait for input": "import signal; signal.pause()",
    "ignore signals": "import signal\nfor s in range(1, 65):\n"
    "    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "stop itself": "import os, time; os.kill(os.getpid(), 19); time.sleep(99)",
    "end itself": "import os; os.abort()",
    "a crash": "import ctypes; ctypes.string_at(0)",
    "much memory": "x = bytearray(1 << 40)",
    "more and more memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "memory by a shared map": "import ctypes; x = [bytearray(1 << 24) for _ in range(99)]",
    "memory by doubling": "x = [0]\nwhile True: x += x",
    "memory of a file": "import os; f = os.memfd_create('x')\n"
    "while True: os.write(f, bytes(1 << 20))",
    "a huge power": "print(9 ** 9 ** 9)",
    "a huge number": "print(10 ** 5000)",
    "a long text": "print('a' * 10**6)",
    "text without end": "while True: print('a' * 1000)",
    "text by the kernel": "import os\nwhile True: os.write(1, b'1' * 65536)",
    "text in the wrong encoding": "import os; os.write(1, b'\\xff\\xfe')",
    "deep recursion": "def f(): return f()\nf()",
    "recursion without limit": _recurse("return f(x + 1)"),
    "recursion in C": _recurse("return [x].__init__(map(f, [x]))"),
    "a deep list": "print('[' * 150 + ']' * 150)\nprint('(' * 9000)",
    "a deeper list": "print('[' * 9000 + ']' * 9000)",
    "many signs": "print('-' * 60000 + '1')",
    "a long sum": "print('1' + '+1' * 30000)",
    "many attributes": "print('a' + '.a' * 20000)",
    "a call": "print('__import__(\"os\").getpid()')",
    "an object": "print(object())",
    "a lambda": "print('lambda: 0')",
    "no number": "print(float('nan'))",
    "infinity": "print('1e999')",
    "infinity in a dict": "print('{1: [-1e999]}')",
    "infinity and i": "print('1+1e999j')",
    "two literals": "print(1); print(2)",
    "nothing": "pass",
    "an end before the end": "import os; print(1); os._exit(3)",
    "an error after its answer": "print(1); raise SystemExit(1)",
    "an error that is its own": "class E(BaseException):\n"
    "    def __str__(self): raise self\nraise E",
    "text that isn't unicode": "'\udcff'",
    "a null": "print(1)\0",
    "no syntax": "print(",
    "deep syntax": "x = " + "(" * 5000 + ")" * 5000,
    "deeper syntax": "x = " + "-" * 100_000 + "1",
    "a spoiled output": "import sys; sys.stdout.flush = 3; sys.stdout = None; print(1)",
    "another alphabet": "ｐｒｉｎｔ(ｏｐｅｎ('/etc/passwd').read())",
    "look-alike digits": "print('１２'[0])\nprint('٣')",
    "right to left": "print('\\u202e1\\u202c')",
}

TEXTS = [
    "__import__('os').system('true')",
    "().__class__.__mro__[1].__subclasses__()",
    "reverse; import os",
    "reverse | eval",
    "reverse | exec 1",
    "reverse | add __import__",
    "reverse | add 10",
    "reverse | add -1",
    "reverse | add 1e999",
    "reverse | add nan",
    "reverse | repeat 999999999",
    "ｒｅｖｅｒｓｅ",
    "reverse\u200b",
    "re\u0301verse",
    "\u202esum",
    "reverse\0",
    "sort|sort",
    "| " * 100_000,
    "reverse | " * 100_000 + "sum",
    "(" * 100_000,
    "add " + "9" * 100_000,
    "add ٣",
    "{0.__class__}",
    "%s%s%n",
    "../../etc/passwd",
    "<eos>",
    "<bos> <pad>",
    "",
]
