"""The 3×3 convolution of stride 1 with fewer multiplications, closed under differentiation.

Winograd's F(2×2, 3×3) computes 2×2 outputs of one channel from a 4×4 tile with 16 multiplications
where the definition takes 36: y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ x B)] A. Over channels the 16 multiplications
are 16 products of matrices.

A convolution is bilinear, and so are its two transposes: the input's gradient, of the outputs'
gradient and the kernel; and the kernel's gradient, of the input and the outputs' gradient. All
derivatives of these three, of any order and in either mode, are among the three. Each is a
primitive here. Automatic differentiation would instead transpose a tile's overlapping slices one by
one, each in a pass over all activations.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["convolve"]

CHANNELS = 16
"""The number of channels and of features from which this form is faster than patches on a CPU."""
TILE_BYTES = 2**23
"""How many bytes of the examples' tiles a CPU computes at a time: they stay in its cache."""

_Lines = Sequence[jax.Array]


def _input_lines(d: _Lines) -> list[jax.Array]:
    """Bᵀ d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel_lines(k: _Lines) -> list[jax.Array]:
    """G k."""
    even, odd = (k[0] + k[2]) / 2, k[1] / 2
    return [k[0], even + odd, even - odd, k[2]]


def _output_lines(m: _Lines) -> list[jax.Array]:
    """Aᵀ m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _kernel_lines_transposed(u: _Lines) -> list[jax.Array]:
    """Gᵀ u."""
    even, odd = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
    return [u[0] + even, odd, even + u[3]]


