"""The meta-step in JAX: as metajax ships it, and with ordinary Flax convolutions under ``vmap``."""

import dataclasses
import functools
import statistics
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
    MLP_WIDTHS,
    ORDINARY,
    Arrays,
    Compilation,
    Program,
    Weights,
    Workload,
    adapts,
    initial_weights,
    random_episodes,
)
from metajax.models import MLP, Algorithm, Conv4, adapts_in_maml, max_pool

METAJAX = "metajax"
ADAM_B1 = 0.9
"""Optax's default: after one step, Adam's first moment is (1 - b1) times the gradient."""

MetaGradient = Callable[[Any, metajax.Episode], tuple[Any, jax.Array]]


class OrdinaryNetwork(nn.Module):
    """The network as anyone would write it in Flax: ``flax.linen.Conv`` and batch statistics.

    Its pooling alone is metajax's: the second derivatives of ``flax.linen.max_pool`` take minutes
    to compile and gigabytes.
    """

    workload: Workload

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[images, n_way]`` of images ``[images, height, width, channels]``."""
        workload = self.workload
        if workload.form == "mlp":
            x = x.reshape(x.shape[0], -1)
            for layer, width in enumerate(MLP_WIDTHS):
                x = nn.relu(nn.Dense(width, name=f"dense_{layer}")(x))
            return nn.Dense(workload.n_way, name="head")(x)
        pooled = workload.form == "pool"
        for layer in range(LAYERS):
            x = nn.Conv(
                workload.features,
                (3, 3),
                strides=1 if pooled else 2,
                padding="SAME",
                name=f"conv_{layer}",
            )(x)
            x = nn.BatchNorm(
                use_running_average=False,
                epsilon=workload.norm_epsilon,
                use_scale=pooled,
                name=f"norm_{layer}",
            )(x)
            x = nn.relu(x)
            if pooled:
                x = max_pool(x)
        x = x.reshape(x.shape[0], -1) if pooled else x.mean(axis=(1, 2))
        return nn.Dense(workload.n_way, name="head")(x)


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
    module = OrdinaryNetwork(workload)

    def loss_fn(params, inputs, targets):
        logits, _ = module.apply({"params": params}, inputs, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def task_loss(params, episode):
        frozen = {name: leaf for name, leaf in params.items() if not adapts(name)}
        adapted = {name: leaf for name, leaf in params.items() if adapts(name)}
        for _ in range(workload.inner_steps):
            inner = jax.grad(lambda a: loss_fn({**a, **frozen}, *episode.support))(adapted)
            adapted = jax.tree.map(lambda p, g: p - workload.inner_rate * g, adapted, inner)
        return loss_fn({**adapted, **frozen}, *episode.query)

    def gradient_of_the_mean(params, episodes):
        mean_loss = lambda p: jax.vmap(task_loss, in_axes=(None, 0))(p, episodes).mean()
        loss, gradient = jax.value_and_grad(mean_loss)(params)
        return gradient, loss

    def mean_of_gradients(params, episodes):
        outcome = jax.vmap(jax.value_and_grad(task_loss), in_axes=(None, 0))(params, episodes)
        loss, gradient = jax.tree.map(lambda leaf: leaf.mean(axis=0), outcome)
        return gradient, loss

    return gradient_of_the_mean if of_the_mean else mean_of_gradients


def metajax_learner(
    workload: Workload,
    *,
    mode: metajax.GradientMode | None = None,
    convolution: Algorithm = "auto",
) -> metajax.Learner:
    """metajax as shipped: its network, and its own choices unless others are given."""
    if workload.form == "mlp":
        module = MLP(MLP_WIDTHS, workload.n_way)
    else:
        module = Conv4(
            workload.n_way,
            features=workload.features,
            form=workload.form,
            convolution=convolution,
        )

    def apply(params, inputs) -> Any:
        return module.apply({"params": params}, inputs)

    return metajax.maml(
        metajax.losses.cross_entropy(apply),
        optax.sgd(workload.inner_rate),
        steps=workload.inner_steps,
        mode=mode,
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
) -> tuple[Any, Compilation]:
    """Compiles the meta-step ahead of time.

    Returns:
        ``step((params, opt_state), episodes) -> ((params, opt_state), loss)``, which takes over its
        state's buffers, and what compiling it took.
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
    return compiled, Compilation(time.perf_counter() - start, temporary_bytes(compiled))


