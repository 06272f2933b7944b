"""Each normalisation policy against numpy and ``flax.linen.BatchNorm``."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from metajax.models import Normalization

INPUTS = jax.random.normal(jax.random.key(0), (6, 3, 3, 2)) * 2 + 1


def reference(inputs, rows, epsilon):
    mean, variance = rows.mean((0, 1, 2)), rows.var((0, 1, 2))
    return (inputs - mean) / np.sqrt(variance + epsilon)


def test_batch_statistics():
    module = Normalization("batch", epsilon=1e-3)
    outputs, variables = module.init_with_output(jax.random.key(1), INPUTS)
    inputs = np.asarray(INPUTS)
    np.testing.assert_allclose(outputs, reference(inputs, inputs, 1e-3), rtol=1e-4, atol=1e-5)
    assert set(variables["params"]) == {"scale", "bias"}


def test_support_statistics_come_from_the_first_rows_alone():
    module = Normalization("support")
    variables = module.init(jax.random.key(1), INPUTS)
    inputs = np.asarray(INPUTS)
    outputs = module.apply(variables, INPUTS, reference=4)
    np.testing.assert_allclose(outputs, reference(inputs, inputs[:4], 1e-3), rtol=1e-4, atol=1e-5)
    # Another query changes nothing for the first one.
    changed = module.apply(variables, INPUTS.at[5].set(100.0), reference=4)
    np.testing.assert_array_equal(outputs[:5], changed[:5])
    everything = module.apply(variables, INPUTS)
    np.testing.assert_allclose(everything, reference(inputs, inputs, 1e-3), rtol=1e-4, atol=1e-5)


def test_running_statistics_are_those_of_linen():
    ours = Normalization("running", epsilon=1e-5, momentum=0.8)
    theirs = nn.BatchNorm(epsilon=1e-5, momentum=0.8)
    variables = ours.init(jax.random.key(1), INPUTS)
    expected = theirs.init(jax.random.key(1), INPUTS, use_running_average=False)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    for scale in (1.0, 3.0):
        outputs, changed = ours.apply(variables, scale * INPUTS, mutable=["batch_stats"])
        like, changed_like = theirs.apply(
            expected, scale * INPUTS, use_running_average=False, mutable=["batch_stats"]
        )
        np.testing.assert_allclose(outputs, like, rtol=1e-4, atol=1e-5)
        variables, expected = {**variables, **changed}, {**expected, **changed_like}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), variables, expected
    )
    np.testing.assert_allclose(
        ours.apply(variables, INPUTS, train=False),
        theirs.apply(expected, INPUTS, use_running_average=True),
        rtol=1e-4,
        atol=1e-5,
    )


def test_none_is_the_identity():
    outputs, variables = Normalization("none").init_with_output(jax.random.key(0), INPUTS)
    np.testing.assert_array_equal(outputs, INPUTS)
    assert not variables


@pytest.mark.parametrize(
    ("policy", "reference_rows", "message"),
    [
        ("instance", None, "norm must be one of 'batch', 'support', 'running', 'none'"),
        ("batch", 2, "reference=2 needs norm='support', but norm='batch'"),
        ("support", 0, "reference must be between 1 and the 6 examples, got 0"),
        ("support", 7, "reference must be between 1 and the 6 examples, got 7"),
    ],
)
def test_bad_input_is_named(policy, reference_rows, message):
    with pytest.raises(ValueError, match=message):
        Normalization(policy).init(jax.random.key(0), INPUTS, reference=reference_rows)
