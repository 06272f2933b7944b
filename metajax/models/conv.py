"""A convolution that stays fast when it is ``vmap``ped over its weights."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.models.kernels import winograd

Padding = str | Sequence[tuple[int, int]]

Algorithm = Literal["auto", "patches", "winograd", "direct"]
"""How a convolution is computed; see ``Conv``."""

WINOGRAD_CHANNELS = 16
"""From how many channels and features on Winograd's form is faster on a CPU."""


def _amounts(padding: Padding, sizes, kernel_size, strides) -> list[tuple[int, int]]:
    if isinstance(padding, str):
        return jax.lax.padtype_to_pads(sizes, kernel_size, strides, padding)
    return [(low, high) for low, high in padding]


def patches(
    inputs: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """The patches that a convolution sees, side by side.

    Args:
        inputs: images ``[examples, height, width, channels]``.
        kernel_size: height and width of the kernel.
        strides: vertical and horizontal stride.
        padding: ``"SAME"``, ``"VALID"``, or (low, high) for each of the two dimensions.

    Returns:
        ``[examples, out_height, out_width, kernel_height · kernel_width · channels]``, in the order
        of a kernel ``[height, width, channels, features]`` flattened to a matrix.

    Example:
        >>> patches(jnp.ones((1, 4, 4, 2)), (3, 3), (2, 2), "SAME").shape
        (1, 2, 2, 18)
    """
    height, width = inputs.shape[1:3]
    vertical, horizontal = _amounts(padding, (height, width), kernel_size, strides)
    padded = jnp.pad(inputs, [(0, 0), vertical, horizontal, (0, 0)])
    rows = (padded.shape[1] - kernel_size[0]) // strides[0] + 1
    columns = (padded.shape[2] - kernel_size[1]) // strides[1] + 1
    shifted = [
        jax.lax.slice(
            padded,
            (0, i, j, 0),
            (
                padded.shape[0],
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                padded.shape[3],
            ),
            (1, strides[0], strides[1], 1),
        )
        for i, j in itertools.product(range(kernel_size[0]), range(kernel_size[1]))
    ]
    return jnp.concatenate(shifted, axis=-1)


def _product(columns: jax.Array, matrix: jax.Array) -> jax.Array:
    """``columns [..., k] @ matrix [k, features]``.

    On a CPU in a form whose derivatives are fast. The gradient of the matrix sums over columns:
    XLA first transposes one operand in memory, or reads it across its rows, which takes 1.4 times
    as long. Where the smaller operand enters transposed, behind a barrier that keeps XLA from
    putting it back, that gradient comes out as a plain product of what is there.
    """
    if jax.default_backend() != "cpu":
        return columns @ matrix
    rows = columns.reshape(-1, columns.shape[-1])
    k, features = matrix.shape
    if k >= features:
        transposed = jax.lax.optimization_barrier(matrix.T)
        outputs = jax.lax.dot_general(rows, transposed, (((1,), (1,)), ((), ())))
    else:
        transposed = jax.lax.optimization_barrier(rows.T)
        outputs = jax.lax.dot_general(transposed, matrix, (((0,), (0,)), ((), ())))
    return outputs.reshape(*columns.shape[:-1], features)


def _two(name: str, value: Any) -> tuple[int, ...]:
    """A positive integer for each of the two dimensions."""
    both = (
        tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * 2
    )
    if len(both) != 2:
        raise ArgumentError(f"{name} must be of two dimensions, got {value!r}.")
    return tuple(_checks.positive_int(name, each) for each in both)


class Conv(nn.Module):
    """A 2-D convolution as patches times weights, or in Winograd's form.

    The parameters' names and shapes, and the output, are those of ``flax.linen.Conv``. A
    convolution that is ``vmap``ped over its weights becomes a grouped convolution, which XLA runs
    slowly (jax-ml/jax issue 13800); a product of matrices becomes a batched one, which is fast.

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel.
        strides: one stride for both dimensions, or one each.
        padding: ``"SAME"``, ``"VALID"``, or (low, high) for each of the two dimensions.
        use_bias: whether there is a bias.
        add_bias: whether the bias is added. False where what follows subtracts the mean of every
            channel, and the bias with it: the outcome is the same, without sums over all positions
            for a gradient that is zero.
        algorithm: ``"patches"``; ``"winograd"``, which needs a 3×3 kernel, stride 1 and ``"SAME"``
            padding; ``"direct"``, XLA's own convolution; or ``"auto"``, which on a CPU takes
            Winograd's form where it can and where there are enough channels for it to be faster
            (in float32 or float64), else patches.
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
    padding: Padding = "SAME"
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
        if _checks.array("inputs", inputs, "images").ndim != 4:
            raise ArgumentError(
                "inputs must be images [examples, height, width, channels], got shape "
                f"{inputs.shape}."
            )
        strides = _two("strides", self.strides)
        _two("kernel_size", self.kernel_size)
        if isinstance(self.padding, str):
            _checks.one_of("padding", self.padding, ("SAME", "VALID"))
        channels = inputs.shape[-1]
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (*self.kernel_size, channels, self.features),
            self.param_dtype,
        )
        bias = (
            self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        if self._takes_winograd(inputs, strides):
            outputs = winograd.convolve(inputs, kernel)
        elif self.algorithm == "direct":
            padding = _amounts(self.padding, inputs.shape[1:3], self.kernel_size, strides)
            outputs = jax.lax.conv_general_dilated(
                inputs, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            columns = patches(inputs, self.kernel_size, strides, self.padding)
            outputs = _product(columns, kernel.reshape(-1, self.features))
        return outputs if bias is None or not self.add_bias else outputs + bias

    def _takes_winograd(self, inputs: jax.Array, strides: tuple[int, ...]) -> bool:
        _checks.one_of("algorithm", self.algorithm, get_args(Algorithm))
        can = (tuple(self.kernel_size), strides, self.padding) == ((3, 3), (1, 1), "SAME")
        if self.algorithm != "auto":
            if self.algorithm == "winograd" and not can:
                raise ArgumentError(
                    "algorithm='winograd' needs kernel_size=(3, 3), strides=1 and padding='SAME', "
                    f"got {tuple(self.kernel_size)}, {strides} and {self.padding!r}."
                )
            return self.algorithm == "winograd"
        return (
            can
            and jax.default_backend() == "cpu"
            and min(inputs.shape[-1], self.features) >= WINOGRAD_CHANNELS
            and inputs.dtype in (jnp.float32, jnp.float64)
        )
