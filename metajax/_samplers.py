"""Episodes drawn inside a program, with the sampler's arrays as arguments of the program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.sharding import Mesh

from metajax import _checks, trees
from metajax.errors import ArgumentError
from metajax.learners._checked import checked_episode
from metajax.parallel import _devices as devices
from metajax.types import Episode, Sampler

_TASK_KEY = 2**32 - 1
"""Folded into an episode's key, it gives the task's key. Small numbers would give keys that the
sampler uses: ``jax.random.split(key)[i]`` is ``fold_in(key, i)``."""


def typed_key(key: Any) -> jax.Array:
    """One random key as a typed key; an ArgumentTypeError for anything else."""
    _checks.key("key", key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def episode_keys(
    key: jax.Array, step: jax.Array | int, n_tasks: int, first: jax.Array | int = 0
) -> jax.Array:
    """The keys of one step's episodes, from episode ``first`` on.

    The key of episode i is ``key`` folded with the step and with i.
    """
    step_key = jax.random.fold_in(key, step)
    fold = lambda i: jax.random.fold_in(step_key, i)
    indices = first + jnp.arange(n_tasks)
    return jax.vmap(fold)(indices) if _may_be_vmapped(key) else jax.lax.map(fold, indices)


def _may_be_vmapped(key: jax.Array) -> bool:
    """Whether ``vmap`` leaves each key's numbers as they are.

    Of rbg keys it doesn't: it draws all numbers from the first key of the batch, so that they would
    depend on the chunks and the devices.
    """
    return jax.random.key_impl(key) == "threefry2x32"


class SamplerArrays(NamedTuple):
    """What a program needs of a sampler.

    Attributes:
        constants: the arrays that its function closes over.
        leaves: its leaves; none if it is a plain function.
    """

    constants: list[jax.Array]
    leaves: list[jax.Array]


class _Traced(NamedTuple):
    """A sampler traced for one type of key.

    Attributes:
        jaxpr: ``(*constants, *leaves, key) -> episode``.
        structure: of the episode.
        constants: as in ``SamplerArrays``.
        names: the ``id`` of each constant in the jaxpr.
    """

    jaxpr: ClosedJaxpr
    structure: Any
    constants: list[jax.Array]
    names: list[int]


class HoistedSampler:
    """A sampler whose arrays are arguments of the program that draws from it.

    An array that is a constant of a program would be copied into it, and perhaps folded at compile
    time. The sampler is traced once for each type of key.

    Args:
        sample: ``sample(key) -> Episode``: a function, or a pytree such as
            ``jax.tree_util.Partial(draw, arrays)``.
        mesh: the devices that get the arrays.

    Raises:
        ArgumentTypeError: if ``sample`` doesn't return an ``Episode`` of arrays.
    """

    def __init__(self, sample: Sampler, mesh: Mesh | None):
        leaves, self._structure = _flatten(sample)
        self._leaves, self._mesh = devices.replicate(leaves, mesh), mesh
        self._traced: dict[Any, _Traced] = {}
        self._trace(jax.eval_shape(lambda: jax.random.key(0)))

    def arrays(self, key: jax.Array, sample: Sampler | None = None) -> SamplerArrays:
        """What a program that draws with this type of key needs.

        Args:
            key: any key of the type.
            sample: another sampler of the same structure, shapes and dtypes, to draw from.

        Raises:
            ArgumentError: if the other sampler differs in one of these.
        """
        leaves = self._leaves
        if sample is not None:
            leaves = devices.replicate(self._like_first(sample), self._mesh)
        return SamplerArrays(self._trace(key).constants, leaves)

    def draw(self, arrays: SamplerArrays, key: jax.Array, *, keyed: bool = False) -> Episode:
        """Within a program, the episode of a key; with a key for the learner if it is keyed."""
        traced = self._traced[key.dtype, key.shape]

        def episode(arrays: SamplerArrays, key: jax.Array) -> Episode:
            constants = dict(zip(traced.names, arrays.constants, strict=True))
            leaves = _evaluate(traced.jaxpr, [*arrays.leaves, key], constants)
            drawn = traced.structure.unflatten(leaves)
            if keyed and drawn.key is None:
                drawn = drawn._replace(key=jax.random.fold_in(key, _TASK_KEY))
            return drawn

        if _may_be_vmapped(key):
            return episode(arrays, key)
        return sequential_vmap(episode)(arrays, key)

    def _trace(self, key: Any) -> _Traced:
        if (key.dtype, key.shape) not in self._traced:

            def checked(leaves: list[jax.Array], key: jax.Array) -> Episode:
                episode = self._structure.unflatten(leaves)(key)
                return checked_episode("what sample returns", episode)

            shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self._leaves]
            jaxpr, shape = jax.make_jaxpr(checked, return_shape=True)(
                shapes, jax.ShapeDtypeStruct(key.shape, key.dtype)
            )
            found = _constants(jaxpr)
            # The caller may be tracing the step; these arrays must not be part of its trace.
            with jax.ensure_compile_time_eval():
                constants = devices.replicate(list(map(_as_array, found)), self._mesh)
            self._traced[key.dtype, key.shape] = _Traced(
                jaxpr, jax.tree.structure(shape), constants, list(map(id, found))
            )
        return self._traced[key.dtype, key.shape]

    def _like_first(self, sample: Sampler) -> list[jax.Array]:
        """The leaves of another sampler, or an ArgumentError that says how it differs."""
        leaves, structure = _flatten(sample)
        if structure != self._structure:
            raise ArgumentError(
                "sample must have the structure of the sampler that was given at first; build both "
                "as jax.tree_util.Partial(draw, arrays) with the same function draw. At first: "
                f"{self._structure}, now: {structure}."
            )
        paths = trees.leaf_paths(sample)
        for path, first, now in zip(paths, self._leaves, leaves, strict=True):
            kinds = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in (first, now)]
            if kinds[0] != kinds[1]:
                raise ArgumentError(
                    f"sample: leaf {path!r} must be {kinds[0]}, as in the sampler that was given "
                    f"at first, got {kinds[1]}."
                )
        return leaves


def _flatten(sample: Sampler) -> tuple[list[jax.Array], Any]:
    """The leaves of a sampler, and the structure that holds them."""
    leaves, structure = jax.tree.flatten(sample)
    if jax.tree_util.treedef_is_leaf(structure):  # a plain function
        return [], jax.tree.structure(jax.tree_util.Partial(sample))
    _checks.arrays("sample", sample)
    return list(map(_as_array, leaves)), structure


def _as_array(value: Any) -> jax.Array:
    """An array without a weak type, so that any array of its dtype can take its place."""
    return value if trees.is_key(value) else trees.strongly_typed(value)


def _inlined(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a jitted function that is called, if there is an array among its constants."""
    if equation.primitive.name not in ("jit", "pjit"):
        return None
    inner = equation.params["jaxpr"]
    return inner if _constants(inner) else None


