"""Losses."""

import jax.numpy as jnp

from metajax import losses


def test_labels_beyond_the_classes_are_never_right():
    """The value of a label isn't known when a program is built; what comes of it is defined."""
    _, metrics = losses.classification_outcome(jnp.zeros((2, 3)), jnp.array([7, -9]))
    assert float(metrics["accuracy"]) == 0
