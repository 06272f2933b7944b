"""The convolution against ``flax.linen.Conv``: parameters, values, first and second derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from metajax.models import Conv

CASES = [
    {"features": 4},
    {"features": 4, "strides": 2},
    {"features": 3, "strides": (2, 1), "kernel_size": (3, 2)},
    {"features": 4, "padding": "VALID", "use_bias": False},
    {"features": 2, "padding": [(1, 1), (0, 2)], "strides": 2},
    {"features": 5, "kernel_size": (1, 1)},
    {"features": 4, "algorithm": "winograd"},
    {"features": 4, "algorithm": "direct", "strides": 2},
]
every_case = pytest.mark.parametrize("options", CASES)


def pair(options):
    ours = Conv(**options)
    known = {name: value for name, value in options.items() if name != "algorithm"}
    theirs = nn.Conv(**({"kernel_size": (3, 3)} | known))
    inputs = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    params = theirs.init(jax.random.key(1), inputs)
    if options.get("use_bias", True):
        params["params"]["bias"] = jax.random.normal(jax.random.key(2), (options["features"],))
    return ours, theirs, params, inputs


@every_case
def test_parameters_are_those_of_linen(options):
    ours, theirs, _, inputs = pair(options)
    key = jax.random.key(3)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, inputs), theirs.init(key, inputs))


@pytest.mark.slow
@every_case
def test_values_and_derivatives_are_those_of_linen(x64, options):
    ours, theirs, params, inputs = pair(options)
    params, inputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, inputs))
    direction = jax.tree.map(jnp.cos, (params, inputs))

    def outcomes(module):
        output = lambda args: module.apply(*args)
        loss = lambda args: jnp.sum(jnp.sin(output(args)))
        gradient = jax.grad(loss)
        hessian_product = lambda args: jax.jvp(gradient, (args,), (direction,))[1]
        arguments = (params, inputs)
        return output(arguments), gradient(arguments), hessian_product(arguments)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        outcomes(ours),
        outcomes(theirs),
    )


@pytest.mark.parametrize("algorithm", ["patches", "winograd"])
def test_vmap_over_weights_makes_no_convolution(algorithm):
    ours, theirs, params, inputs = pair({"features": 4, "algorithm": algorithm})
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    both = jax.jit(jax.vmap(ours.apply, in_axes=(0, None)))
    expected = jax.vmap(theirs.apply, in_axes=(0, None))(many, inputs)
    np.testing.assert_allclose(both(many, inputs), expected, rtol=1e-4, atol=1e-5)
    assert "stablehlo.convolution" not in both.lower(many, inputs).as_text()


def test_a_mesh_with_explicit_axes_takes_patches():
    """Winograd's primitives have no rule for a sharding in an array's type."""
    module = Conv(16)
    images = jax.random.normal(jax.random.key(0), (2, 5, 4, 16))
    params = module.init(jax.random.key(1), images)
    loss = lambda params, images: jnp.sum(jnp.sin(module.apply(params, images)))
    expected = jax.jit(jax.value_and_grad(loss))(params, images)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(images, PartitionSpec("data"))
        found = jax.jit(jax.value_and_grad(loss))(params, sharded)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
        )
        with pytest.raises(ValueError, match=r"no mesh with explicit axes, got .* and one"):
            Conv(16, algorithm="winograd").apply(params, sharded)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (Conv(4), (7, 6, 3), r"inputs must be images .* got shape \(7, 6, 3\)"),
        (Conv(0), (2, 7, 6, 3), "features must be at least 1, got 0"),
        (Conv(4, strides=(1, 1, 1)), (2, 7, 6, 3), "strides must be of two dimensions"),
        (Conv(4, algorithm="fft"), (2, 7, 6, 3), "algorithm must be one of 'auto', 'patches', "),
        (
            Conv(4, algorithm="winograd", strides=2),
            (2, 7, 6, 3),
            r"algorithm='winograd' needs .* got \(3, 3\), \(2, 2\), 'SAME' and none",
        ),
    ],
)
def test_bad_input_is_named(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.zeros(shape))
