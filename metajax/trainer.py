"""The outer loop: sampling, adaptation, meta-gradient and update as one program."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from metajax import _checks, _non_finite, interop, trees
from metajax._non_finite import NonFinite
from metajax._samplers import HoistedSampler, SamplerArrays, episode_keys, typed_key
from metajax._task_means import task_means
from metajax.errors import ArgumentError
from metajax.learners.base import Learner
from metajax.parallel import TasksPerChunk
from metajax.parallel import _chunks as chunks
from metajax.parallel import _cpu as cpu
from metajax.parallel import _devices as devices
from metajax.parallel import _sharding as sharding
from metajax.types import Episode, Metrics, Params, PyTree, Sampler


class TrainState(NamedTuple):
    """Everything that a run needs to go on.

    Attributes:
        params: the learner's meta-parameters.
        optimizer_state: the outer optimizer's state.
        key: the run's random key (typed). It never changes: folded with the step and the task it
            gives each episode's key.
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
        episode_at: ``episode_at(key, step, index) -> Episode``: a task that a run with this key
            drew, in a step counted from 1, with its number in it counted from 0; for a look at one
            that ``NonFiniteError`` names.

    ``step``, ``run`` and ``episode_at`` take ``sample=``, another sampler to draw from, such as
    ``jax.tree_util.Partial(draw, arrays)``. It must have the structure, shapes and dtypes of the
    sampler that ``meta_trainer`` was given; then nothing is compiled again.
    """

    init: Callable[[Params, jax.Array], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    run: Callable[..., tuple[TrainState, Metrics]]
    episode_at: Callable[..., Episode]


def meta_trainer(
    learner: Learner | Callable[[jax.Array], Learner],
    optimizer: optax.GradientTransformation,
    sample: Sampler,
    *,
    meta_batch: int,
    trainable: trees.Trainable = None,
    tasks_per_chunk: TasksPerChunk = None,
    memory_budget: int | None = None,
    carry: Callable[[Params, Metrics], tuple[Params, Metrics]] | None = None,
    mesh: Mesh | None = None,
    non_finite: NonFinite = None,
) -> Trainer:
    """Builds the outer loop of a learner.

    One step draws ``meta_batch`` episodes, computes the meta-gradient and applies the optimizer,
    all in one program.

    Args:
        learner: the algorithm; or ``learner(step) -> Learner`` for one that changes with the
            meta-step (int32 scalar), such as ``metajax.learners.warm_start`` or annealed weights.
        optimizer: the outer optimizer, any Optax transformation; one that needs the loss, such as
            ``optax.contrib.reduce_on_plateau``, gets it as ``value=``, and the meta-gradient as
            ``grad=``.
        sample: ``sample(key) -> Episode``, pure JAX. Its arrays, such as a data set, are arguments
            of the program: those that a function closes over, and the leaves of a pytree such as
            ``jax.tree_util.Partial(draw, arrays)``, which calls of ``step`` and ``run`` may
            exchange.
        meta_batch: how many tasks an outer step takes.
        trainable: which leaves of the meta-parameters are learned; see ``metajax.trees.Trainable``.
            By default all parameters: of Flax collections not the running statistics, counters and
            keys. The optimizer sees the others neither in gradients nor in parameters, so that it
            doesn't decay them.
        tasks_per_chunk: how many of them are computed together; see ``metajax.meta_gradient``.
        memory_budget: see ``metajax.meta_gradient``.
        carry: ``carry(params, metrics) -> (params, metrics)``, applied after each update. It is for
            values without a gradient, such as running statistics that the loss returned among its
            metrics; these are means over tasks.
        mesh: the devices that share the tasks, from ``metajax.task_mesh``; JAX's default device if
            None. Each draws and computes its own tasks, and all take the same update. If they are
            a CPU's cores, the gradients meet on the host after each step, and ``run`` is as many
            dispatches as steps. With a model axis, parameters that ``metajax.shard_params`` split
            stay split, and the optimizer's state with them. Over several processes, all of them
            call the same functions with the same values.
        non_finite: what happens in a step whose loss or meta-gradient has a NaN or an infinity.

            - None: nothing; the update is applied as it is.
            - ``"skip"``: tasks whose own loss or gradient isn't finite are left out of the means.
              Where none is left, parameters and optimizer state stay; the step is counted, and the
              next one draws other tasks.
            - ``"clip"``: in the gradient, a NaN becomes 0, and an infinity the largest finite
              element of its leaf with the infinity's sign. A loss that isn't finite only counts in
              the metric.
            - ``"raise"``: the state stays at the one before the step, the call's later steps change
              nothing, and ``NonFiniteError`` is raised after it. It names the step and the tasks,
              which ``episode_at`` draws again. Each call waits for its end.

            Under each but None, an update that would make finite parameters or optimizer state NaN
            or infinite isn't applied either.

    Returns:
        A ``Trainer``. Its metrics are means over tasks: ``"loss"``, what the learner reports, and
        ``"grad_norm"``, the meta-gradient's global norm (after ``"clip"``). With ``non_finite``
        also, in int32, ``"non_finite"``: how many tasks were bad, or with ``"clip"`` how many
        numbers; and ``"undone"``: 1 for a step whose update wasn't applied, 0 for another.

    Raises:
        ArgumentError: if ``meta_batch``, ``tasks_per_chunk`` or ``steps`` isn't a positive integer,
            the devices can't share ``meta_batch`` equally, ``non_finite`` is another word, a call's
            ``sample`` differs from the first in structure or shapes, its state was used before, or
            the optimizer needs more than ``value=`` and ``grad=``.
        ArgumentTypeError: if ``sample`` doesn't return an ``Episode``, or ``key`` isn't a key.
        NonFiniteError: from ``step`` and ``run``, with ``non_finite="raise"``; its ``state`` is the
            one before the bad step.

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
    meta_batch = _checks.positive_int("meta_batch", meta_batch)
    per_device = devices.equal_share("meta_batch", meta_batch, mesh)
    chunks.check(tasks_per_chunk, memory_budget)
    _non_finite.check(non_finite)
    sampler = HoistedSampler(sample, mesh)

    def learner_at(step: jax.Array) -> Learner:
        return learner if isinstance(learner, Learner) else learner(step)

    def init(params: Params, key: jax.Array) -> TrainState:
        # Steps donate their state: it must hold none of the caller's arrays, and no array twice.
        params, key = jax.tree.map(_copy, (params, typed_key(key)))
        interop._let_flax_store(key)
        params = trees.strongly_typed(learner_at(jnp.zeros((), jnp.int32)).init(params))
        learned, _ = trees.partition(params, trainable)
        optimizer_state = sharding.placed_like(optimizer.init, learned, mesh)
        state = TrainState(params, optimizer_state, key, jnp.zeros((), jnp.int32))
        return devices.replicate(_distinct(state), mesh)

    def means_of_step(state: TrainState, arrays: SamplerArrays) -> _non_finite.Means:
        """Draws this device's tasks; the means over them of gradient and metrics."""
        now = learner_at(state.step)
        first = devices.first_task(per_device, mesh)
        keys = episode_keys(state.key, state.step, per_device, first)
        episodes = jax.vmap(lambda key: sampler.draw(arrays, key, keyed=now.keyed))(keys)
        means_of = task_means(
            now,
            trainable=trainable,
            tasks_per_chunk=tasks_per_chunk,
            memory_budget=memory_budget,
            watch=_non_finite.watched(non_finite),
        )
        gradient, metrics, bad = means_of(state.params, episodes)
        good, of_all = jnp.ones(()), jnp.zeros(0)
        if bad is not None:
            if non_finite == "skip":
                good = 1 - bad.mean()
            of_all = jnp.zeros(meta_batch).at[first + jnp.arange(per_device)].set(bad)
        return _non_finite.Means(gradient, metrics, good, of_all)

    def update(state: TrainState, means: tuple[Params, Metrics]) -> tuple[TrainState, Metrics]:
        gradient, metrics = means
        learned, fixed = trees.partition(state.params, trainable)
        of_learned = state._replace(params=learned)
        updates, optimizer_state = _updates(optimizer, of_learned, gradient, metrics)
        params = trees.combine(optax.apply_updates(learned, updates), fixed)
        if carry is not None:
            params, metrics = carry(params, metrics)
        metrics = {**metrics, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(params, optimizer_state, state.key, state.step + 1), metrics

    halves = _non_finite.guard(non_finite, means_of_step, update)
    if mesh is not None and cpu.meets_on_host(mesh):
        step, run = cpu.a_program_a_device(*halves, mesh)
    else:
        step, run = _one_program(*halves, mesh)
    place = functools.partial(devices.replicate, mesh=mesh)
    n_tasks = meta_batch if non_finite == "raise" else 0
    step, run = (
        _non_finite.watch(non_finite, program, place, n_tasks, trainable) for program in (step, run)
    )

    def one_step(state: TrainState, *, sample: Sampler | None = None) -> tuple[TrainState, Metrics]:
        return step(_unused(state), sampler.arrays(state.key, sample))

    def many_steps(
        state: TrainState, steps: int, *, sample: Sampler | None = None
    ) -> tuple[TrainState, Metrics]:
        steps = _checks.positive_int("steps", steps)
        return run(_unused(state), sampler.arrays(state.key, sample), steps)

    def episode_at(
        key: jax.Array, step: int, index: int, *, sample: Sampler | None = None
    ) -> Episode:
        before = _checks.positive_int("step", step) - 1
        if not 0 <= index < meta_batch:
            raise ArgumentError(f"index must be from 0 to {meta_batch - 1}, got {index}.")
        key = typed_key(key)
        arrays = sampler.arrays(key, sample)
        (task,) = episode_keys(key, before, 1, index)
        keyed = learner_at(jnp.int32(before)).keyed
        return jax.jit(functools.partial(sampler.draw, keyed=keyed))(arrays, task)

    return Trainer(init, one_step, many_steps, episode_at)


def _copy(leaf: jax.Array) -> jax.Array:
    return jnp.array(leaf, copy=True)


def _distinct(state: TrainState) -> TrainState:
    """Copies an array where it occurs again, as parameters do in some optimizers' state."""
    seen: set[int] = set()

    def once(leaf: jax.Array) -> jax.Array:
        if id(leaf) in seen:
            return _copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(once, state)


def _updates(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: Params, metrics: Metrics
) -> tuple[Params, PyTree]:
    """What the optimizer makes of a gradient: its updates and its new state."""
    loss = {"value": metrics["loss"]} if "loss" in metrics else {}
    try:
        return optax.with_extra_args_support(optimizer).update(
            gradient, state.optimizer_state, state.params, grad=gradient, **loss
        )
    except TypeError as error:
        missing = re.search(r"missing .* required keyword-only arguments?: (.*)", str(error))
        if missing is None:
            raise
        raise ArgumentError(
            f"optimizer needs {missing[1]}, but meta_trainer gives value= (the loss, if the "
            "learner reports one) and grad= alone. Take an optimizer that needs no more, such as "
            "optax.lbfgs(1.0, linesearch=None) instead of one with a line search."
        ) from error


def _unused(state: TrainState) -> TrainState:
    """The state, or an ArgumentError if an earlier call has consumed it."""
    step = state.step
    if isinstance(step, jax.Array) and not isinstance(step, jax.core.Tracer) and step.is_deleted():
        raise ArgumentError(
            "state was consumed by an earlier call of step or run. Go on with the state that this "
            "call returned, or copy a state before you pass it."
        )
    return state


def _one_program(means_of_step: Callable, update: Callable, mesh: Mesh | None):
    """``step`` and ``run`` as one program each, on all devices of the mesh.

    Args:
        means_of_step: ``means_of_step(state, arrays) -> (gradient, metrics)`` of a device's tasks.
        update: ``update(state, (gradient, metrics)) -> (state, metrics)``.
        mesh: the devices.

    Returns:
        ``step(state, arrays)`` and ``run(state, arrays, steps)``.
    """
    everywhere = PartitionSpec()
    waits = mesh is not None and cpu.on_cpu(mesh)

    @functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=0)
    def program(state, arrays, steps, placement):
        def outer_step(state, arrays):
            means = devices.mean(means_of_step(state, arrays), mesh)
            state, metrics = update(state, means)
            return sharding.keep(state, placement, mesh), metrics

        def steps_of(state, arrays):
            if steps is None:
                return outer_step(state, arrays)
            return jax.lax.scan(lambda s, _: outer_step(s, arrays), state, length=steps)

        shared = devices.share(steps_of, mesh, in_specs=everywhere, out_specs=everywhere)
        return sharding.kept_by_program(shared(state, arrays), placement, mesh)

    def call(state, arrays, steps=None):
        outcome = program(state, arrays, steps, sharding.placement_of(state, mesh))
        # CPU devices wait for one another in XLA's few threads. With many calls in flight these
        # were seen to run out, and the program to hang.
        return jax.block_until_ready(outcome) if waits else outcome

    return call, call
