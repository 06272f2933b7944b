"""README, docs and docstrings name what exists: links, targets, commands, and every public name."""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = (
    "metajax",
    "metajax.check",
    "metajax.data",
    "metajax.evolve",
    "metajax.learners",
    "metajax.lm",
    "metajax.losses",
    "metajax.models",
    "metajax.parallel",
    "metajax.trees",
    "experiments.common",
)
WITHOUT_EXAMPLE = {
    # What experiments are made of needs a run folder: their example is every experiment.
    *("create", "environment", "fit", "format_table", "guard"),
    *("open_run", "read_metrics", "write_report"),
    # Updates of a language model; the program of the docs shows ``fine_tune`` in their place.
    *("meta_step", "grpo"),
}


def text(file):
    return file.read_text(encoding="utf-8")


def programs(page):
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def code(page):
    """Every line of a code block, and every code span."""
    blocks = re.findall(r"```[^`\n]*\n(.*?)```", page, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(file):
    prose = re.sub(r"```.*?```", "", text(file), flags=re.DOTALL)  # f[0](x) is no link
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = (file.parent / path) if path else file
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(text(target))):
            yield link


def test_every_relative_link_leads_somewhere(tmp_path):
    found = {
        str(page.relative_to(ROOT)): links for page in PAGES if (links := [*broken_links(page)])
    }
    assert found == {}
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[x](#a-b-c) [y](#other) [z](none.md) [w](https://a.b/c)\n")
    assert [*broken_links(page)] == ["#other", "none.md"]


def unknown_to_make(lines):
    makefile = text(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.M))
    variables = set(re.findall(r"\$\((?:filter-out [^,]*,\$\()?([A-Z_]+)\)", makefile))
    for line in lines:
        if match := re.fullmatch(r"(?:\$ )?make( [^#]*)?(?:#.*)?", line):
            for word in shlex.split(match[1] or ""):
                name, assigned, _ = word.partition("=")
                if name not in (variables if assigned else targets):
                    yield word


def test_every_make_command_is_one_of_the_makefile():
    lines = [line for page in PAGES for line in code(text(page))]
    assert sorted(unknown_to_make(lines)) == []
    wrong = ["$ make demo  # good", "make dmo", "make omniglot STPES='3 4'"]
    assert [*unknown_to_make(wrong)] == ["dmo", "STPES=3 4"]


def script(module):
    """The file that ``python -m module`` runs, or None."""
    path = ROOT / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__main__.py") if f.exists()), None)


@functools.cache
def options(file):
    """The options of a script: annotated fields of its classes, and of those that it imports."""
    found, files = set(), [file]
    for each in files:
        for node in ast.walk(ast.parse(text(each))):
            if isinstance(node, ast.ClassDef):
                fields = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
                found |= {target.id.replace("_", "-") for target in fields}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
                for name in (node.module, *(f"{node.module}.{n.name}" for n in node.names)):
                    path = ROOT / name.replace(".", "/")
                    for part in (path.with_suffix(".py"), path / "__init__.py"):
                        if part.exists() and part not in files:
                            files.append(part)
    return found


def wrong_commands(lines):
    for line in lines:
        if match := re.search(r"(?<!')python -m (experiments[.\w]*)(.*)", line):
            module, rest = match[1].rstrip("."), match[2].partition("#")[0]
            if (file := script(module)) is None:
                yield module
                continue
            flags = re.findall(r"(?:^| )--([a-z][a-z0-9-]*)", rest)
            yield from (
                f"{module} --{flag}" for flag in flags if flag not in {"help", *options(file)}
            )


def test_every_command_names_a_script_and_options_that_it_has():
    """Those in docs/results are of the commits that they were run at, but for its README."""
    results = ROOT / "docs" / "results"
    now = [page for page in PAGES if results not in page.parents or page.name == "README.md"]
    lines = [line for page in now for line in code(text(page))]
    lines += [
        line
        for file in (ROOT / "experiments").rglob("*.py")
        for line in text(file).splitlines()
        if '"' not in line
    ]
    lines += text(ROOT / "Makefile").replace("$(RUN) -m", "python -m").splitlines()
    assert sorted(wrong_commands(lines)) == []
    wrong = [
        "python -m experiments.fewshot.demo --steps 3 --sede 1",
        "$ python -m experiments.other",
    ]
    assert [*wrong_commands(wrong)] == ["experiments.fewshot.demo --sede", "experiments.other"]


@functools.cache
def public():
    """Every public class and function, once, with its module."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for each in module.__all__:
            value = getattr(module, each)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(value, (name, each))
    return found


def test_every_public_name_has_a_docstring():
    without = []
    for value, (module, name) in public().items():
        written = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        # A NamedTuple without one gets its signature.
        if not (written or "").strip() or written.startswith(f"{name}("):
            without.append(f"{module}.{name}")
    assert without == []


def test_every_public_function_has_an_example():
    """In its docstring, or in a program of README or docs, which other tests run."""
    shown = "\n".join(program for page in PAGES for program in programs(page))
    without = {
        name
        for value, (_, name) in public().items()
        if inspect.isfunction(value)
        and ">>>" not in (value.__doc__ or "")
        and not re.search(rf"\b{name}\b", shown)
    }
    assert without <= WITHOUT_EXAMPLE


def test_the_reference_has_every_public_name_once():
    """Under its name in ``metajax`` where it has one, else in the module that is closest."""
    listed = [
        name
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", text(page), re.M)
    ]
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(*divided(name))] == []
    have = {id(getattr(*divided(name))) for name in listed}
    modules = [importlib.import_module(name) for name in (*MODULES, "metajax.lm.lora")]
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        if module.__name__.startswith("metajax")
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name)) and id(getattr(module, name)) not in have
    ]
    assert missing == []


def divided(name):
    module, _, attribute = name.rpartition(".")
    return importlib.import_module(module), attribute


@pytest.mark.parametrize("module", MODULES)
def test_all_names_in_all_exist_and_stand_once(module):
    found = importlib.import_module(module)
    assert sorted(set(found.__all__)) == sorted(found.__all__)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []
