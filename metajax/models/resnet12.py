"""ResNet-12, the larger network of few-shot image classification."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from metajax import _checks
from metajax.models.conv import Algorithm, Conv
from metajax.models.normalization import Norm, Normalization
from metajax.models.pooling import max_pool

_SLOPE = 0.1
"""Slope of the leaky ReLU below zero."""


class ResNet12(nn.Module):
    """Four residual blocks of three convolutions, each halved by max-pooling, then a linear head.

    Attributes:
        n_classes: number of logits; None for the features themselves, without a head.
        features: channels of the four blocks; another common choice is 64, 128, 256, 512.
        norm: where the normalisation takes its statistics from; see ``Normalization``.
        pool: whether the features are the means over positions; if not, they are all of them.
        convolution: how the convolutions are computed; see ``Conv``'s ``algorithm``.

    The names of its parameters begin with ``block_0`` to ``block_3``, and the head is ``head``.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.zeros((2, 84, 84, 3))
        >>> variables = jax.eval_shape(ResNet12(n_classes=5).init, jax.random.key(0), images)
        >>> sorted(variables["params"])
        ['block_0', 'block_1', 'block_2', 'block_3', 'head']

    Source: the form of Lee et al. 2019 (arXiv 1904.03758), section 4.1, without DropBlock.
    """

    n_classes: int | None
    features: Sequence[int] = (64, 160, 320, 640)
    norm: Norm = "batch"
    pool: bool = True
    convolution: Algorithm = "auto"

    masked = True

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        reference: int | None = None,
        train: bool = True,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Logits ``[examples, n_classes]``, or features ``[examples, d]`` without a head.

        Args:
            inputs: images ``[examples, height, width, channels]``.
            reference: how many of the first examples give the statistics (``norm="support"``).
            train: whether ``norm="running"`` takes the batch's statistics.
            mask: ``[examples]``, False for padding, which the batch's statistics leave out.
        """
        x = inputs
        for block, width in enumerate(self.features):
            x = _Block(width, self.norm, self.convolution, name=f"block_{block}")(
                x, reference=reference, train=train, mask=mask
            )
        x = x.mean(axis=(1, 2)) if self.pool else x.reshape(x.shape[0], -1)
        if self.n_classes is None:
            return x
        _checks.positive_int("n_classes", self.n_classes)
        return nn.Dense(self.n_classes, name="head")(x)


class _Block(nn.Module):
    features: int
    norm: Norm
    convolution: Algorithm

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, reference: int | None, train: bool, mask: jax.Array | None
    ) -> jax.Array:
        def convolved(x, name, size):
            x = Conv(
                self.features,
                kernel_size=(size, size),
                use_bias=False,
                algorithm=self.convolution if size == 3 and x.shape[-1] > 3 else "auto",
                kernel_init=nn.initializers.he_normal(),
                name=f"conv_{name}",
            )(x)
            normalise = Normalization(self.norm, epsilon=1e-5, name=f"norm_{name}")
            return normalise(x, reference=reference, train=train, mask=mask)

        x = inputs
        for layer in range(3):
            x = convolved(x, layer, 3)
            if layer < 2:
                x = nn.leaky_relu(x, _SLOPE)
        x = nn.leaky_relu(x + convolved(inputs, "shortcut", 1), _SLOPE)
        return max_pool(x)
