"""Sharing tasks between devices changes who computes, not what is computed."""

import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import toy
from compilations import no_compilation
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from processes import environment

import metajax

LEARNER = metajax.maml(toy.loss_fn, optax.sgd(0.1), steps=2)


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        *jax.device_get((a, b)),
    )


def make_trainer(mesh, **options):
    options = {"meta_batch": 6} | options
    sample = toy.make_sampler()
    return metajax.meta_trainer(LEARNER, optax.adam(1e-2), sample, mesh=mesh, **options)


def check_the_meta_gradient_of_sharded_episodes():
    """JAX itself shares the work where only the episodes' placement says so."""
    episodes = jax.vmap(toy.make_sampler())(jax.random.split(jax.random.key(0), 8))
    gradient_fn = jax.jit(metajax.meta_gradient(LEARNER, tasks_per_chunk=8))
    one = gradient_fn(toy.init_params(), episodes)
    mesh = metajax.task_mesh(8)
    assert mesh.size == 2
    sharded = jax.device_put(episodes, NamedSharding(mesh, PartitionSpec("tasks")))
    params = jax.device_put(toy.init_params(), NamedSharding(mesh, PartitionSpec()))
    assert_close(one, gradient_fn(params, sharded))


def test_training_is_that_of_one_device():
    outcomes = []
    for mesh in (None, metajax.task_mesh(6)):
        trainer = make_trainer(mesh)
        state, metrics = trainer.run(trainer.init(toy.init_params(), jax.random.key(3)), 4)
        stepped, last = trainer.step(state)
        outcomes.append((metrics, last, stepped.params, stepped.step))
    assert_close(*outcomes)


@pytest.mark.ci
@pytest.mark.slow
def test_programs_that_sum_over_devices_compute_what_one_device_does():
    # What accelerators run. CPU devices that wait for one another need spare threads not to hang.
    variables = environment(JAX_NUM_CPU_DEVICES="2", NPROC="8")
    code = (
        "import test_devices, test_non_finite, metajax; "
        "metajax.parallel._cpu.on_cpu = lambda mesh: False; "
        "test_devices.check_the_meta_gradient_of_sharded_episodes(); "
        "test_devices.test_training_is_that_of_one_device(); "
        "test_devices.test_shared_training_compiles_once_and_moves_nothing(); "
        "test_non_finite.check_skip(metajax.task_mesh(4), 'both'); "
        "test_non_finite.check_raise(metajax.task_mesh(4), 'both', '')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=variables, timeout=300)


def test_shared_training_compiles_once_and_moves_nothing():
    trainer = make_trainer(metajax.task_mesh(6))
    state, _ = trainer.run(trainer.init(toy.init_params(), jax.random.key(3)), 3)
    with no_compilation(), jax.transfer_guard("disallow"):
        state, metrics = trainer.run(state, 3)
    assert len(metrics["loss"].devices()) == 2


@pytest.mark.parametrize("episodes", [6, 7])
def test_scores_are_those_of_one_device(episodes):
    sample, key = toy.make_sampler(), jax.random.key(1)
    one, shared = (
        metajax.evaluate(LEARNER, toy.init_params(), sample, key, episodes=episodes, mesh=mesh)
        for mesh in (None, metajax.task_mesh(2))
    )
    assert one.episodes == shared.episodes == episodes
    assert_close(shared.values, one.values)


def test_scores_of_given_episodes_are_those_of_one_device():
    episodes = jax.vmap(toy.make_sampler())(jax.random.split(jax.random.key(1), 6))
    one, shared = (
        metajax.evaluate_episodes(LEARNER, toy.init_params(), episodes, mesh=mesh)
        for mesh in (None, metajax.task_mesh(6))
    )
    assert_close(shared.values, one.values)
    mesh = Mesh(np.array(2 * jax.devices()), ("tasks",))
    with pytest.raises(ValueError, match="episodes, 6, can't be shared equally by the 4 devices"):
        metajax.evaluate_episodes(LEARNER, toy.init_params(), episodes, mesh=mesh)


@pytest.mark.parametrize(("n_tasks", "count"), [(32, 2), (25, 1), (1, 1)])
def test_a_mesh_has_as_many_devices_as_can_share_the_tasks(n_tasks, count):
    assert metajax.task_mesh(n_tasks).size == count


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: metajax.task_mesh(0), "n_tasks must be at least 1, got 0"),
        (
            lambda: make_trainer(metajax.task_mesh(2), meta_batch=5),
            "meta_batch, 5, can't be shared equally by the 2 devices of mesh",
        ),
        (
            lambda: make_trainer(Mesh(np.array(jax.devices()), ("data",))),
            r"mesh must have the axis 'tasks', or the axes 'tasks' and 'model', got \('data',\)",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [({}, len(os.sched_getaffinity(0))), ({"JAX_NUM_CPU_DEVICES": "3"}, 3)],
)
def test_every_core_becomes_a_device_unless_the_user_chose(setting, expected):
    code = (
        "import jax, metajax, warnings; warnings.simplefilter('error'); "
        "metajax.use_every_core(); print(jax.device_count()); metajax.use_every_core()"
    )
    variables = os.environ | {"JAX_PLATFORMS": "cpu"} | setting
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, env=variables, capture_output=True, text=True
    )
    assert int(found.stdout) == expected


def test_asking_for_every_core_too_late_warns():
    code = (
        "import jax, metajax, metajax.parallel._cpu as cpu; cpu._cores = lambda: 7; jax.devices(); "
        "metajax.use_every_core()"
    )
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, env=variables, capture_output=True, text=True
    )
    assert "Call it before anything uses JAX, or set JAX_NUM_CPU_DEVICES=7." in found.stderr
