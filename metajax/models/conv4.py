"""The four-layer convolutional networks of few-shot learning, in their published forms."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models.conv import Algorithm, Conv
from metajax.models.normalization import Normalization, Policy

Form = Literal["stride", "pool", "maps"]


@jax.custom_jvp
def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of two; where they are equal, the derivative is that of the first."""
    return jnp.maximum(a, b)


@_larger.defjvp
def _larger_jvp(primals, tangents):
    a, b = primals
    return _larger(a, b), jax.lax.select(a >= b, *tangents)


def max_pool(inputs: jax.Array) -> jax.Array:
    """The maximum of every 2×2 window of ``[examples, height, width, channels]``.

    An odd last row or column is left out. Unlike a ``reduce_window``, its second derivatives and
    its ``vmap`` are as cheap as itself. Among equals the first has the derivative.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel()
        Array([ 5.,  7., 13., 15.], dtype=float32)
    """
    if inputs.ndim != 4 or min(inputs.shape[1:3]) < 2:
        raise ArgumentError(
            "inputs of a pooling must be images [examples, height, width, channels] of at least "
            f"2 × 2 pixels, got shape {inputs.shape}: the images are too small for the network."
        )
    examples, height, width, channels = inputs.shape
    rows, columns = height // 2, width // 2
    pairs = inputs[:, : 2 * rows, : 2 * columns].reshape(examples, rows, 2, 2 * columns, channels)
    taller = _larger(pairs[:, :, 0], pairs[:, :, 1])
    pairs = taller.reshape(examples, rows, columns, 2, channels)
    return _larger(pairs[:, :, :, 0], pairs[:, :, :, 1])


class Conv4(nn.Module):
    """Four blocks of convolution, normalisation and ReLU, then a linear head.

    Attributes:
        n_classes: number of logits; None for the features themselves, without a head.
        features: channels of every convolution.
        form: ``"stride"``, as in MAML's Omniglot network: stride 2 in place of pooling and the mean
            over positions; ``"pool"``, as in Prototypical Networks: 2×2 max-pooling, flattened;
            ``"maps"``, as in Relation Networks: pooling after the first two blocks alone, and the
            feature maps themselves (flattened before a head).
        norm: where the normalisation takes its statistics from; see ``Normalization``.
        norm_scale: whether the normalisation learns a scale; None for the form's own habit: not
            with ``"stride"``, and with the others.
        norm_epsilon: added to the variance; None for the form's own: 1e-3 with ``"stride"``, 1e-5
            with the others.
        convolution: how the convolutions are computed; see ``Conv``'s ``algorithm``. With
            ``"winograd"`` the first, of an image's few channels, takes patches.
        head_init: initialiser of the head's kernel; N(0, 1), as in MAML's published code.

    Its parameters are ``conv_0`` to ``conv_3``, ``norm_0`` to ``norm_3`` and ``head``.

    Example:
        >>> images = jnp.zeros((5, 28, 28, 1))
        >>> variables = Conv4(n_classes=5).init(jax.random.key(0), images)
        >>> sorted(variables["params"])[:2], Conv4(n_classes=5).apply(variables, images).shape
        (['conv_0', 'conv_1'], (5, 5))

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.2, and its published code for
    initialisation and normalisation; Snell et al. 2017 (arXiv 1703.05175), section 3.1;
    Sung et al. 2018 (arXiv 1711.06025), figure 2.
    """

    n_classes: int | None
    features: int = 64
    form: Form = "stride"
    norm: Policy = "batch"
    norm_scale: bool | None = None
    norm_epsilon: float | None = None
    convolution: Algorithm = "auto"
    head_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, reference: int | None = None, train: bool = True
    ) -> jax.Array:
        """Logits ``[examples, n_classes]``, or features ``[examples, d]`` without a head, with
        ``form="maps"`` ``[examples, height / 4, width / 4, features]``.

        Args:
            inputs: images ``[examples, height, width, channels]``.
            reference: how many of the first examples give the statistics (``norm="support"``).
            train: whether ``norm="running"`` takes the batch's statistics.
        """
        _checks.one_of("form", self.form, ("stride", "pool", "maps"))
        strided = self.form == "stride"
        pooled = {"stride": 0, "pool": 4, "maps": 2}[self.form]
        # Statistics of the batch itself take a constant away again.
        takes_bias_away = self.norm in ("batch", "support") or (self.norm == "running" and train)
        x = inputs
        for block in range(4):
            conv = Conv(
                self.features,
                strides=2 if strided else 1,
                algorithm="patches"
                if not block and self.convolution == "winograd"
                else self.convolution,
                add_bias=not takes_bias_away,
                kernel_init=nn.initializers.xavier_uniform(),
                name=f"conv_{block}",
            )
            x = conv(x)
            x = Normalization(
                self.norm,
                use_scale=(not strided) if self.norm_scale is None else self.norm_scale,
                epsilon=(1e-3 if strided else 1e-5)
                if self.norm_epsilon is None
                else self.norm_epsilon,
                name=f"norm_{block}",
            )(
                x,
                reference=reference,
                train=train,
                offset=conv.get_variable("params", "bias") if takes_bias_away else None,
                pool=max_pool if block < pooled else None,
            )
            x = nn.relu(x)  # commutes with a maximum
        if strided:
            x = x.mean(axis=(1, 2))
        elif self.form == "pool" or self.n_classes is not None:
            x = x.reshape(x.shape[0], -1)
        if self.n_classes is None:
            return x
        _checks.positive_int("n_classes", self.n_classes)
        return nn.Dense(self.n_classes, kernel_init=self.head_init, name="head")(x)


def adapts_in_maml(path: str) -> bool:
    """Whether MAML's published code adapts a leaf: all but the normalisation's shift and scale.

    Example:
        >>> adapts_in_maml("conv_0/kernel"), adapts_in_maml("norm_0/bias")
        (True, False)
    """
    return not any(part.startswith("norm_") for part in path.split("/"))
