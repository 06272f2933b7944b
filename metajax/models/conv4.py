"""The four-layer convolutional networks of few-shot learning, in their published forms."""

from typing import Literal, get_args

import flax.linen as nn
import jax

from metajax import _checks
from metajax.models.conv import Algorithm, Conv
from metajax.models.normalization import Norm, Normalization
from metajax.models.pooling import max_pool

Form = Literal["stride", "pool", "maps"]
"""Which of the published networks it is; see ``Conv4``."""


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
        norm_scale: whether the normalisation learns a scale; if None, the form's default: not with
            ``"stride"``, but with the others.
        norm_epsilon: added to the variance; if None, the form's default: 1e-3 with ``"stride"``,
            1e-5 with the others.
        convolution: how the convolutions are computed; see ``Conv``'s ``algorithm``. With
            ``"winograd"`` the first convolution, which has few channels, takes patches.
        head_init: initialiser of the head's kernel; N(0, 1), as in MAML's published code.

    Its parameters are ``conv_0`` to ``conv_3``, ``norm_0`` to ``norm_3`` and ``head``.

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.zeros((5, 28, 28, 1))
        >>> init = Conv4(n_classes=5).init_with_output
        >>> logits, variables = jax.eval_shape(init, jax.random.key(0), images)
        >>> sorted(variables["params"])[:2], logits.shape
        (['conv_0', 'conv_1'], (5, 5))

    Source: Finn et al. 2017 (arXiv 1703.03400), section 5.2, and its published code for
    initialisation and normalisation; Snell et al. 2017 (arXiv 1703.05175), section 3.1;
    Sung et al. 2018 (arXiv 1711.06025), figure 2.
    """

    n_classes: int | None
    features: int = 64
    form: Form = "stride"
    norm: Norm = "batch"
    norm_scale: bool | None = None
    norm_epsilon: float | None = None
    convolution: Algorithm = "auto"
    head_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

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
        """Logits ``[examples, n_classes]``, or features ``[examples, d]`` without a head, with
        ``form="maps"`` ``[examples, height / 4, width / 4, features]``.

        Args:
            inputs: images ``[examples, height, width, channels]``.
            reference: how many of the first examples give the statistics (``norm="support"``).
            train: whether ``norm="running"`` takes the batch's statistics.
            mask: ``[examples]``, False for padding, which the batch's statistics leave out.
        """
        _checks.one_of("form", self.form, get_args(Form))
        strided = self.form == "stride"
        pooled = {"stride": 0, "pool": 4, "maps": 2}[self.form]
        # The batch's own mean includes the bias, so subtracting it removes the bias.
        removes_bias = self.norm in ("batch", "support") or (self.norm == "running" and train)
        x = inputs
        for block in range(4):
            conv = Conv(
                self.features,
                strides=2 if strided else 1,
                algorithm="patches"
                if not block and self.convolution == "winograd"
                else self.convolution,
                add_bias=not removes_bias,
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
                mask=mask,
                offset=conv.get_variable("params", "bias") if removes_bias else None,
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
