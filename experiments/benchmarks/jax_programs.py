"""The meta-step in JAX: as metajax ships it, and with ordinary Flax convolutions under ``vmap``."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments.benchmarks.workload import (
    LAYERS,
    NORM_EPSILON,
    Arrays,
    Program,
    Weights,
    Workload,
    initial_weights,
    random_episodes,
)
from metajax.models import Conv4, adapts_in_maml

METAJAX = "metajax"

MetaGradient = Callable[[Any, metajax.Episode], tuple[Any, jax.Array]]


class OrdinaryConv4(nn.Module):
    """The network as anyone would write it in Flax: ``flax.linen.Conv`` and batch statistics."""

    n_way: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[images, n_way]`` of images ``[images, height, width, 1]``."""
        for layer in range(LAYERS):
            x = nn.Conv(self.features, (3, 3), strides=2, padding="SAME", name=f"conv_{layer}")(x)
            x = nn.BatchNorm(
                use_running_average=False,
                epsilon=NORM_EPSILON,
                use_scale=False,
                name=f"norm_{layer}",
            )(x)
            x = nn.relu(x)
        return nn.Dense(self.n_way, name="head")(x.mean(axis=(1, 2)))


def to_tree(weights: Weights) -> dict[str, dict[str, jax.Array]]:
    """The weights as Flax's nested dict."""
    tree: dict[str, dict[str, jax.Array]] = {}
    for name, value in weights.items():
        module, leaf = name.split("/")
        tree.setdefault(module, {})[leaf] = jnp.asarray(value)
    return tree


def to_weights(tree: dict[str, dict[str, jax.Array]]) -> Weights:
    """``to_tree`` undone."""
    return {
        f"{module}/{leaf}": np.asarray(value)
        for module, leaves in tree.items()
        for leaf, value in leaves.items()
    }


