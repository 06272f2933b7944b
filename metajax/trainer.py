"""The outer loop: sampling, meta-gradient and update as one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from metajax import _checks, trees
from metajax import non_finite as _non_finite
from metajax.errors import ArgumentError
from metajax.learners._checked import checked_episode, checked_learner
from metajax.learners.base import Learner
from metajax.meta_gradient import meta_gradient
from metajax.parallel import chunks, devices, sharding
from metajax.parallel.chunks import TasksPerChunk
from metajax.types import Episode, Metrics, Params, PyTree, Sampler


class TrainState(NamedTuple):
    """All that a run needs to go on.

    Attributes:
        params: the learner's meta-parameters.
        optimizer_state: the outer optimizer's state.
        key: the run's random key (typed); it never changes, episodes are drawn from it by folding
            in the step and the task.
        step: how many outer steps were taken, int32 scalar.
    """

    params: Params
    optimizer_state: PyTree
    key: jax.Array
    step: jax.Array


class Trainer(NamedTuple):
    """The outer loop as three functions.

    Attributes:
        init: ``init(params, key) -> TrainState``; copies the model's parameters.
        step: ``step(state) -> (state, metrics)``, one outer step, compiled; ``state`` is donated.
        run: ``run(state, steps) -> (state, metrics)``, many outer steps, every metric ``[steps]``;
            ``state`` is donated. It is one dispatch, compiled once for each value of ``steps``.

    Both take ``data=`` in place of what ``meta_trainer`` was given: arrays of the same shapes and
    dtypes, for which nothing is compiled again.
    """

    init: Callable[[Params, jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    run: Callable[..., tuple[TrainState, Metrics]]


def hoist_constants(
    sample: Callable[..., Episode], *data: PyTree
) -> tuple[Callable[..., Episode], PyTree]:
    """Turns the arrays that a sampler closes over into an argument.

    A data set that is a constant of the compiled program would be written into it, copied, and
    perhaps folded at compile time.

    Args:
        sample: ``sample(key, *data) -> Episode``.
        *data: examples of its further arguments.

    Returns:
        ``(function, constants)``, with ``function(constants, key, *data)`` equal to
        ``sample(key, *data)``.

    Raises:
        ArgumentTypeError: if ``sample`` doesn't return an ``Episode`` of arrays.
    """

    def checked(key, *data):
        return checked_episode("what sample returns", sample(key, *data))

    jaxpr, shape = jax.make_jaxpr(checked, return_shape=True)(jax.random.key(0), *data)
    treedef = jax.tree.structure(shape)

    def function(constants, key, *data):
        leaves = jax.tree.leaves(data)
        return treedef.unflatten(jax.core.eval_jaxpr(jaxpr.jaxpr, constants, key, *leaves))

    return function, [jnp.asarray(constant) for constant in jaxpr.consts]


def episode_keys(
    key: jax.Array, step: jax.Array | int, n_tasks: int, first: jax.Array | int = 0
) -> jax.Array:
    """The keys of one step's episodes, from ``first`` on.

    That of episode i is ``key`` folded with step and with i.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(first + jnp.arange(n_tasks))


