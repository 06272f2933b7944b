"""Parameters split between devices: where they are, and that results don't depend on it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from processes import HERE, environment

import metajax
from metajax.parallel import _sharding as sharding

PARAMS = {"body": {"kernel": jnp.ones((6, 4, 4)), "bias": jnp.ones(4)}, "odd": jnp.ones((3, 5))}


def specs(params):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(params)]


@pytest.mark.ci
@pytest.mark.slow
def test_on_many_devices_as_on_one():
    # CPU devices that wait for one another need threads to do so: more than this machine's cores.
    variables = environment(JAX_NUM_CPU_DEVICES="8", NPROC="16")
    script = str(HERE / "many_devices.py")
    subprocess.run([sys.executable, script], check=True, env=variables, timeout=1200)


def test_the_largest_axis_that_divides_is_split_and_small_leaves_are_not():
    mesh = metajax.task_mesh(4, model=2)
    assert mesh.shape == {"tasks": 1, "model": 2}
    bias, kernel, odd = specs(metajax.shard_params(PARAMS, mesh, min_size=5))
    assert bias == odd == PartitionSpec()
    assert kernel == PartitionSpec("model")
    bias, kernel, _ = specs(metajax.shard_params(PARAMS, mesh, min_size=0))
    assert bias == PartitionSpec("model")
    square = metajax.shard_params(jnp.ones((3, 4, 4)), mesh, min_size=0)
    assert square.sharding.spec == PartitionSpec(None, None, "model")


def test_a_rule_says_what_is_split():
    mesh = metajax.task_mesh(4, model=2)
    rule = lambda path, leaf: PartitionSpec(None, "model") if "kernel" in path else PartitionSpec()
    placed = metajax.shard_params(PARAMS, mesh, rule)
    assert specs(placed) == [PartitionSpec(), PartitionSpec(None, "model"), PartitionSpec()]
    assert {part.data.shape for part in placed["body"]["kernel"].addressable_shards} == {(6, 2, 4)}


def test_what_an_optimizer_keeps_of_a_parameter_is_placed_as_it_is():
    mesh = metajax.task_mesh(4, model=2)
    params = metajax.shard_params(PARAMS, mesh, min_size=5)
    optimizer = optax.multi_transform(
        {"learns": optax.adam(1e-3), "stays": optax.set_to_zero()},
        {"body": "learns", "odd": "stays"},
    )
    state = sharding.placed_like(optimizer.init, params, mesh)
    jax.tree.map(np.testing.assert_array_equal, state, optimizer.init(PARAMS))
    split = [leaf.shape for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
    assert split == [(6, 4, 4), (6, 4, 4)]
    assert sharding.placement_of(PARAMS, mesh) is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: metajax.task_mesh(4, model=3), "model, 3, needs at least as many devices, but"),
        (lambda: metajax.task_mesh(4, model=0), "model must be at least 1, got 0"),
        (
            lambda: metajax.task_mesh(4, devices=[]),
            "devices must hold at least one device, got none",
        ),
        (
            lambda: metajax.shard_params(PARAMS, metajax.task_mesh(2)),
            "mesh must have an axis 'model'",
        ),
        (
            lambda: metajax.shard_params(PARAMS, Mesh(np.array(jax.devices()), ("data",))),
            "mesh must have the axis 'tasks', or the axes 'tasks' and 'model'",
        ),
        (
            lambda: metajax.shard_params(PARAMS, metajax.task_mesh(2, model=2), min_size=-1),
            "min_size must be at least 0, got -1",
        ),
        *(
            (
                lambda spec=spec: metajax.shard_params(
                    {"odd": jnp.ones((3, 5))}, metajax.task_mesh(2, model=2), lambda *_: spec
                ),
                f"rule returned .* for 'odd', {message}",
            )
            for spec, message in (
                (PartitionSpec("model"), "but the 2 devices of the model axis don't divide"),
                (PartitionSpec("tasks"), "but only 'model' can split parameters"),
                (PartitionSpec(None, None, None), "which has more entries than"),
            )
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(metajax.ArgumentError, match=message):
        build()
