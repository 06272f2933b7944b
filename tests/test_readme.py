"""The programs of README and docs run as they are written."""

import json
import pathlib
import re

import jax
import numpy as np
import optax
import pytest
import toy

import metajax
from experiments.benchmarks import report

README = pathlib.Path(__file__).parent.parent / "README.md"
LANGUAGE_MODELS = README.parent / "docs" / "language-models.md"
SELF_EVOLUTION = README.parent / "docs" / "self-evolution.md"
ALGORITHMS = README.parent / "docs" / "algorithms.md"


def programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


PROGRAMS = programs(README)


def test_adaptation(capsys):
    exec(PROGRAMS[0], {})
    assert capsys.readouterr().out.count(".") == 5


@pytest.mark.slow
def test_own_data_and_own_modules(capsys):
    names = {}
    exec(PROGRAMS[1], names)
    assert names["scores"].mean["accuracy"] > 0.8
    assert "±" in capsys.readouterr().out
    exec(PROGRAMS[2], names)
    assert float(names["metrics"]["accuracy"][-100:].mean()) > 0.8


@pytest.mark.parametrize("program", PROGRAMS[1:])
def test_they_are_short(program):
    """From the module to the scores, without imports and data, in under 20 lines."""
    body = program[program.index("class ") :]
    assert len([line for line in body.splitlines() if line.strip()]) < 20


def test_the_benchmark_table_is_that_of_the_committed_result():
    result = README.parent / "docs" / "results" / "bench" / "meta_step.json"
    table = report.headline(json.loads(result.read_text(encoding="utf-8")))
    assert table in README.read_text(encoding="utf-8")


def test_the_new_learner_of_the_docs_is_whole_and_short():
    """From an empty file to the contract matrix in under 60 lines."""
    file, line = programs(ALGORITHMS)
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


@pytest.mark.slow
def test_the_programs_of_the_language_models_page(tmp_path, monkeypatch, capsys):
    """One after another in an empty folder, as the page says."""
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    for program in programs(LANGUAGE_MODELS):
        names = {}
        exec(program, names)
        if "losses" in names:
            assert (names["losses"][:, -1] < names["losses"][:, 0]).all()
    assert (names["beside"].tokens == names["merged"].tokens).all()
    assert capsys.readouterr().out


@pytest.mark.slow
def test_ones_own_model_proposer_and_verifier_in_under_forty_lines(capsys):
    (program,) = programs(SELF_EVOLUTION)
    body = program[program.index("problem =") :]
    assert len([line for line in body.splitlines() if line.strip()]) < 40
    names = {}
    exec(program, names)
    assert int(names["state"].round) == 2
    assert capsys.readouterr().out.startswith("1 ")


def test_the_docs_list_every_learner():
    table = ALGORITHMS.read_text(encoding="utf-8")
    factories = {
        name
        for name in metajax.learners.__all__
        if name in metajax.__all__ and name.islower() and name != "carry_statistics"
    }
    assert not {name for name in factories if f"| `{name}" not in table}
    assert len(factories) == 15
