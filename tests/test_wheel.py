"""A wheel, installed alone in an empty environment, runs README's programs."""

import os
import pathlib
import subprocess
import sys

import pytest
from test_readme import README, programs

ROOT = pathlib.Path(__file__).parent.parent


def run(*command, cwd):
    # Nothing of this environment or of the source reaches the new one.
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_a_wheel_alone_runs_the_programs_of_readme(tmp_path):
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    run(sys.executable, *pip, "wheel", "--no-deps", "-w", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("metajax-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(
        python, *pip, "install", "--no-compile", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path
    )
    (tmp_path / "readme.py").write_text("\n".join(programs(README)), encoding="utf-8")
    printed = run(python, "readme.py", cwd=tmp_path)
    assert "±" in printed
    absent = ("experiments", "tests", "matplotlib", "tyro", "safetensors", "torch")
    look = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    assert run(python, "-c", look, cwd=tmp_path).strip() == "[]"