def _output_lines_transposed(y: _Lines) -> list[jax.Array]:
    """A y."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _grid(transform: Callable, rows: Sequence[_Lines]) -> list[jax.Array]:
    """A transform along both axes of a grid of arrays; row by row."""
    vertical = [transform(column) for column in zip(*rows, strict=True)]
    return [item for line in zip(*vertical, strict=True) for item in transform(line)]


def _tiles(size: int) -> int:
    return -(-size // 2)


def _input_tiles(x: jax.Array) -> list[jax.Array]:
    """The 16 matrices [examples · tiles, channels] of Bᵀ x B."""
    _, height, width, channels = x.shape
    rows, columns = _tiles(height), _tiles(width)
    padding = ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0))
    padded = jnp.pad(x, padding)
    tile = [
        [padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)]
        for i in range(4)
    ]
    return [m.reshape(-1, channels) for m in _grid(_input_lines, tile)]


def _rows_of_kernel(kernel: jax.Array) -> list[_Lines]:
    return [[kernel[i, j] for j in range(3)] for i in range(3)]


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    examples, height, width, _ = x.shape
    shape = (examples, _tiles(height), _tiles(width), kernel.shape[-1])
    matrices = _grid(_kernel_lines, _rows_of_kernel(kernel))
    products = [
        (tile @ matrix).reshape(shape)
        for tile, matrix in zip(_input_tiles(x), matrices, strict=True)
    ]
    outputs = _grid(_output_lines, [products[i : i + 4] for i in range(0, 16, 4)])
    pairs = [jnp.stack(outputs[i : i + 2], axis=3) for i in (0, 2)]
    whole = jnp.stack(pairs, axis=2).reshape(examples, 2 * shape[1], 2 * shape[2], shape[3])
    return whole[:, :height, :width]


def _kernel_gradient(x: jax.Array, outputs_bar: jax.Array) -> jax.Array:
    _, height, width, features = outputs_bar.shape
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    padded = jnp.pad(outputs_bar, odd)
    tile = [[padded[:, i::2, j::2] for j in range(2)] for i in range(2)]
    bars = [m.reshape(-1, features) for m in _grid(_output_lines_transposed, tile)]
    products = [a.T @ b for a, b in zip(_input_tiles(x), bars, strict=True)]
    kernel = _grid(_kernel_lines_transposed, [products[i : i + 4] for i in range(0, 16, 4)])
    return jnp.stack(kernel).reshape(3, 3, x.shape[-1], features)


def _input_gradient(outputs_bar: jax.Array, kernel: jax.Array) -> jax.Array:
    """The transpose of the convolution in its input is one with the kernel turned around."""
    return _convolve(outputs_bar, kernel[::-1, ::-1].swapaxes(2, 3))


def _parts(x: jax.Array, features: int) -> int:
    """The number of equal parts of the examples ``x`` whose tiles have about ``TILE_BYTES``."""
    examples, height, width, channels = x.shape
    tiles = examples * _tiles(height) * _tiles(width)
    enough = -(-16 * tiles * max(channels, features) * x.dtype.itemsize // TILE_BYTES)
    if jax.default_backend() != "cpu":
        return 1
    # Much smaller parts would take longer: they are many small operations.
    divisors = (n for n in range(enough, min(4 * enough, examples) + 1) if examples % n == 0)
    return next(divisors, 1)


def _in_parts(
    function: Callable, a: jax.Array, b: jax.Array, *, second_is_kernel: bool
) -> jax.Array:
    """``function(a, b)``, some of the examples at a time."""
    parts = _parts(a, b.shape[2 if function is _input_gradient else 3])
    if parts == 1:
        return function(a, b)

    def divided(x):
        return x.reshape(parts, -1, *x.shape[1:])

    if second_is_kernel:
        outputs = jax.lax.map(lambda part: function(part, b), divided(a))
        return outputs.reshape(-1, *outputs.shape[2:])

    def add(total, operands):
        return total + function(*operands), None

    zeros = jnp.zeros((3, 3, a.shape[-1], b.shape[-1]), a.dtype)
    return jax.lax.scan(add, zeros, (divided(a), divided(b)))[0]


def _bilinear(name: str, function: Callable, *, second_is_kernel: bool) -> Primitive:
    """A primitive that computes ``function``, also of arguments with leading batch axes.

    Under ``vmap`` it stays the same primitive, so that its derivatives stay among the three.
    """
    primitive = Primitive(f"metajax_{name}")

    def compute(a, b):
        if a.ndim == 4:
            return _in_parts(function, a, b, second_is_kernel=second_is_kernel)
        batched = function
        for _ in range(a.ndim - 4):
            batched = jax.vmap(batched)
        return batched(a, b)

    def batch(arguments, axes):
        a, b = arguments
        size = next(
            x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None
        )
        if second_is_kernel and axes[1] is None:
            # One kernel for all: the batch is only more examples.
            a = jnp.moveaxis(a, axes[0], -5)
            folded = a.reshape(*a.shape[:-5], size * a.shape[-4], *a.shape[-3:])
            outputs = primitive.bind(folded, b)
            shape = (*outputs.shape[:-4], size, a.shape[-4], *outputs.shape[-3:])
            return outputs.reshape(shape), outputs.ndim - 4
        a, b = (
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arguments, axes, strict=True)
        )
        return primitive.bind(a, b), 0

    def abstract(a, b):
        outputs = jax.eval_shape(compute, a, b)
        return ShapedArray(outputs.shape, outputs.dtype)

    primitive.def_impl(jax.jit(compute))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_convolve_p = _bilinear("convolve", _convolve, second_is_kernel=True)
_input_gradient_p = _bilinear("input_gradient", _input_gradient, second_is_kernel=True)
_kernel_gradient_p = _bilinear("kernel_gradient", _kernel_gradient, second_is_kernel=False)

ad.defbilinear(
    _convolve_p,
    lambda bar, x, kernel: _input_gradient_p.bind(bar, kernel),
    lambda bar, x, kernel: _kernel_gradient_p.bind(x, bar),
)
ad.defbilinear(
    _input_gradient_p,
    lambda bar, outputs_bar, kernel: _convolve_p.bind(bar, kernel),
    lambda bar, outputs_bar, kernel: _kernel_gradient_p.bind(bar, outputs_bar),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda bar, x, outputs_bar: _input_gradient_p.bind(outputs_bar, bar),
    lambda bar, x, outputs_bar: _convolve_p.bind(x, bar),
)


def convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3×3 convolution of stride 1 that keeps the size (``"SAME"`` padding).

    Args:
        inputs: images ``[examples, height, width, channels]``.
        kernel: ``[3, 3, channels, features]``, of the same type.

    Returns:
        ``[examples, height, width, features]``.

    Example:
        >>> convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)))[0, :, :, 0]
        Array([[ 8., 12., 12.,  8.],
               [12., 18., 18., 12.],
               [12., 18., 18., 12.],
               [ 8., 12., 12.,  8.]], dtype=float32)
    """
    return _convolve_p.bind(inputs, kernel)
