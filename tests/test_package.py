"""The package: its version and its pins; and what `make package` built, in empty environments."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_readme import README, programs

import metajax

ROOT = pathlib.Path(__file__).parent.parent
DIST = os.environ.get("METAJAX_DIST")
"""The folder with wheel and sdist; `make package` sets it."""
PYTHONS = os.environ.get("METAJAX_PYTHONS", sys.executable).split()
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOOK = """
import importlib.resources, importlib.util, pickle, types
import metajax

for name in metajax.__all__:
    value = getattr(metajax, name)
    if not isinstance(value, types.ModuleType):
        assert pickle.loads(pickle.dumps(value)) is value, name
assert (importlib.resources.files("metajax") / "py.typed").is_file()
absent = "chex", "experiments", "matplotlib", "pytest", "safetensors", "tests", "torch", "tyro"
assert [name for name in absent if importlib.util.find_spec(name)] == []
"""


def run(*command, cwd, **more):
    # Nothing of this environment or of the source reaches the new one.
    ours = ("PYTHONPATH", "XLA_FLAGS", "JAX_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) or k == "JAX_PLATFORMS"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd, env=clean | more, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def built():
    """``built(pattern)``: the one file of that name which `make package` built."""
    if DIST is None:
        pytest.skip("`make package` builds what is tried here")

    def only(pattern):
        (file,) = (ROOT / DIST).glob(pattern)
        return file

    return only


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_it_alone_runs_the_programs_of_readme(built, tmp_path, python, pattern):
    run(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    alone = tmp_path / "venv" / "bin" / "python"
    run(alone, *PIP, "install", "-c", ROOT / "constraints.txt", built(pattern), cwd=tmp_path)
    (tmp_path / "readme.py").write_text("\n".join(programs(README)), encoding="utf-8")
    assert "±" in run(alone, "readme.py", cwd=tmp_path)
    (tmp_path / "look.py").write_text(LOOK, encoding="utf-8")
    run(alone, "look.py", cwd=tmp_path)
    version = run(alone.parent / "metajax", "--version", cwd=tmp_path).strip()
    assert built(pattern).name in (
        f"metajax-{version}-py3-none-any.whl",
        f"metajax-{version}.tar.gz",
    )


@pytest.mark.slow
def test_the_sdist_holds_what_git_knows_and_its_tests_run(built, tmp_path):
    sdist = built("*.tar.gz")
    run("tar", "xzf", sdist, cwd=tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    known = run("git", "ls-files", cwd=ROOT).splitlines()
    assert [name for name in known if not (unpacked / name).exists()] == []
    tests = [f"tests/test_{name}.py" for name in ("structure", "docs", "package", "keys")]
    command = (sys.executable, "-m", "pytest", "-m", "not slow", *tests)
    assert " passed" in run(*command, cwd=unpacked, PYTHONPATH=str(unpacked))


@pytest.mark.slow
def test_the_packages_page_is_readme_with_absolute_links(built, tmp_path):
    run(sys.executable, "-m", "zipfile", "-e", built("*.whl"), tmp_path, cwd=tmp_path)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    links = re.findall(r"\]\(([^)\s]+)\)", metadata.read_text(encoding="utf-8"))
    assert len(links) > 10
    source = PROJECT["project"]["urls"]["Source"]
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert f"{source}/blob/main/docs/performance.md" in links
    assert programs(metadata) == programs(README)


def test_a_folder_that_is_not_installed_has_no_version(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    spec = importlib.util.spec_from_file_location("not_installed", metajax.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == "0+unknown"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pins_are_what_the_project_admits(python):
    """Where they are not, `make` can't install."""
    where = {"python_version": python, "python_full_version": f"{python}.0"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    more = PROJECT["project"]["optional-dependencies"] | PROJECT["dependency-groups"]
    asked = [
        *PROJECT["project"]["dependencies"],
        *(line for lines in more.values() for line in lines),
    ]

    def valid(lines):
        found = [Requirement(line) for line in lines if isinstance(line, str) and line[0] != "#"]
        return [each for each in found if each.marker is None or each.marker.evaluate(where)]

    pins = {canonicalize_name(each.name): str(each.specifier)[2:] for each in valid(lines)}
    assert len(pins) == len(valid(lines)) > 50
    refused = [
        (str(each), pin)
        for each in valid(asked)
        if (pin := pins.get(canonicalize_name(each.name))) and not each.specifier.contains(pin)
    ]
    assert refused == []


def test_the_oldest_jax_is_the_pinned_one():
    """Continuous integration takes the pins on Python 3.11 for the oldest of what is admitted."""
    (jax,) = (Requirement(r) for r in PROJECT["project"]["dependencies"] if r.startswith("jax>"))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    oldest = min(s.version for s in jax.specifier if s.operator == ">=")
    assert any(line.startswith(f"jax=={oldest};") for line in lines)
