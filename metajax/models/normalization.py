"""Batch normalisation whose source of statistics is an explicit policy."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from metajax import _checks
from metajax.errors import ArgumentError

Norm = Literal["batch", "support", "running", "none"]
"""Where a normalisation's mean and variance come from.

``"batch"``: all examples that go through together (transductive, as in the MAML paper).
``"support"``: the first ``reference`` of them, so that a query doesn't see other queries.
``"running"``: the batch in training, averages carried along at test.
``"none"``: no normalisation.
"""


class Normalization(nn.Module):
    """Normalises every channel over examples and positions, then scales and shifts.

    Attributes:
        policy: where the statistics come from; see ``metajax.models.Norm``.
        use_scale: whether a scale is learned.
        use_bias: whether a shift is learned.
        epsilon: added to the variance.
        momentum: how much of the running statistics a training pass keeps (``"running"``).

    Example:
        >>> module = Normalization("support", use_scale=False)
        >>> x = jnp.array([[1.0], [3.0], [9.0]])
        >>> variables = module.init(jax.random.key(0), x)
        >>> module.apply(variables, x, reference=2).round(2).ravel()
        Array([-1.,  1.,  7.], dtype=float32)

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167); the policies, Bronskill et al. 2020,
    "TaskNorm" (arXiv 2003.03284).
    """

    policy: Norm
    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.9

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        reference: int | None = None,
        train: bool = True,
        mask: jax.Array | None = None,
        offset: jax.Array | None = None,
        pool: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Normalises ``[examples, ..., channels]``.

        Args:
            inputs: the activations.
            reference: with ``"support"``, how many of the first examples give the statistics; all
                of them if None.
            train: with ``"running"``, whether the statistics are the batch's (and update the
                averages, where ``batch_stats`` is mutable) or the averages.
            mask: ``[examples]``, False for padding, which the batch's statistics leave out.
            offset: ``[channels]``, a bias that wasn't added to the inputs because the batch's mean
                would remove it again; the running mean includes it.
            pool: a maximum over positions, taken of the output. It is computed before scale and
                shift, which then have fewer values to go over.

        Raises:
            ArgumentError: if the policy isn't one, the inputs have no channels, or ``reference`` is
                given without ``"support"`` or isn't between 1 and the number of examples.
        """
        _checks.one_of("norm", self.policy, get_args(Norm))
        if inputs.ndim < 2:
            raise ArgumentError(
                f"inputs must be [examples, ..., channels], got shape {inputs.shape}."
            )
        if self.policy == "none":
            return inputs if pool is None else pool(inputs)
        if reference is not None:
            if self.policy != "support":
                raise ArgumentError(
                    f"reference={reference} needs norm='support', but norm={self.policy!r}."
                )
            if not 1 <= reference <= inputs.shape[0]:
                raise ArgumentError(
                    f"reference must be between 1 and the {inputs.shape[0]} examples, got "
                    f"{reference}."
                )
        channels = inputs.shape[-1]
        if self.policy == "running":
            mean, variance = self._running_statistics(inputs, mask, train, offset)
        else:
            known = None if mask is None else mask[:reference]
            mean, variance = _moments(inputs[:reference], known)
        scale: Any = jax.lax.rsqrt(variance + self.epsilon)
        if self.use_scale:
            scale = scale * self.param("scale", nn.initializers.ones_init(), (channels,))
        dtype = inputs.dtype
        if pool is not None:
            # A growing function of the maximum is the maximum of the function; where the scale is
            # negative, the channel is turned around.
            sign = jnp.where(scale < 0, -1, 1).astype(scale.dtype)
            inputs = pool(inputs * sign.astype(dtype))
            mean, scale = mean * sign, scale * sign
        outputs = (inputs - mean) * scale
        if self.use_bias:
            outputs = outputs + self.param("bias", nn.initializers.zeros_init(), (channels,))
        return outputs.astype(dtype)

    def _running_statistics(self, inputs, mask, train, offset):
        channels = inputs.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            return running_mean.value, running_variance.value
        mean, variance = _moments(inputs, mask)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            keep = self.momentum
            whole_mean = mean if offset is None else mean + offset
            running_mean.value = keep * running_mean.value + (1 - keep) * whole_mean
            running_variance.value = keep * running_variance.value + (1 - keep) * variance
        return mean, variance


def _moments(inputs: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of every channel over the real examples, in float32 at least."""
    inputs = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    weights = None
    if mask is not None:
        real = mask.astype(inputs.dtype).reshape(-1, *(1,) * (inputs.ndim - 1))
        weights = real / jnp.maximum(real.mean(), jnp.finfo(inputs.dtype).tiny)
    return _mean(inputs, weights), _variance(inputs, weights)


def _mean(inputs: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The mean of every channel; ``weights [examples, 1, ...]`` are 1 on average."""
    weighted = inputs if weights is None else inputs * weights
    return weighted.mean(tuple(range(inputs.ndim - 1)))


@jax.custom_jvp
def _variance(inputs: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The variance of every channel.

    Its derivative with respect to the mean is the sum of the deviations, which is zero. Automatic
    differentiation would compute that sum at every order: for second derivatives a dozen times a
    layer.
    """
    deviations = inputs - _mean(inputs, weights)
    return _mean(deviations * deviations, weights)


@_variance.defjvp
def _variance_jvp(primals, tangents):
    (inputs, weights), (tangent, _) = primals, tangents
    deviations = inputs - _mean(inputs, weights)
    return _variance(inputs, weights), 2 * _mean(deviations * tangent, weights)
