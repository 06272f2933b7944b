"""ResNet-12, the larger network of few-shot image classification."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

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
        drop: share of what blocks give that is set to zero, in [0, 1), where a key is given: single
            numbers of the first two blocks, squares of positions of the last two (DropBlock).
        drop_size: side of such a square; it is cut to the block's own size.

    The names of its parameters begin with ``block_0`` to ``block_3``, and the head is ``head``.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.zeros((2, 84, 84, 3))
        >>> variables = jax.eval_shape(ResNet12(n_classes=5).init, jax.random.key(0), images)
        >>> sorted(variables["params"])
        ['block_0', 'block_1', 'block_2', 'block_3', 'head']

    Source: the form of Lee et al. 2019 (arXiv 1904.03758), section 4.1; DropBlock of Ghiasi et al.
    2018 (arXiv 1810.12890), algorithm 1.
    """

    n_classes: int | None
    features: Sequence[int] = (64, 160, 320, 640)
    norm: Norm = "batch"
    pool: bool = True
    convolution: Algorithm = "auto"
    drop: float = 0.0
    drop_size: int = 5

    masked = True

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        reference: int | None = None,
        train: bool = True,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits ``[examples, n_classes]``, or features ``[examples, d]`` without a head.

        Args:
            inputs: images ``[examples, height, width, channels]``.
            reference: how many of the first examples give the statistics (``norm="support"``).
            train: whether ``norm="running"`` takes the batch's statistics.
            mask: ``[examples]``, False for padding, which the batch's statistics leave out.
            key: a random key, of what is dropped; without one nothing is.
        """
        _checks.between("drop", self.drop, 0, 1, ends="[)")
        _checks.positive_int("drop_size", self.drop_size)
        x = inputs
        for block, width in enumerate(self.features):
            x = _Block(width, self.norm, self.convolution, name=f"block_{block}")(
                x, reference=reference, train=train, mask=mask
            )
            if key is not None and self.drop:
                size = 1 if block < 2 else self.drop_size
                x = _dropped(x, jax.random.fold_in(key, block), self.drop, size)
        x = x.mean(axis=(1, 2)) if self.pool else x.reshape(x.shape[0], -1)
        if self.n_classes is None:
            return x
        _checks.positive_int("n_classes", self.n_classes)
        return nn.Dense(self.n_classes, name="head")(x)


def _dropped(x: jax.Array, key: jax.Array, share: float, size: int) -> jax.Array:
    """Maps with about a share of their numbers set to zero, in squares; the others are scaled up so
    that the sum of the mask is that of ones.

    Args:
        x: ``[examples, height, width, channels]``.
        key: a random key.
        share: in [0, 1).
        size: side of the squares, which lie whole within a map; at most its own.

    Example:
        >>> import jax.numpy as jnp
        >>> found = _dropped(jnp.ones((1, 4, 4, 100)), jax.random.key(0), 0.3, 2)
        >>> float(found.mean().round(4)), 0.2 < float((found == 0).mean()) < 0.4
        (1.0, True)
    """
    n, height, width, channels = x.shape
    size = min(size, height, width)
    places = (height - size + 1, width - size + 1)
    rate = share / size**2 * (height * width) / (places[0] * places[1])
    seeds = jax.random.bernoulli(key, min(rate, 1.0), (n, *places, channels))
    # A seed is the upper left corner of its square.
    window, padding = (1, size, size, 1), [(0, 0), (size - 1,) * 2, (size - 1,) * 2, (0, 0)]
    covered = jax.lax.reduce_window(
        seeds.astype(x.dtype), 0.0, jax.lax.max, window, (1, 1, 1, 1), padding
    )
    kept = 1 - covered
    return x * kept * (kept.size / jnp.maximum(kept.sum(), 1)).astype(x.dtype)


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
