"""README, docs and docstrings name what exists: links, targets, commands, and every public name."""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import warnings

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py"))
MODULES = (
    "metajax",
    "metajax.check",
    "metajax.data",
    "metajax.evolve",
    "metajax.learners",
    "metajax.lm",
    "metajax.losses",
    "metajax.models",
    "experiments.common",
)
RUN_FUNCTIONS = {
    *("create", "environment", "fit", "format_table", "guard"),
    *("open_run", "read_metrics", "write_report"),
}
"""What experiments are made of needs a run folder: their example is every experiment."""
UPDATES = {"grpo", "meta_step"}
"""Of a language model that evolves; the program of the docs shows ``fine_tune`` in their place."""


def text(file):
    return file.read_text(encoding="utf-8")


def code(page):
    """Every line of a code block, and every code span."""
    blocks = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(file):
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text(file)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path) if path else file
        if not target.exists() or (anchor and anchor not in anchors(text(target))):
            found.append(link)
    return found


def test_every_relative_link_leads_somewhere():
    assert {
        str(page.relative_to(ROOT)): links for page in PAGES if (links := broken_links(page))
    } == {}


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[x](#a-b-c) [y](#other) [z](none.md) [w](https://a.b/c)\n")
    assert broken_links(page) == ["#other", "none.md"]


def make_commands(lines):
    """The words after ``make``, without comments."""
    for line in lines:
        match = re.fullmatch(r"(?:\$ )?make( [^#]*)?(?:#.*)?", line)
        if match and match[1]:
            yield match[1].split()


def unknown_to_make(lines, makefile):
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    variables = set(re.findall(r"\$\((?:filter-out [^,]*,\$\()?([A-Z_]+)\)", makefile))
    for words in make_commands(lines):
        for word in words:
            name, assigned, _ = word.partition("=")
            if name not in (variables if assigned else targets):
                yield word


def test_every_make_command_is_one_of_the_makefile():
    lines = [line for page in PAGES for line in code(text(page))]
    assert len(list(make_commands(lines))) > 20
    assert sorted(unknown_to_make(lines, text(ROOT / "Makefile"))) == []
    wrong = ["$ make demo  # good", "make dmo", "make omniglot STPES=3"]
    assert [*unknown_to_make(wrong, text(ROOT / "Makefile"))] == ["dmo", "STPES=3"]


@functools.cache
def fields_of(module):
    """The options of a script: annotated fields of its classes, and of those that it imports."""
    file = ROOT / (module.replace(".", "/") + ".py")
    if not file.exists():
        return set()
    found = set()
    for node in ast.walk(ast.parse(text(file))):
        if isinstance(node, ast.ClassDef):
            found |= {
                each.target.id.replace("_", "-")
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                found |= fields_of(name)
        elif isinstance(node, ast.ImportFrom) and "runs" in {each.name for each in node.names}:
            found |= fields_of("experiments.common.config") | fields_of(
                "experiments.common.processes"
            )
    return found


def wrong_commands(lines):
    for line in lines:
        match = re.search(r"python -m (experiments[.\w]*)(.*)", line)
        if not match:
            continue
        module, rest = match[1].rstrip("."), match[2].partition("#")[0]
        if not (ROOT / (module.replace(".", "/") + ".py")).exists():
            yield module
            continue
        flags = re.findall(r"(?:^| )--([a-z][a-z0-9-]*)", rest)
        yield from (f"{module} --{flag}" for flag in flags if flag not in fields_of(module))


def test_every_command_names_a_script_and_options_that_it_has():
    lines = [line for page in PAGES for line in code(text(page))]
    lines += [line for script in SCRIPTS for line in text(script).splitlines()]
    lines += text(ROOT / "Makefile").replace("$(RUN) -m", "python -m").splitlines()
    lines = [line for line in lines if "-m experiments." in line and '"' not in line]
    assert len(lines) > 40
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == name]
        for each in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
            value = getattr(module, each)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(value, (name, each))
    return found


def test_every_public_name_has_a_docstring_of_its_own():
    without = []
    for value, (module, name) in public().items():
        own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        # A NamedTuple without one gets its signature.
        if not (own or "").strip() or own.startswith(f"{name}("):
            without.append(f"{module}.{name}")
    assert without == []


def test_every_public_function_has_an_example():
    """In its docstring, or in a program of README or docs, which other tests run."""
    programs = "\n".join(
        program
        for page in PAGES
        for program in re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)
    )
    without = {
        name
        for value, (_, name) in public().items()
        if inspect.isfunction(value)
        and ">>>" not in (value.__doc__ or "")
        and not re.search(rf"\b{name}\b", programs)
    }
    assert without == RUN_FUNCTIONS | UPDATES


def test_every_public_function_says_what_it_raises():
    """Where its own body checks arguments, or raises; methods of protocols have nothing to say."""
    silent = []
    for value, (module, name) in public().items():
        if not inspect.isfunction(value) or value.__name__ == "wrapper":
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(value))).body[0]
        raises = any(
            (isinstance(node, ast.Raise) and node.exc is not None)
            or (isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "_checks")
            for node in ast.walk(body)
        )
        if raises and not re.search("[Rr]aises|errors:", value.__doc__ or ""):
            silent.append(f"{module}.{name}")
    assert silent == []


@pytest.mark.parametrize("module", MODULES)
def test_all_names_in_all_exist(module):
    found = importlib.import_module(module)
    names = getattr(found, "__all__", [])
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if not hasattr(found, name)] == []
