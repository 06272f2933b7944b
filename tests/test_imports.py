"""``import metajax`` stays light: it brings jax and optax, and nothing that these don't."""

import subprocess
import sys


def test_it_brings_jax_and_optax_alone():
    program = (
        "import sys, jax, optax\n"
        "before = set(sys.modules)\n"
        "import metajax\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert "metajax" in done.stdout.split()
    assert set(done.stdout.split()) <= {"metajax", "jax", "jaxlib", "optax"}
