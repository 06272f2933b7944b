"""A multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from metajax import _checks


class MLP(nn.Module):
    """Fully connected layers with ReLU between, then a linear head.

    Attributes:
        features: widths of the hidden layers; MAML's sinusoid network has two of 40.
        n_outputs: width of the output.

    Its parameters are ``dense_0``, ``dense_1`` … and ``head``.

    Example:
        >>> import jax.numpy as jnp
        >>> MLP().init_with_output(jax.random.key(0), jnp.zeros((10, 1)))[0].shape
        (10, 1)

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.1.
    """

    features: Sequence[int] = (40, 40)
    n_outputs: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs ``[examples, n_outputs]`` of inputs ``[examples, ...]``, flattened."""
        for width in (*self.features, self.n_outputs):
            _checks.positive_int("features and n_outputs", width)
        x = inputs.reshape(inputs.shape[0], -1)
        for layer, width in enumerate(self.features):
            x = nn.relu(nn.Dense(width, name=f"dense_{layer}")(x))
        return nn.Dense(self.n_outputs, name="head")(x)
