"""The CIFAR experiment: its networks and samplers, and one tiny run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments import common
from experiments.fewshot.cifar import comparison as experiment
from experiments.fewshot.cifar.published import PUBLISHED
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

    monkeypatch.setattr(experiment, "cifar_fs", load("cifar-fs"))
    monkeypatch.setattr(experiment, "fc100", load("fc100"))
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prototypical", "metaoptnet"])
def test_a_tiny_run(tmp_path, small, capsys, method):
    out = tmp_path / "run"
    arguments = ["--method", method, "--train-way", "5", "--steps", "2", "--test-episodes", "2"]
    arguments += ["--data-set", "fc100", "--features", "4", "--k-shot", "5", "--query", "3"]
    experiment.main([*arguments, "--out", str(out)])
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "on FC100, 5-shot" in table
    assert [split for name, split in small if name == "fc100"] == ["train", "validation", "test"]
    result = json.loads((out / "result.json").read_text())
    (row,) = result["rows"]
    assert (row["task"], row["query"], row["transductive"]) == ("5-way 5-shot", 15, False)
    assert result["schedule"].startswith("four convolutions, 4 channels; ours: Muon")
    assert result["training"]["query per class"] == 3
    lines = common.read_metrics(out / "metrics.jsonl")
    assert set(lines[-1]) >= {"loss", "accuracy", "validation_accuracy"}


@pytest.mark.parametrize(("body", "width"), [("conv4", 4 * 8), ("resnet12", 640 * 8 // 64)])
def test_the_networks_features(body, width):
    config = experiment.preset(body=body)
    network = experiment.network_of(dataclasses.replace(config, features=8), jax.random.key(0))
    images = jnp.zeros((2, 32, 32, 3))
    features = jax.eval_shape(
        lambda v, x: network.embed(v, x, train=False), network.variables, images
    )
    assert features.shape == (2, width)


def test_training_images_are_changed_and_test_images_are_not(small):
    data = experiment.load("cifar-fs")["train"]
    key = jax.random.key(3)
    plain, changed = (
        sample(data, 5, 1, 3)(key) for sample in (experiment.test_sampler, experiment.augmented)
    )
    same = np.isin(np.asarray(plain.query.inputs * 255).round().astype(np.uint8), data.examples)
    assert same.all()
    black = (np.asarray(changed.query.inputs) == 0).all(axis=-1).mean(axis=(1, 2))
    assert (black > 0.1).any(), "the border"
    assert metajax.Batch is type(changed.support)


def test_published_figures_are_of_known_methods():
    for data_set, body, method in PUBLISHED:
        config = experiment.preset(method=method, body=body)
        assert dataclasses.replace(config, data_set=data_set).train_way == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_way": 4}, "train_way must be at least 5; got 4"),
        ({"query": 0}, "query must be above zero; got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment.preset(), **options)
