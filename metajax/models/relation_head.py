"""The module of Relation Networks that compares two feature maps."""

import flax.linen as nn
import jax

from metajax.models.conv import Conv
from metajax.models.normalization import Norm, Normalization
from metajax.models.pooling import max_pool


class RelationHead(nn.Module):
    """Two convolution blocks with pooling, then two fully connected layers and a sigmoid.

    Attributes:
        features: channels of the convolutions.
        hidden: width of the first fully connected layer.
        norm: where the normalisation takes its statistics from; see ``Normalization``.

    Example:
        >>> import jax.numpy as jnp
        >>> pairs = jnp.zeros((6, 7, 7, 32))
        >>> init = RelationHead(16).init_with_output
        >>> jax.eval_shape(init, jax.random.key(0), pairs)[0].shape
        (6,)

    Source: Sung et al. 2018 (arXiv 1711.06025), figure 3.
    """

    features: int = 64
    hidden: int = 8
    norm: Norm = "batch"

    masked = True

    @nn.compact
    def __call__(
        self, pairs: jax.Array, *, train: bool = True, mask: jax.Array | None = None
    ) -> jax.Array:
        """Relations ``[n]`` in (0, 1) of pairs ``[n, height, width, channels]``.

        Args:
            pairs: the two feature maps, side by side along the channels.
            train: whether ``norm="running"`` takes the batch's statistics.
            mask: ``[n]``, False for pairs with padding, which the batch's statistics leave out.
        """
        x = pairs
        for block in range(2):
            x = Conv(self.features, name=f"conv_{block}")(x)
            x = Normalization(self.norm, name=f"norm_{block}")(x, train=train, mask=mask)
            x = max_pool(nn.relu(x)) if min(x.shape[1:3]) > 1 else nn.relu(x)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.sigmoid(nn.Dense(1, name="relation")(x))[:, 0]
