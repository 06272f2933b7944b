"""Parameters for tests of language models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metajax.models import Transformer


@functools.cache
def params_of(config):
    """Random parameters, without compiling an initialisation."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)