def meta_trainer(
    learner: Learner | Callable[[jax.Array], Learner],
    optimizer: optax.GradientTransformation,
    sample: Sampler | Callable[[jax.Array, PyTree], Episode],
    *,
    meta_batch: int,
    data: PyTree = None,
    tasks_per_chunk: TasksPerChunk = None,
    memory_budget: int | None = None,
    carry: Callable[[Params, Metrics], tuple[Params, Metrics]] | None = None,
    mesh: Mesh | None = None,
    non_finite: _non_finite.NonFinite = None,
) -> Trainer:
    """Builds the outer loop of a learner.

    One step draws ``meta_batch`` episodes, computes the meta-gradient and applies the optimizer,
    all in one program.

    Args:
        learner: the algorithm; or ``learner(step) -> Learner`` for one that changes with the
            meta-step (int32 scalar), such as ``metajax.learners.warm_start`` or annealed weights.
        optimizer: the outer optimizer, any Optax transformation.
        sample: ``sample(key) -> Episode``, pure JAX. Arrays that it closes over, such as the data
            set, stay on the device and are not copied into the program.
        meta_batch: how many tasks an outer step takes.
        data: arrays that ``sample`` gets as its second argument, if any; those that change between
            calls of ``step`` and ``run``, which take others of the same shapes.
        tasks_per_chunk: how many of them are computed together; see ``metajax.meta_gradient``.
        memory_budget: bytes that these may take, with ``tasks_per_chunk="auto"``; as there.
        carry: ``carry(params, metrics) -> (params, metrics)``, applied after each update, for what
            is carried along without a gradient, such as running statistics that the loss returned
            among its metrics (where they are means over tasks).
        mesh: the devices that share the tasks, from ``metajax.task_mesh``; JAX's default device if
            None. Each draws and computes its own tasks, and all take the same update. Where they
            are a CPU's cores, the gradients meet on the host after each step, and ``run`` is as
            many dispatches as steps. With a model axis, parameters that ``metajax.shard_params``
            placed stay split along it, and the optimizer's state with them. Over several processes,
            all of them call the same functions with the same values.
        non_finite: what a step does whose loss or meta-gradient, means over its tasks, has a NaN or
            an infinity. None: nothing, it is applied as it is. ``"skip"``: parameters and
            optimizer state stay, the step is counted, the next draws other tasks. ``"clip"``:
            elements of the gradient are replaced, NaN by 0, an infinity by the largest finite
            element of its leaf with the infinity's sign, and the update is applied; of a loss that
            isn't finite while its gradient is, nothing but the metric tells. ``"raise"``: the state
            stays at that before the step, later steps of the call change nothing, and
            ``NonFiniteError`` is raised after it; each call waits for its end. Under each of them
            an update that would make finite parameters or optimizer state NaN or infinite isn't
            applied either.

    Returns:
        A ``Trainer``. Its metrics are means over tasks: ``"loss"``, what the learner reports, and
        ``"grad_norm"``, the meta-gradient's global norm (after ``"clip"``). With ``non_finite``
        also ``"non_finite"``, int32: 1 for a bad step, 0 for another; with ``"clip"``, how many
        numbers were not finite.

    Raises:
        ArgumentError: if ``meta_batch``, ``tasks_per_chunk`` or ``steps`` isn't a positive integer,
            or the devices can't share ``meta_batch`` equally, or ``data`` of a call has other
            shapes, or its state was consumed before, or ``non_finite`` is another word.
        ArgumentTypeError: if ``optimizer`` isn't an Optax transformation, ``sample`` doesn't return
            an ``Episode``, or another argument is of a wrong type.
        NonFiniteError: from ``step`` and ``run``, with ``non_finite="raise"``; its ``state`` is
            that before the bad step.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metajax
        >>> def sample(key):
        ...     centre = jax.random.normal(key)
        ...     return metajax.Episode(centre, centre)
        >>> learner = metajax.maml(lambda p, c: (p - c) ** 2, optax.sgd(0.1), steps=1)
        >>> trainer = metajax.meta_trainer(learner, optax.adam(0.1), sample, meta_batch=8)
        >>> state = trainer.init(jnp.array(5.0), jax.random.key(0))
        >>> state, metrics = trainer.run(state, 100)
        >>> metrics["loss"].shape, bool(abs(state.params) < 0.5)
        ((100,), True)
    """
    if not isinstance(learner, Learner):
        _checks.function("learner", learner, "of the meta-step, or a Learner such as maml(...)")
    _checks.optimizer("optimizer", optimizer)
    _checks.function("sample", sample, "sample(key)")
    _checks.optional_function("carry", carry, "carry(params, metrics)")
    meta_batch = _checks.positive_int("meta_batch", meta_batch)
    own = devices.equal_share("meta_batch", meta_batch, mesh)
    chunks.check(tasks_per_chunk, memory_budget)
    _non_finite.check(non_finite)

    def learner_at(step) -> Learner:
        if isinstance(learner, Learner):
            return learner
        return checked_learner("what learner(step) returns", learner(step))

    def as_arrays(data: PyTree) -> PyTree:
        return jax.tree.map(jnp.asarray, _checks.arrays("data", data))

    extra = () if data is None else (as_arrays(data),)
    draw, hoisted = hoist_constants(sample, *extra)
    # What the programs take beside the state: what sample closes over, and its data.
    constants = devices.replicate((hoisted, extra), mesh)

    def init(params: Params, key: jax.Array) -> TrainState:
        _checks.arrays("params", params, some=True)
        if not jnp.issubdtype(_checks.key("key", key).dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        # Steps donate their state: what the caller passed must not be what they consume.
        params, key = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (params, key))
        params = trees.strongly_typed(learner_at(jnp.zeros((), jnp.int32)).init(params))
        optimizer_state = sharding.placed_like(optimizer.init, params, mesh)
        state = TrainState(params, optimizer_state, key, jnp.zeros((), jnp.int32))
        return devices.replicate(state, mesh)

    def means_of_step(state: TrainState, constants: PyTree) -> tuple[Params, Metrics]:
        """Gradient and metrics: their means over this device's tasks."""
        keys = episode_keys(state.key, state.step, own, devices.first_task(own, mesh))
        episodes = jax.vmap(lambda key: draw(constants[0], key, *constants[1]))(keys)
        gradient_fn = meta_gradient(
            learner_at(state.step), tasks_per_chunk=tasks_per_chunk, memory_budget=memory_budget
        )
        return gradient_fn(state.params, episodes)

    def update(state: TrainState, means: tuple[Params, Metrics]) -> tuple[TrainState, Metrics]:
        gradient, metrics = means
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if carry is not None:
            params, metrics = carry(params, metrics)
        metrics = {**metrics, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(params, optimizer_state, state.key, state.step + 1), metrics

    halves = _non_finite.guard(non_finite, means_of_step, update)
    if mesh is not None and devices.meets_on_host(mesh):
        step, run = _a_program_a_device(*halves, mesh)
    else:
        step, run = _one_program(*halves, mesh)
    place = functools.partial(devices.replicate, mesh=mesh)
    step, run = (_non_finite.watch(non_finite, program, place) for program in (step, run))

    def with_data(data: PyTree) -> PyTree:
        if data is None:
            return constants
        arrays = (as_arrays(data),)
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x) for x in (extra, arrays)]
        if shapes[0] != shapes[1]:
            raise ArgumentError(f"data must be arrays like {shapes[0]}, got {shapes[1]}.")
        return constants[0], devices.replicate(arrays, mesh)

    def run_steps(state, steps, *, data=None):
        steps = _checks.positive_int("steps", steps)
        return run(_unspent(state), with_data(data), steps)

    return Trainer(
        init, lambda state, *, data=None: step(_unspent(state), with_data(data)), run_steps
    )


