"""Running statistics carried by the trainer: trained with the batch's, tested with the averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax
from metajax import losses
from metajax._samplers import episode_keys
from metajax.data import ClassData, episode_sampler
from metajax.models import Conv4


@pytest.mark.ci
@pytest.mark.slow
def test_statistics_are_carried_in_the_state_and_read_at_test():
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, size=(12, 1, 16, 16))
    images = np.clip(prototypes + rng.integers(-20, 20, size=(12, 6, 16, 16)), 0, 255)
    data = ClassData(images.reshape(-1, 16, 16).astype(np.uint8), np.full(12, 6))
    sample = episode_sampler(data, n_way=3, k_shot=1, query=3)
    module = Conv4(3, features=8, norm="running")
    params, apply = metajax.from_linen(module, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    trained = lambda path: path.startswith("params/")

    def outer_loss(params, episode):
        logits, changed = apply(params, episode.query.inputs, mutable=["batch_stats"])
        loss, metrics = losses.classification_outcome(logits, episode.query.targets)
        return loss, metrics | changed

    def carry(params, metrics):
        return {**params, "batch_stats": metrics.pop("batch_stats")}, metrics

    learner = metajax.maml(
        losses.cross_entropy(apply),
        optax.sgd(0.3),
        steps=1,
        trainable=trained,
        outer_loss=outer_loss,
    )
    trainer = metajax.meta_trainer(learner, optax.adam(2e-3), sample, meta_batch=4, carry=carry)
    state, metrics = trainer.step(trainer.init(params, jax.random.key(1)))
    assert set(metrics) == {"loss", "accuracy", "grad_norm"}
    means = []
    sample, adapt = jax.jit(sample), jax.jit(learner.adapt)
    for key in episode_keys(jax.random.key(1), 0, 4):
        episode = sample(key)
        adapted, _ = adapt(params, episode.support)
        layer = adapted["params"]["conv_0"]
        activations = jax.lax.conv_general_dilated(
            episode.query.inputs,
            layer["kernel"],
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        means.append((activations + layer["bias"]).mean((0, 1, 2)))
    # From zero with momentum 0.9: a tenth of the mean over the tasks.
    np.testing.assert_allclose(
        state.params["batch_stats"]["norm_0"]["mean"], 0.1 * sum(means) / 4, rtol=1e-3, atol=1e-5
    )

    # At test an image's prediction doesn't depend on the images beside it.
    images = sample(jax.random.key(5)).query.inputs
    apply = jax.jit(apply, static_argnames="train")
    together, alone = (apply(state.params, part, train=False)[0] for part in (images, images[:1]))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(apply(state.params, images)[0], apply(state.params, images[:1])[0])
