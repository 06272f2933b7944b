"""Learned weights of examples: the gradient, and that wrong labels lose weight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from experiments.bilevel import data_weighting as experiment
from metajax.models import MLP


@pytest.mark.slow
def test_the_gradient_of_a_weight_against_finite_differences(x64):
    config = experiment.Config(train=12, validation=8, test=4)
    data = experiment.make_data(config)
    start, apply = metajax.from_linen(MLP((4,), 2), jax.random.key(0), data.train.inputs)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), start)
    learner = experiment.weighting_learner(apply, start, inner_rate=0.5, steps=5)
    episode = metajax.Episode(data.train, data.validation)

    def outer(logits):
        return learner.loss(learner.adapt(logits, episode.support)[0], episode)[0]

    logits = jnp.linspace(-1.0, 1.0, 12)
    direction = jnp.cos(jnp.arange(12.0))
    step = 1e-6
    numeric = (outer(logits + step * direction) - outer(logits - step * direction)) / (2 * step)
    np.testing.assert_allclose(jax.grad(outer)(logits) @ direction, numeric, rtol=1e-5)


@pytest.mark.slow
def test_wrong_labels_lose_weight(tmp_path):
    out = tmp_path / "run"
    experiment.main(
        ["--steps", "60", "--train", "100", "--inner-steps", "15", "--test", "500",
         "--out", str(out)]
    )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    alike, learned, oracle = (row["mean"] for row in result["rows"])
    assert float(result["training"]["area under the curve"]) > 0.65
    assert learned > alike
    assert oracle > 80


def test_the_area_under_the_curve():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    # Of the pairs (0.4, 0.1), (0.4, 0.4), (0.9, 0.1), (0.9, 0.4) three are above, one equal.
    assert experiment.area_under_curve(scores, positive) == 3.5 / 4
