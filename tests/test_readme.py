"""The programs of README and docs run as they are written."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import optax
import pytest
import toy

import metajax
from experiments.benchmarks import report

README = pathlib.Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"
ALGORITHMS = DOCS / "algorithms.md"
HOWTO = DOCS / "howto"


def programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(programs)`` in an empty folder, one after another: their names, and what they print."""
    monkeypatch.chdir(tmp_path)

    def run(sources, *, together=True):
        names = {}
        for source in sources:
            names = names if together else {}
            exec(source, names)
        return names, capsys.readouterr().out

    return run


def test_adaptation(run):
    _, printed = run(programs(README)[:1])
    assert printed.count(".") == 5


@pytest.mark.ci
@pytest.mark.slow
def test_own_data_and_own_modules(run):
    names, printed = run(programs(README))
    assert names["scores"].mean["accuracy"] > 0.8
    assert "±" in printed
    assert float(names["metrics"]["accuracy"][-100:].mean()) > 0.8


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_the_benchmark_table_is_that_of_the_committed_result():
    result = DOCS / "results" / "bench" / "meta_step.json"
    table = report.headline(json.loads(result.read_text(encoding="utf-8")))
    assert table in README.read_text(encoding="utf-8")


def test_the_new_learner_of_the_docs_is_whole_and_short():
    """From an empty file to the contract matrix in under 60 lines."""
    file, line = programs(HOWTO / "learner.md")
    assert len((file + line).splitlines()) < 60
    learners = {}
    of_loss = lambda factory, *args: lambda loss_fn: factory(loss_fn, *args, steps=2)
    names = {"LEARNERS": learners, "of_loss": of_loss, "SGD": optax.sgd(0.1)}
    exec(file + line, names)
    learner = learners["coin_reptile"](metajax.losses.mean_squared_error(toy.predict))
    assert learner.keyed
    keys = jax.random.split(jax.random.key(0), 3)
    episodes = jax.vmap(toy.make_sampler())(keys)._replace(key=keys)
    params = learner.init(toy.init_params())
    gradients = [
        metajax.meta_gradient(learner, tasks_per_chunk=chunk)(params, episodes)[0]
        for chunk in (1, 3)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *gradients)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize("page", ["data", "model", "save", "export"])
def test_the_programs_of_the_how_to_pages(page, run):
    """One after another, in one namespace."""
    if page == "export":
        pytest.importorskip("flatbuffers")
    names, printed = run(programs(HOWTO / f"{page}.md"))
    assert printed
    if page == "save":
        assert int(names["state"].step) == 20


@pytest.mark.ci
@pytest.mark.slow
def test_the_programs_of_the_language_models_page(run):
    """One after another, each with imports of its own, as the page says."""
    pytest.importorskip("safetensors")
    names, printed = run(programs(DOCS / "language-models.md"), together=False)
    assert (names["beside"].tokens == names["merged"].tokens).all()
    assert printed


@pytest.mark.ci
@pytest.mark.slow
def test_ones_own_model_proposer_and_verifier_in_under_forty_lines(run):
    program, _ = programs(DOCS / "self-evolution.md")
    body = program[program.index("problem =") :]
    assert len([line for line in body.splitlines() if line.strip()]) < 40
    names, printed = run([program])
    assert int(names["state"].round) == 2
    assert printed.startswith("1 ")


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap isn't installed")
def test_a_checker_in_a_sandbox_of_others(run):
    _, program = programs(DOCS / "self-evolution.md")
    check = run([program])[0]["check"]
    body = "def add(a, b):\n    return a {} b"
    assert [check("", body.format(sign)) for sign in "+-"] == [1, 0]
    for answer in ("while True: pass", "import os; os._exit(0)", "text = 'a' * 2**31"):
        assert check("", answer) == 0


def test_the_docs_list_every_learner():
    table = ALGORITHMS.read_text(encoding="utf-8")
    factories = {
        name
        for name in metajax.learners.__all__
        if name in metajax.__all__ and name.islower() and name != "carry_statistics"
    }
    assert not {name for name in factories if f"| `{name}" not in table}
    assert len(factories) == 16
