"""A family of tasks small enough to check by hand: shifted linear regression."""

import jax
import jax.numpy as jnp

import metajax

FEATURES = 3


def init_params(dtype=jnp.float32):
    key = jax.random.key(7)
    body = jax.random.normal(key, (FEATURES, FEATURES)) + jnp.eye(FEATURES)
    return {"body": body.astype(dtype), "head": {"kernel": jnp.zeros((FEATURES, 1), dtype)}}


def predict(params, inputs):
    return jnp.tanh(inputs @ params["body"]) @ params["head"]["kernel"]


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((predict(params, inputs) - targets) ** 2), {"bias": jnp.mean(targets)}


def make_sampler(dtype=jnp.float32, examples=8):
    offset = jnp.linspace(-1.0, 1.0, FEATURES)[:, None]  # an array that the sampler closes over

    def sample(key):
        weight_key, *input_keys = jax.random.split(key, 3)
        weights = offset + 0.3 * jax.random.normal(weight_key, (FEATURES, 1))

        def batch(key):
            inputs = jax.random.normal(key, (examples, FEATURES))
            return metajax.Batch(inputs.astype(dtype), (inputs @ weights).astype(dtype))

        return metajax.Episode(*map(batch, input_keys))

    return sample