def as_episodes(arrays: Arrays) -> metajax.Episode:
    """The meta-batch on JAX's device."""
    inputs = [jnp.asarray(array) for array in arrays]
    return metajax.Episode(metajax.Batch(*inputs[:2]), metajax.Batch(*inputs[2:]))


def temporary_bytes(compiled: Any) -> int | None:
    """XLA's temporary memory of a compiled function; None where it doesn't tell."""
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)


def metajax_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, shared: bool = True
) -> Program:
    """The step of ``metajax.meta_trainer``; its sampler draws from the episodes.

    The tasks are shared between the devices, or one device computes them all. The meta-gradient
    that is compared, and the temporary memory, are of one device.
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

    @functools.cache
    def compiled_gradient():
        return jax.jit(metajax_gradient(workload)).lower(params, episodes).compile()

    def gradient() -> tuple[Weights, float]:
        tree, loss = compiled_gradient()(params, episodes)
        return to_weights(tree), float(loss)

    def init():
        return trainer.init(params, jax.random.key(0))

    def step(state):
        state, _ = trainer.step(state)
        return jax.block_until_ready(state)

    def compile_all():
        start = time.perf_counter()
        step(init())
        seconds = time.perf_counter() - start
        return Compilation(seconds, temporary_bytes(compiled_gradient()) if shared else None)

    name = METAJAX if shared else f"{METAJAX}, one device"
    return Program(name, gradient, compile_all, init, step)


def ordinary_program(
    workload: Workload, weights: Weights, arrays: Arrays, *, of_the_mean: bool = False
) -> Program:
    """Ordinary Flax layers under ``vmap``: what JAX does without metajax."""
    params, episodes = to_tree(weights), as_episodes(arrays)

    @functools.cache
    def compiled_step():
        gradient_fn = ordinary_gradient(workload, of_the_mean=of_the_mean)
        return compile_step(gradient_fn, workload, params, episodes)

    def gradient() -> tuple[Weights, float]:
        # Compiling takes long enough once: the gradient is read from Adam's first moment.
        (_, opt_state), loss = compiled_step()[0](init(), episodes)
        tree = jax.tree.map(lambda moment: moment / (1 - ADAM_B1), opt_state[0].mu)
        return to_weights(tree), float(loss)

    def init():
        # A step takes over the buffers it is given, so each state has its own.
        copied = jax.tree.map(jnp.copy, params)
        return copied, optax.adam(workload.outer_rate).init(copied)

    def step(state):
        state, _ = compiled_step()[0](state, episodes)
        return jax.block_until_ready(state)

    name = (
        ORDINARY.replace("mean of gradients", "gradient of the mean") if of_the_mean else ORDINARY
    )
    return Program(name, gradient, lambda: compiled_step()[1], init, step)


def compile_seconds(
    workload: Workload, weights: Weights, arrays: Arrays, *, inner_steps: int
) -> float:
    """Seconds to trace and compile metajax's meta-step with this many inner steps."""
    workload = dataclasses.replace(workload, inner_steps=inner_steps)
    gradient_fn = metajax_gradient(workload)
    _, compilation = compile_step(gradient_fn, workload, to_tree(weights), as_episodes(arrays))
    assert compilation.seconds is not None
    return compilation.seconds


def measure_gradient(
    workload: Workload, learner: metajax.Learner, *, tasks_per_chunk: int, timed: int
) -> dict[str, Any]:
    """A meta-gradient's temporary memory in bytes, and median milliseconds of ``timed`` runs.

    With ``timed=0`` nothing is run.
    """
    gradient_fn = metajax.meta_gradient(learner, tasks_per_chunk=tasks_per_chunk)
    params = to_tree(initial_weights(workload, 0))
    episodes = as_episodes(random_episodes(workload, 1))
    compiled = jax.jit(gradient_fn).lower(params, episodes).compile()
    seconds = []
    if timed:
        jax.block_until_ready(compiled(params, episodes))
    for _ in range(timed):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, episodes))
        seconds.append(time.perf_counter() - start)
    return {
        "temporary_bytes": temporary_bytes(compiled),
        "median_ms": 1e3 * statistics.median(seconds) if seconds else None,
    }
