"""A convolution that stays fast when it is ``vmap``ped over its weights."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.sharding import AxisType

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models.kernels import patches, winograd

Algorithm = Literal["auto", "patches", "winograd", "direct"]
"""How a convolution is computed; see ``Conv``."""


class Conv(nn.Module):
    """A 2-D convolution as patches times weights, or in Winograd's form.

    The parameters' names and shapes, and the output, are those of ``flax.linen.Conv``.
    ``metajax.models.kernels`` says why its forms are faster for weights that differ from task to
    task.

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel.
        strides: one stride for both dimensions, or one each.
        padding: ``"SAME"``, ``"VALID"``, or (low, high) for each of the two dimensions.
        use_bias: whether there is a bias.
        add_bias: whether the bias is added. False where a normalisation follows that subtracts the
            mean of every channel, and with it the bias: the result is the same, and no gradient of
            zero is summed over all positions.
        algorithm: ``"patches"``; ``"winograd"``, which needs a 3×3 kernel, stride 1, ``"SAME"``
            padding and no mesh with explicit axes; ``"direct"``, XLA's own convolution; or
            ``"auto"``, which takes Winograd's form on a CPU where it can and is faster (in float32
            or float64, with enough channels), else patches.
        kernel_init: initialiser of the kernel ``[height, width, channels, features]``.
        bias_init: initialiser of the bias ``[features]``.
        dtype: type of the computation; the promotion of inputs and parameters if None.
        param_dtype: type of the parameters.

    Example:
        >>> images = jnp.ones((5, 28, 28, 1))
        >>> outputs, variables = Conv(8, strides=2).init_with_output(jax.random.key(0), images)
        >>> outputs.shape, variables["params"]["kernel"].shape
        ((5, 14, 14, 8), (3, 3, 1, 8))
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    add_bias: bool = True
    algorithm: Algorithm = "auto"
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves images ``[examples, height, width, channels]``."""
        _checks.positive_int("features", self.features)
        if inputs.ndim != 4:
            raise ArgumentError(
                "inputs must be images [examples, height, width, channels], got shape "
                f"{inputs.shape}."
            )
        size = _two("kernel_size", self.kernel_size)
        strides = _two("strides", self.strides)
        shape = (*size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = (
            self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        padding = self.padding
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(inputs.shape[1:3], size, strides, padding)
        match _form(self.algorithm, inputs, kernel, strides, self.padding):
            case "winograd":
                outputs = winograd.convolve(inputs, kernel)
            case "direct":
                outputs = jax.lax.conv_general_dilated(
                    inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            case _:
                outputs = patches.convolve(inputs, kernel, strides, padding)
        return outputs if bias is None or not self.add_bias else outputs + bias


def _form(
    algorithm: Algorithm, inputs: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding
) -> Algorithm:
    """Which form of the convolution is taken; ``metajax.models.kernels`` says why.

    Raises:
        ArgumentError: if ``algorithm`` isn't one, or is Winograd's where that can't be taken.
    """
    _checks.one_of("algorithm", algorithm, get_args(Algorithm))
    if algorithm in ("patches", "direct"):
        return algorithm
    *size, channels, features = kernel.shape
    fits = (tuple(size), strides, padding) == ((3, 3), (1, 1), "SAME")
    explicit = any(
        AxisType.Explicit in jax.typeof(each).sharding.mesh.axis_types for each in (inputs, kernel)
    )
    if algorithm == "winograd":
        if not fits or explicit:
            raise ArgumentError(
                "algorithm='winograd' needs kernel_size=(3, 3), strides=1, padding='SAME' and no "
                f"mesh with explicit axes, got {tuple(size)}, {strides}, {padding!r} and "
                f"{'one' if explicit else 'none'}."
            )
        return "winograd"
    faster = (
        jax.default_backend() == "cpu"
        and min(channels, features) >= winograd.CHANNELS
        and inputs.dtype in (jnp.float32, jnp.float64)
    )
    return "winograd" if fits and faster and not explicit else "patches"


def _two(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """A positive integer for each of the two dimensions."""
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2:
        raise ArgumentError(f"{name} must be of two dimensions, got {value!r}.")
    return tuple(_checks.positive_int(name, each) for each in both)