def ordinary_gradient(workload: Workload, *, of_the_mean: bool) -> MetaGradient:
    """With an unrolled inner loop and all tasks under one ``vmap``.

    Args:
        workload: the meta-step.
        of_the_mean: whether the mean loss of the ``vmap``ped tasks is differentiated, as is usual;
            if not, each task's gradient is taken under the ``vmap``, which a CPU does faster.
    """
    module = OrdinaryConv4(workload.n_way, workload.features)

    def loss_fn(params, inputs, targets):
        logits, _ = module.apply({"params": params}, inputs, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def task_loss(params, episode):
        shifts = {name: leaf for name, leaf in params.items() if name.startswith("norm_")}
        adapted = {name: leaf for name, leaf in params.items() if name not in shifts}
        for _ in range(workload.inner_steps):
            inner = jax.grad(lambda a: loss_fn({**a, **shifts}, *episode.support))(adapted)
            adapted = jax.tree.map(lambda p, g: p - workload.inner_rate * g, adapted, inner)
        return loss_fn({**adapted, **shifts}, *episode.query)

    def gradient_of_the_mean(params, episodes):
        mean_loss = lambda p: jax.vmap(task_loss, in_axes=(None, 0))(p, episodes).mean()
        loss, gradient = jax.value_and_grad(mean_loss)(params)
        return gradient, loss

    def mean_of_gradients(params, episodes):
        outcome = jax.vmap(jax.value_and_grad(task_loss), in_axes=(None, 0))(params, episodes)
        loss, gradient = jax.tree.map(lambda leaf: leaf.mean(axis=0), outcome)
        return gradient, loss

    return gradient_of_the_mean if of_the_mean else mean_of_gradients


def metajax_learner(workload: Workload) -> metajax.Learner:
    """metajax as shipped: its network, and its own choice of gradient mode."""
    module = Conv4(workload.n_way, features=workload.features)

    def apply(params, inputs) -> Any:
        return module.apply({"params": params}, inputs)

    return metajax.maml(
        metajax.losses.cross_entropy(apply),
        optax.sgd(workload.inner_rate),
        steps=workload.inner_steps,
        trainable=adapts_in_maml,
    )


def metajax_gradient(workload: Workload) -> MetaGradient:
    """metajax's meta-gradient of given episodes, in its own choice of chunks."""
    meta_gradient = metajax.meta_gradient(metajax_learner(workload))

    def gradient_fn(params, episodes):
        gradient, metrics = meta_gradient(params, episodes)
        return gradient, metrics["loss"]

    return gradient_fn


def compile_step(
    gradient_fn: MetaGradient, workload: Workload, params: Any, episodes: metajax.Episode
) -> tuple[Any, Any, float]:
    """Compiles the meta-step ahead of time.

    Returns:
        The compiled ``step((params, opt_state), episodes) -> ((params, opt_state), loss)`` that
        takes over its state's buffers, the optimizer, and the seconds to trace and compile.
    """
    optimizer = optax.adam(workload.outer_rate)

    def step(state, episodes):
        params, opt_state = state
        gradient, loss = gradient_fn(params, episodes)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    start = time.perf_counter()
    state = (params, optimizer.init(params))
    compiled = jax.jit(step, donate_argnums=0).lower(state, episodes).compile()
    return compiled, optimizer, time.perf_counter() - start


def as_episodes(arrays: Arrays) -> metajax.Episode:
    """The meta-batch on JAX's device."""
    inputs = [jnp.asarray(array) for array in arrays]
    return metajax.Episode(metajax.Batch(*inputs[:2]), metajax.Batch(*inputs[2:]))


def _temporary_bytes(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)


@functools.cache
def _compiled_gradient(workload: Workload) -> Any:
    """``metajax_gradient`` on one device, compiled once for both forms of the program."""
    params = to_tree(initial_weights(workload, 0))
    episodes = as_episodes(random_episodes(workload, 0))
    return jax.jit(metajax_gradient(workload)).lower(params, episodes).compile()


def metajax_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, shared: bool
) -> Program:
    """The step of ``metajax.meta_trainer``; its sampler draws from the episodes.

    The tasks are shared between the devices, or one device computes them all.
    """
    params, episodes = to_tree(weights), as_episodes(arrays)

    def sample(key):
        index = jax.random.randint(key, (), 0, workload.tasks)
        return jax.tree.map(lambda leaf: leaf[index], episodes)

    trainer = metajax.meta_trainer(
        metajax_learner(workload),
        optax.adam(workload.outer_rate),
        sample,
        meta_batch=workload.tasks,
        mesh=metajax.task_mesh(workload.tasks) if shared else None,
    )

    compiled = _compiled_gradient(workload)

    def gradient() -> tuple[Weights, float]:
        tree, loss = compiled(params, episodes)
        return to_weights(tree), float(loss)

    def init():
        return trainer.init(params, jax.random.key(0))

    def step(state):
        state, _ = trainer.step(state)
        return jax.block_until_ready(state)

    start = time.perf_counter()
    step(init())
    seconds = time.perf_counter() - start
    name = METAJAX if shared else f"{METAJAX}, one device"
    return Program(name, gradient, init, step, seconds, _temporary_bytes(compiled))


def ordinary_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, of_the_mean: bool = False
) -> Program:
    """``flax.linen.Conv`` under ``vmap``: what JAX does without metajax."""
    gradient_fn = ordinary_gradient(workload, of_the_mean=of_the_mean)
    params, episodes = to_tree(weights), as_episodes(arrays)
    compiled, optimizer, seconds = compile_step(gradient_fn, workload, params, episodes)

    def gradient() -> tuple[Weights, float]:
        tree, loss = jax.jit(gradient_fn)(params, episodes)
        return to_weights(tree), float(loss)

    def init():
        # A step takes over the buffers it is given, so each state has its own.
        own = jax.tree.map(jnp.copy, params)
        return own, optimizer.init(own)

    def step(state):
        state, _ = compiled(state, episodes)
        return jax.block_until_ready(state)

    form = "gradient of the mean" if of_the_mean else "mean of gradients"
    name = f"JAX, flax.linen.Conv under vmap, {form}"
    return Program(name, gradient, init, step, seconds, _temporary_bytes(compiled))


def compile_seconds(
    workload: Workload, weights: Weights, arrays: Arrays, *, inner_steps: int
) -> float:
    """Seconds to trace and compile metajax's meta-step with this many inner steps."""
    workload = dataclasses.replace(workload, inner_steps=inner_steps)
    gradient_fn = metajax_gradient(workload)
    return compile_step(gradient_fn, workload, to_tree(weights), as_episodes(arrays))[-1]