def _unspent(state: Any) -> TrainState:
    """The state, if it is one, and no earlier call has consumed it."""
    wanted = "a TrainState, from trainer.init or an earlier call"
    _checks.instance("state", state, TrainState, wanted)
    step = state.step
    if isinstance(step, jax.Array) and not isinstance(step, jax.core.Tracer) and step.is_deleted():
        raise ArgumentError(
            "state was consumed by an earlier call of step or run: go on with the one that it "
            "returned, or copy a state before it is passed."
        )
    return state


def _one_program(means_of_step: Callable, update: Callable, mesh: Mesh | None):
    """``step`` and ``run`` as one program each, on all devices of the mesh."""
    everywhere = PartitionSpec()
    waits = mesh is not None and devices.on_cpu(mesh)

    @functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
    def program(state, constants, steps, placement):
        def outer_step(state, constants):
            means = devices.mean(means_of_step(state, constants), mesh)
            state, metrics = update(state, means)
            return sharding.keep(state, placement, mesh), metrics

        def steps_of(state, constants):
            if steps is None:
                return outer_step(state, constants)
            return jax.lax.scan(lambda s, _: outer_step(s, constants), state, length=steps)

        shared = devices.share(steps_of, mesh, in_specs=everywhere, out_specs=everywhere)
        return sharding.kept_by_program(shared(state, constants), placement, mesh)

    def call(state, constants, steps=None):
        outcome = program(state, constants, steps, sharding.placement_of(state, mesh))
        # CPU devices wait for one another in XLA's few threads: with many calls in flight these
        # were seen to run out, and the program to hang.
        return jax.block_until_ready(outcome) if waits else outcome

    return call, call


def _a_program_a_device(means_of_step: Callable, update: Callable, mesh: Mesh):
    """``step`` and ``run`` where devices are a CPU's cores: they meet on the host.

    A program that sums over CPU devices waits for the others inside XLA's few threads, and was seen
    to hang. Here none waits for another.
    """
    everywhere, each = PartitionSpec(), PartitionSpec(devices.AXIS)
    # Vector to gradient and metrics. Set where a state's first program is traced, and so before
    # its second program is, which alone uses it.
    unravel: Callable[[jax.Array], PyTree] = lambda vector: vector

    @jax.jit
    def means_of_devices(state, constants):
        def own_means(state, constants):
            nonlocal unravel
            # One array to copy, not one for each leaf: that takes half a millisecond, not two.
            vector, unravel = ravel_pytree(means_of_step(state, constants))
            return vector[None]

        shared = devices.share(own_means, mesh, in_specs=everywhere, out_specs=each)
        return shared(state, constants)

    @functools.partial(jax.jit, donate_argnums=0)
    def update_everywhere(state, vector):
        def own_update(state, vector):
            return update(state, unravel(vector))

        shared = devices.share(own_update, mesh, in_specs=everywhere, out_specs=everywhere)
        return shared(state, vector)

    def step(state, constants):
        vectors = jax.device_get(means_of_devices(state, constants))
        return update_everywhere(state, devices.replicate(vectors.mean(axis=0), mesh))

    def run(state, constants, steps):
        history = []
        for _ in range(steps):
            state, metrics = step(state, constants)
            history.append(metrics)
        history = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(history))
        return state, devices.replicate(history, mesh)

    return step, run
