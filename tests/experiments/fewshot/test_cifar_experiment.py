"""The CIFAR experiment: its networks and samplers, and one tiny run."""

import dataclasses
import json
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments import common
from experiments.fewshot.cifar import adaptation, comparison, config, pretraining, train
from metajax.data import from_arrays


@pytest.fixture
def small(monkeypatch):
    """Both data sets: 20 classes of 20 images, whose colour tells the class."""
    asked = []

    def load(name):
        def read(split):
            asked.append((name, split))
            rng, labels = np.random.default_rng(len(split)), np.arange(400) // 20
            images = rng.integers(0, 60, (400, 32, 32, 3)) + 9 * labels[:, None, None, None]
            return from_arrays(images.astype(np.uint8), labels)

        return read

    monkeypatch.setattr(config, "cifar_fs", load("cifar-fs"))
    monkeypatch.setattr(config, "fc100", load("fc100"))
    return asked


def tiny(out, *options):
    """A run of two steps on FC100; its result."""
    arguments = ["--data-set", "fc100", "--features", "4", "--steps", "2", "--test-episodes", "2"]
    train.main([*arguments, *options, "--out", str(out)])
    lines = common.read_metrics(out / "metrics.jsonl")
    assert set(lines[-1]) >= {"loss", "accuracy", "validation_accuracy"}
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "body"), [("metaoptnet", "conv4"), ("prototypical", "resnet12")]
)
def test_a_tiny_comparison(tmp_path, small, capsys, method, body):
    options = ["--method", method, "--train-way", "5", "--k-shot", "5", "--query", "3"]
    options += ["--body", body]
    result = tiny(tmp_path / "run", *options)
    table = (tmp_path / "run" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "on FC100, 5-shot" in table
    assert [split for name, split in small if name == "fc100"] == ["train", "validation", "test"]
    (row,) = result["rows"]
    assert (row["task"], row["query"], row["transductive"]) == ("5-way 5-shot", 15, False)
    network = {"conv4": "four convolutions", "resnet12": "ResNet-12"}[body]
    assert result["schedule"].startswith(f"{network}, 4 channels; ours: Muon")
    assert result["training"]["query per class"] == 3


@pytest.mark.slow
def test_a_tiny_adaptation(tmp_path, small):
    result = tiny(tmp_path / "run", "--method", "maml++", "--query", "2")
    assert [row["transductive"] for row in result["rows"]] == [True, False]
    assert {row["inner_steps"] for row in result["rows"]} == {5}
    assert result["title"] == "MAML++ on FC100, 1-shot"
    assert (tmp_path / "run" / "inner_steps.png").exists()


@pytest.mark.parametrize(
    ("method", "body"),
    [
        *(
            pytest.param(each, "conv4", marks=pytest.mark.slow)
            for each in get_args(config.Adapting)
        ),
        ("anil", "resnet12"),
    ],
)
def test_every_learner_by_gradients_fits_its_network(small, method, body):
    options = dataclasses.replace(config.preset(method, body), features=4)
    network = adaptation.network_of(options, jax.random.key(0))
    schedule = adaptation.schedule_of(options)
    episode = config.plain(config.load("cifar-fs")["test"], 5, 1, 3)(jax.random.key(1))
    for transductive in (True, False):
        learner = schedule.learner(network, 5, transductive=transductive)
        gradient = metajax.learners.task_gradient(learner)
        found, metrics = jax.eval_shape(gradient, learner.init(network.params), episode)
        shapes = jax.eval_shape(learner.init, network.params)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shapes)
        assert metrics["accuracy"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("body", ["conv4", "resnet12"])
def test_a_tiny_linear_probe(tmp_path, small, body):
    result = tiny(tmp_path / "run", "--method", "linear-probe", "--body", body)
    assert [row["task"] for row in result["rows"]] == ["5-way 1-shot"] * 2 + ["5-way 5-shot"] * 2
    assert result["training"]["classes"] == 20


def test_every_image_of_a_classifier_has_its_own_class(small):
    data = config.load("cifar-fs")["train"]
    query = pretraining.image_sampler(data, 64)(jax.random.key(0)).query
    brightness = np.asarray(query.inputs).mean(axis=(1, 2, 3)) * 255
    np.testing.assert_allclose(brightness, 29.5 + 9 * np.asarray(query.targets), atol=3)
    assert len(set(np.asarray(query.targets))) > 10


def test_a_support_image_decides_without_the_other_queries(small):
    """The row that isn't transductive: a query alone is predicted as among others."""
    options = dataclasses.replace(config.preset("proto-maml"), features=4)
    network = adaptation.network_of(options, jax.random.key(0))
    learner = adaptation.schedule_of(options).learner(network, 1, transductive=False)
    episode = config.plain(config.load("cifar-fs")["test"], 5, 1, 3)(jax.random.key(1))
    adapted, _ = jax.jit(learner.adapt)(network.params, episode.support)
    together = learner.predict(adapted, episode.support, episode.query.inputs)
    alone = learner.predict(adapted, episode.support, episode.query.inputs[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("body", "width"), [("conv4", 4 * 8), ("resnet12", 640 * 8 // 64)])
def test_the_networks_features(body, width):
    options = dataclasses.replace(config.preset(body=body), features=8)
    network = comparison.network_of(options, jax.random.key(0))
    images = jnp.zeros((2, 32, 32, 3))
    features = jax.eval_shape(
        lambda v, x: network.embed(v, x, train=False), network.variables, images
    )
    assert features.shape == (2, width)


def test_training_images_are_changed_and_test_images_are_not(small):
    data = config.load("cifar-fs")["train"]
    key = jax.random.key(3)
    plain, changed = (sample(data, 5, 1, 3)(key) for sample in (config.plain, config.augmented))
    same = np.isin(np.asarray(plain.query.inputs * 255).round().astype(np.uint8), data.examples)
    assert same.all()
    black = (np.asarray(changed.query.inputs) == 0).all(axis=-1).mean(axis=(1, 2))
    assert (black > 0.1).any(), "the border"
    assert metajax.Batch is type(changed.support)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_way": 4}, "train_way must be at least 5; got 4"),
        ({"query": 0}, "query must be above zero; got 0"),
        ({"method": "maml"}, "train_way must be 5 with maml, .*; got 20"),
        (
            {"method": "linear-probe", "query": 5},
            "train_way and query mean nothing .* got 20 and 5",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config.preset(), **options)
