"""The metric-based Omniglot experiment: its statistics, and one tiny run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments import common
from experiments.fewshot import comparing
from experiments.fewshot.omniglot import metric as experiment
from metajax.data import ClassData


@pytest.fixture
def small(monkeypatch, small_data):
    monkeypatch.setattr(experiment, "omniglot", small_data)
    network = functools.partial(experiment.network_of, features=4)
    monkeypatch.setattr(experiment, "network_of", network)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prototypical", "matching", "relation", "r2d2"])
def test_a_test_image_s_prediction_does_not_depend_on_the_others(method, small):
    network = experiment.network_of(method, jax.random.key(0))
    learner = comparing.learner_of(method, network, n_way=3, train=False)
    images = jax.random.uniform(jax.random.key(1), (3, 28, 28, 1))
    query = jax.random.uniform(jax.random.key(2), (4, 28, 28, 1))
    targets = jnp.array([0, 1, 2, 0])
    support = metajax.Batch(images, targets[:3])

    def loss(chosen):
        batch = metajax.Batch(query[chosen], targets[chosen])
        adapted, _ = learner.adapt(learner.init(network.variables), support)
        return learner.loss(adapted, metajax.Episode(support, batch))[0]

    alone = [loss(jnp.array([i])) for i in range(4)]
    np.testing.assert_allclose(loss(jnp.arange(4)), np.mean(alone), rtol=1e-4)


@pytest.mark.slow
def test_a_tiny_run_and_a_resume(tmp_path, small, capsys):
    out = tmp_path / "run"
    arguments = ["--method", "r2d2", "--train-way", "6", "--steps", "2", "--test-episodes", "2"]
    experiment.main([*arguments, "--out", str(out)])
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert [row["task"] for row in result["rows"]] == ["5-way 1-shot", "20-way 1-shot"]
    assert "--train-way 6" in result["command"]
    lines = common.read_metrics(out / "metrics.jsonl")
    assert set(lines[-1]) >= {"loss", "accuracy", "validation_accuracy"}
    assert [row["transductive"] for row in result["rows"]] == [False, False]
    with pytest.raises(common.RunError, match="method was 'r2d2' and is now 'prototypical'"):
        experiment.main(["--out", str(out), "--resume", *arguments[2:]])


def test_lake_s_test_tasks_are_of_one_alphabet():
    """Images whose brightness tells the class."""
    names = tuple(f"{alphabet}/character{n:02d}" for alphabet in "ABC" for n in range(1, 5))
    images = np.repeat(20 * np.arange(12), 4)[:, None, None] * np.ones((1, 28, 28))
    data = ClassData(images.astype(np.uint8), np.full(12, 4), names)
    for number in range(6):
        sample = experiment.within_alphabets(data, 4, 1, 2)
        drawn = sample(jax.random.key(number)).support.inputs.mean(axis=(1, 2, 3)) * 255 / 20
        classes = np.asarray(drawn).round().astype(int)
        assert len(set(classes // 4)) == 1
        assert len(set(classes)) == 4


@pytest.mark.slow
def test_a_ridge_regression_has_nine_positions_features(small):
    network = experiment.network_of("r2d2", jax.random.key(0))
    features = network.embed(network.variables, jnp.zeros((2, 28, 28, 1)), train=False)
    assert features.shape == (2, 9 * 4)


@pytest.mark.slow
def test_both_of_relation_s_networks_keep_statistics(small):
    network = experiment.network_of("relation", jax.random.key(0))
    learner = comparing.learner_of("relation", network, n_way=2, train=True)
    images = jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    batch = metajax.Batch(images, jnp.array([0, 1, 0, 1]))
    adapted, _ = learner.adapt(network.variables, batch)
    _, metrics = learner.loss(adapted, metajax.Episode(batch, batch))
    changed = jax.tree.map(
        lambda new, old: bool((new != old).any()),
        metrics["batch_stats"],
        network.variables["batch_stats"],
    )
    assert all(jax.tree.leaves(changed))


def test_the_papers_rate_is_halved_every_2000_episodes():
    _, optimizer = experiment.optimizer_of(experiment.preset(protocol="paper"))

    def one(state, _):
        update, state = optimizer.update(1.0, state, 0.0)
        return state, -update

    rates = np.asarray(jax.lax.scan(one, optimizer.init(0.0), length=4001)[1])
    np.testing.assert_allclose(rates[[0, 1999]], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(rates[[2000, 3999]], 5e-4, rtol=1e-3)
    np.testing.assert_allclose(rates[4000], 2.5e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "steps", "ways"),
    [
        ({}, 2000, 60),
        ({"method": "r2d2"}, 3000, 20),
        ({"method": "matching", "k_shot": 5}, 1125, 20),
        ({"protocol": "paper", "k_shot": 5}, 20_000, 60),
    ],
)
def test_the_presets(options, steps, ways):
    config = experiment.preset(**options)
    assert (config.steps, config.train_way) == (steps, ways)
