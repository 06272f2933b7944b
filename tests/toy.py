"""A family of tasks small enough to check by hand: shifted linear regression."""

import jax
import jax.numpy as jnp

import metajax

FEATURES = 3
WAYS = 3


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


def embed(params, inputs):
    """For metric-based learners."""
    return jnp.tanh(inputs @ params["body"])


def dropout(key, values):
    return values * jax.random.bernoulli(key, 0.8, values.shape) / 0.8


@metajax.keyed
def predict_with_dropout(params, inputs, key):
    return dropout(key, embed(params, inputs)) @ params["head"]["kernel"]


@metajax.keyed
def embed_with_dropout(params, inputs, key):
    return dropout(key, embed(params, inputs))


def make_class_sampler(dtype=jnp.float32, shots=4):
    """Tasks of ``WAYS`` classes around centres of their own; the last feature is noise."""
    targets = jnp.repeat(jnp.arange(WAYS), shots)
    spread = jnp.array([0.3, 0.3, 6.0])

    def sample(key):
        centre_key, *input_keys = jax.random.split(key, 3)
        centres = 2 * jax.random.normal(centre_key, (WAYS, FEATURES)) * jnp.array([1, 1, 0])

        def batch(key):
            noise = spread * jax.random.normal(key, (len(targets), FEATURES))
            return metajax.Batch((centres[targets] + noise).astype(dtype), targets)

        return metajax.Episode(*map(batch, input_keys))

    return sample
