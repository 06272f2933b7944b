"""The pictures are PNG files, small, and show what they should."""

import numpy as np
import pytest
from PIL import Image

from experiments.common import plots


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "picture.png"
    yield path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 100_000


def pixels_of(path, colour):
    image = np.asarray(Image.open(path).convert("RGB"))
    return int((np.abs(image.astype(int) - colour).max(axis=-1) < 10).sum())


RED, GREEN, BLUE = (214, 39, 40), (44, 160, 44), (31, 119, 180)


def test_training_curve(png):
    records = [{"step": 10 * i, "accuracy": i / 10, "loss": 1 / i} for i in range(1, 9)]
    plots.training_curve(png, records)
    without = pixels_of(png, (255, 127, 14))
    records[-1]["validation_accuracy"] = 0.7
    records[3]["validation_accuracy"] = 0.3
    plots.training_curve(png, records)
    assert pixels_of(png, (255, 127, 14)) > without


def test_training_curve_of_a_loss(png):
    plots.training_curve(png, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}], metric="loss")


def test_inner_steps(png):
    curve = plots.Curve("ours", np.linspace(20, 98, 11), np.full(11, 1.0))
    plots.inner_steps(png, [curve], ylabel="accuracy in %")
    assert pixels_of(png, BLUE) > 100


def test_inner_steps_on_a_logarithmic_axis(png):
    # an interval that reaches below zero
    curve = plots.Curve("ours", np.geomspace(3, 0.1, 11), np.full(11, 0.5))
    plots.inner_steps(png, [curve], ylabel="error", log=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_episode_grid_marks_right_and_wrong(png, channels):
    images = np.random.default_rng(0).random((6, 28, 28, channels)) > 0.9
    labels = np.array([0, 0, 1, 1, 2, 2])
    arguments = (png, (images[:3], np.arange(3)), (images, labels))
    plots.episode_grid(*arguments, labels)
    assert pixels_of(png, GREEN) > 500
    assert pixels_of(png, RED) < 10
    plots.episode_grid(*arguments, np.array([0, 0, 1, 1, 2, 0]))
    assert pixels_of(png, RED) > 50


@pytest.mark.slow
def test_episode_grid_of_many(png):
    images = np.zeros((100, 28, 28, 1))
    labels = np.repeat(np.arange(20), 5)
    plots.episode_grid(png, (images, labels), (images, labels), labels)


def test_regression_fit(png):
    x = np.linspace(-5, 5, 50)
    plots.regression_fit(
        png,
        inputs=x,
        truth=np.sin(x),
        support=(x[::10], np.sin(x[::10])),
        fits={"ours": [("before", 0 * x), ("after", 0.9 * np.sin(x))], "theirs": [("a", x)]},
    )
    assert pixels_of(png, RED) > 50
