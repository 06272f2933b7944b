"""The structure: which part may import which, and which names are the public API."""

import ast
import functools
import graphlib
import importlib
import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (
    *("types", "errors", "_extras", "_checks", "_marks", "masks", "keys", "trees", "files"),
    *("losses", "modes"),
    *("_inner_update", "adapt", "interop", "learners", "parallel", "_samplers", "_non_finite"),
    *("_task_means", "meta_gradient", "trainer", "evaluate", "export", "__main__"),
    *("models", "data", "lm", "evolve", "check"),
)
"""The parts of metajax: each may import those before it."""
STUDIES = ("fewshot", "language", "evolution", "bilevel", "benchmarks")
"""The folders of experiments; ``common`` is below them; benchmarks, and ``results`` above all, may
import others."""


def modules(folder):
    """Every module below a folder, by its dotted name."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), file


@functools.cache
def imports(file):
    """What a module imports from metajax and experiments: ``(module, name, at import time)``."""
    found, package = [], file.relative_to(ROOT).parent.parts
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parent, *filter(None, [node.module])))
            names = [(module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        else:
            continue
        found += [
            (module, name, node not in inside)
            for module, name in names
            if module.split(".")[0] in ("metajax", "experiments")
        ]
    return found


def as_module(module, name):
    """The module that ``from module import name`` takes something from."""
    inner = ROOT / module.replace(".", "/") / (name or "")
    if name and (inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()):
        return f"{module}.{name}"
    return module


def test_metajax_imports_no_experiment_and_its_parts_only_those_below():
    wrong = []
    for name, file in modules("metajax"):
        if name == "metajax":
            continue
        part = name.split(".")[1]
        for module, imported, _ in imports(file):
            target = as_module(module, imported).split(".")
            inside = target[0] == "metajax" and len(target) > 1
            if not inside or ORDER.index(target[1]) > ORDER.index(part):
                wrong.append((name, module, imported))
    assert wrong == []


def test_studies_import_no_other_study():
    wrong = []
    for name, file in modules("experiments"):
        study = name.split(".")[1] if "." in name else ""
        for module, imported, _ in imports(file):
            target = as_module(module, imported).split(".")
            if target[0] == "metajax" or len(target) < 2:
                continue
            if target[1] not in (study, "common") and study not in ("benchmarks", "results"):
                wrong.append((name, module, imported))
    assert wrong == []


def test_no_circle_of_imports():
    graph = {
        name: {as_module(module, imported) for module, imported, _ in imports(file)} - {name}
        for folder in ("metajax", "experiments")
        for name, file in modules(folder)
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def test_experiments_import_public_names_alone():
    wrong = [
        (name, module, imported)
        for name, file in modules("experiments")
        for module, imported, _ in imports(file)
        if module.startswith("metajax")
        and any(part.startswith("_") for part in f"{module}.{imported or ''}".split("."))
    ]
    assert wrong == []


def public_modules():
    return [
        (name, file)
        for name, file in modules("metajax")
        if not any(part.startswith("_") for part in name.split(".")) and file.name != "__init__.py"
    ]


@pytest.mark.parametrize(("name", "file"), public_modules(), ids=lambda value: str(value))
def test_a_name_without_underscore_is_public(name, file):
    """Its package, or metajax itself, lists it in ``__all__``; or the module has an own list."""
    package = importlib.import_module(name.rpartition(".")[0])
    module = importlib.import_module(name)
    listed = set(getattr(package, "__all__", [])) | set(getattr(module, "__all__", []))
    defined = {
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert sorted(defined - listed) == []


def test_a_wheel_brings_little():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert required == {
        *("jax", "flax", "optax", "numpy"),
        *("tensorflow-datasets", "importlib_resources", "pillow", "platformdirs"),
    }


def test_every_file_is_read_by_metajax_files():
    """It alone refuses pipes and devices, and has bounds."""
    forbidden = {"read_text", "read_bytes"}
    found = []
    for name, file in [*modules("metajax"), *modules("experiments")]:
        if name.startswith(("metajax.files", "experiments.benchmarks", "experiments.results")):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            match node.func:
                case ast.Name("open"):
                    found.append((name, "open"))
                case ast.Attribute(ast.Name("files"), _):
                    pass
                case ast.Attribute(_, attribute) if attribute in forbidden:
                    found.append((name, attribute))
                case ast.Attribute(_, "open") if ast.unparse(node).endswith(".open('rb')"):
                    found.append((name, "open"))
    assert found == []
