"""ResNet-12 against Flax's own layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import ResNet12
from metajax.models.resnet12 import _dropped


@pytest.mark.slow
def test_equals_flax_layers_on_the_same_parameters(x64):
    network = ResNet12(n_classes=3, features=(4, 16, 16, 20))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 17, 16, 3)))
    params = network.init(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def convolve(x, layer):
        kernel = layer["kernel"]
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def normalise(x, layer):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * layer["scale"] + layer["bias"]

    x = images
    for name in ("block_0", "block_1", "block_2", "block_3"):
        block, start = params[name], x
        for layer in range(3):
            x = normalise(convolve(x, block[f"conv_{layer}"]), block[f"norm_{layer}"])
            if layer < 2:
                x = jnp.where(x > 0, x, 0.1 * x)
        x = x + normalise(convolve(start, block["conv_shortcut"]), block["norm_shortcut"])
        x = nn.max_pool(jnp.where(x > 0, x, 0.1 * x), (2, 2), (2, 2))
    expected = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    outputs = network.apply({"params": params}, images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-8, atol=1e-10)


def test_the_features_may_be_kept_whole():
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    whole = ResNet12(None, features=(4, 4, 4, 6), pool=False)
    outputs, _ = jax.eval_shape(whole.init_with_output, jax.random.key(0), images)
    assert outputs.shape == (2, 2 * 2 * 6)


@pytest.mark.parametrize(("size", "share"), [(1, 0.1), (2, 0.2), (3, 0.1), (9, 0.3)])
def test_what_is_dropped_are_squares_of_the_share(size, share):
    maps = jnp.ones((4, 6, 5, 200))
    found = np.asarray(_dropped(maps, jax.random.key(1), share, size))
    zero = found == 0
    assert found.mean() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(found)) == 2
    if size <= 3:  # squares may lie over each other
        assert share - 0.06 < zero.mean() < share + 0.01
        corners = np.lib.stride_tricks.sliding_window_view(zero, (size, size), axis=(1, 2))
        whole = corners.all(axis=(-1, -2))  # a square begins here
        covered = np.zeros_like(zero)
        for down in range(size):
            for right in range(size):
                covered[:, down : down + whole.shape[1], right : right + whole.shape[2]] |= whole
        assert (covered == zero).all(), "all that is zero lies in a whole square"
    else:  # the square is as wide as the map
        assert (zero.all(axis=2) == zero.any(axis=2)).all()


def test_nothing_is_dropped_without_a_key_and_the_last_two_blocks_lose_squares():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    network = ResNet12(None, (4, 4, 4, 6), drop=0.5, drop_size=2)
    params = network.init(jax.random.key(1), images)
    plain = ResNet12(None, (4, 4, 4, 6)).apply(params, images)
    np.testing.assert_array_equal(network.apply(params, images), plain)
    first, again, other = (
        network.apply(params, images, key=jax.random.key(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, plain)
    assert not np.allclose(first, other)
    with pytest.raises(ValueError, match="drop must be"):
        ResNet12(None, drop=1.0).init(jax.random.key(0), images)


def test_images_that_are_too_small_are_named():
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match="too small for the network"):
        jax.eval_shape(ResNet12(5, (2, 2, 2, 2)).init, jax.random.key(0), images)
