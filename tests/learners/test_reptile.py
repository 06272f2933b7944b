"""Reptile's minibatches."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax


def test_minibatches_go_once_through_the_support_set_in_an_epoch():
    # The gradient of the sum over a batch of -p·x moves p by the batch's sum.
    learner = metajax.reptile(
        lambda p, batch: -p * jnp.sum(batch), optax.sgd(1.0), steps=3, batch_size=4
    )
    support = 2.0 ** jnp.arange(12)
    _, info = learner.adapt(jnp.array(0.0), support, observe=lambda p: p)
    sums = np.diff(info.observed).astype(int)
    assert sums.sum() == 2**12 - 1
    assert all(int(total).bit_count() == 4 for total in sums)


def test_a_batch_larger_than_the_support_set_is_named():
    learner = metajax.reptile(lambda p, b: p * b.sum(), optax.sgd(1.0), steps=1, batch_size=5)
    with pytest.raises(ValueError, match="batch_size=5 is more than the support set's 3 examples"):
        learner.adapt(jnp.array(0.0), jnp.ones(3))