def _constants(jaxpr: Any) -> list[Any]:
    """The arrays that a traced function closes over, and the jitted functions that it calls.

    JAX keeps them as constants of the jaxpr or, with ``jax_use_simplified_jaxpr_constants``, as
    literals of its equations.
    """
    found = {id(value): value for value in jaxpr.consts}
    atoms = [*jaxpr.jaxpr.outvars]
    for equation in jaxpr.jaxpr.eqns:
        atoms += equation.invars
        inner = _inlined(equation)
        if inner is not None:
            found |= {id(value): value for value in _constants(inner)}
    found |= {id(a.val): a.val for a in atoms if isinstance(a, Literal) and jnp.ndim(a.val)}
    return list(found.values())


def _evaluate(jaxpr: Any, arguments: list[Any], constants: dict[int, Any]) -> list[Any]:
    """What a traced function returns with ``constants`` instead of its own, by their ``id``."""
    inner = jaxpr.jaxpr
    values = dict(zip(inner.invars, arguments, strict=True))
    values |= {
        variable: constants[id(value)]
        for variable, value in zip(inner.constvars, jaxpr.consts, strict=True)
    }

    def read(atom: Any) -> Any:
        return constants.get(id(atom.val), atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in inner.eqns:
        given = [read(atom) for atom in equation.invars]
        called = _inlined(equation)
        if called is not None:
            results = _evaluate(called, given, constants)
        else:
            with equation.ctx.manager:
                results = equation.primitive.bind(
                    *given, **equation.primitive.get_bind_params(equation.params)
                )
            if not equation.primitive.multiple_results:
                results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in inner.outvars]
