"""The sinusoid experiment: the oracle's inputs, the pooled gradient, and one tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from experiments import common
from experiments.fewshot import sinusoid as experiment
from metajax.data import sinusoid_sampler


@pytest.mark.slow
def test_the_oracle_is_given_the_true_amplitude_and_phase():
    sample = sinusoid_sampler(k_shot=5, query=7)
    keys = jax.random.split(jax.random.key(0), 200)
    episodes = jax.vmap(experiment.with_parameters(sample))(keys)
    plain = jax.vmap(sample)(keys)
    for batch, before in ((episodes.support, plain.support), (episodes.query, plain.query)):
        x, amplitude, phase = np.moveaxis(np.asarray(batch.inputs), -1, 0)
        np.testing.assert_array_equal(x, before.inputs[..., 0])
        np.testing.assert_allclose(amplitude * np.sin(x - phase), before.targets[..., 0], atol=2e-4)
        assert amplitude.min() > 0.09
        assert amplitude.max() < 5.01
        assert phase.min() > -0.01
        assert phase.max() < np.pi + 0.01


def test_pooled_training_does_not_adapt():
    loss_fn = lambda params, batch: jnp.mean((params - batch) ** 2)
    learner = experiment.pooled(metajax.maml(loss_fn, optax.sgd(0.1), steps=1), loss_fn)
    episode = metajax.Episode(jnp.array([1.0, 2.0]), jnp.array([6.0]))
    gradient, metrics = learner.gradient(jnp.array(0.0), episode)
    assert float(gradient) == pytest.approx(-2 * 3.0)  # the mean of 1, 2 and 6 is 3
    assert float(metrics["loss"]) == pytest.approx((1 + 4 + 36) / 3)


@pytest.mark.slow
def test_a_tiny_run_and_a_resume(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--steps", "20", "--log-every", "10", "--test-episodes", "4", "--out", str(out)]
    experiment.main(arguments)
    printed = capsys.readouterr().out
    for name in ("training.png", "inner_steps.png", "fit.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert (out / name).stat().st_size < 100_000
    assert (out / "table.md").read_text() in printed
    first = json.loads((out / "result.json").read_text())
    assert [row["inner_steps"] for row in first["rows"]] == [0, 1, 5, 10] * 2 + [0]
    assert [line["step"] for line in common.read_metrics(out / "metrics.jsonl")] == [10, 20]

    experiment.main([*arguments, "--resume"])  # finished: only evaluates again
    again = json.loads((out / "result.json").read_text())
    assert again["rows"] == first["rows"]
