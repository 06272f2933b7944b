"""Flax modules as a pair of parameters and a pure apply function."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp

from metajax import _marks, trees
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import Params, PyTree

if TYPE_CHECKING:
    from flax import linen, nnx

Apply = Callable[..., Any]


def from_linen(
    module: "linen.Module",
    key: jax.Array,
    *inputs: Any,
    rngs: Sequence[str] = (),
    mutable: Sequence[str] = (),
    **kwargs: Any,
) -> tuple[Params, Apply]:
    """Initialises a Linen module and returns its parameters and a pure apply function.

    Args:
        module: any ``flax.linen.Module``.
        key: the random key of the initialisation.
        *inputs: example inputs, whose shapes the module is initialised for.
        rngs: the random streams that the module needs when it is applied, such as
            ``("dropout",)``. With them ``apply`` is keyed.
        mutable: the collections that the module changes when it is applied, such as
            ``("batch_stats",)``.
        **kwargs: passed to the module in each call, such as ``train=True``; a call's own come
            first.

    Returns:
        ``(params, apply)``. ``params`` is the module's ``params`` collection; where it has others
        (``batch_stats``), it is the dict of all collections. ``apply(params, *inputs, **kwargs)``
        calls the module; with ``mutable``, here or in the call, it returns
        ``(outputs, changed collections)``, as Linen does. With ``rngs`` it is
        ``apply(params, *inputs, key)``: stream i gets ``jax.random.fold_in(key, i)``. A call
        without a key gives the module no stream. Where the module's class has ``masked = True``,
        ``apply`` takes ``mask=``; see ``metajax.masked``.

    Raises:
        ArgumentError: if the module needs a random stream, or changes a collection, that isn't
            named; from ``apply``, if the parameters aren't the module's, or the inputs are of
            another width than they were made for.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> params, apply = from_linen(nn.Dense(2), jax.random.key(0), jnp.zeros((1, 3)))
        >>> params["kernel"].shape, apply(params, jnp.zeros((4, 3))).shape
        ((3, 2), (4, 2))
        >>> net = nn.Sequential([nn.Dense(8), nn.Dropout(0.5, deterministic=False)])
        >>> params, apply = from_linen(net, jax.random.key(0), jnp.ones((1, 3)), rngs=("dropout",))
        >>> apply(params, jnp.ones((4, 3)), jax.random.key(1)).shape
        (4, 8)
    """
    # One program, not one an operation.
    variables = jax.jit(lambda: module.init(key, *inputs, **kwargs))()
    alone = set(variables) == {"params"}

    def apply(params: Params, *args: Any, **options: Any) -> Any:
        args, streams = _take_key(args, rngs)
        options = {**kwargs, **({"mutable": list(mutable)} if mutable else {}), **options}
        if streams is not None:
            options["rngs"] = {name: jax.random.fold_in(streams, i) for i, name in enumerate(rngs)}
        with _translated(module):
            return module.apply({"params": params} if alone else params, *args, **options)

    found = variables["params"] if alone else dict(variables)
    _try_once(apply, found, inputs, key if rngs else None)
    marks = {name: _marks.has(type(module), name) for name in ("masked", "at_places")}
    return found, _marks.marked(apply, keyed=bool(rngs), **marks)


def _take_key(args: tuple, rngs: Sequence[str]) -> tuple[tuple, jax.Array | None]:
    """The inputs, and the key if the last argument is one."""
    if not rngs or not args:
        return args, None
    last = args[-1]
    older = getattr(last, "dtype", None) == jnp.uint32 and last.shape in ((2,), (4,))
    return (args[:-1], last) if trees.is_key(last) or older else (args, None)


def _try_once(apply: Apply, params: Params, inputs: tuple, key: jax.Array | None) -> None:
    """Traces a call, for the errors that it raises."""
    extra = () if key is None else (key,)
    jax.eval_shape(lambda params, *extra: apply(params, *inputs, *extra), params, *extra)


def _needs_stream(module: Any, stream: str) -> ArgumentError:
    return ArgumentError(
        f"{type(module).__name__} needs the random stream {stream!r} when it is applied: pass "
        f"rngs=({stream!r},), which makes apply keyed, or make the module deterministic."
    )


def _changes_collection(module: Any, name: str) -> ArgumentError:
    return ArgumentError(
        f"{type(module).__name__} changes its collection {name!r} when it is applied: pass "
        f"mutable=({name!r},), which returns (outputs, changed collections), or keep it as it is, "
        "as with use_running_average=True."
    )


@contextlib.contextmanager
def _translated(module: Any) -> Iterator[None]:
    """Turns Flax's errors about streams, collections and parameters into an ArgumentError."""
    from flax import errors

    kinds = errors.ScopeParamNotFoundError, errors.ScopeParamShapeError
    try:
        yield
    except errors.InvalidRngError as error:
        stream = re.search(r'PRNG for "(\w+)"', str(error))
        if stream is None:
            raise
        raise _needs_stream(module, stream[1]) from None
    except errors.ModifyScopeVariableError as error:
        collection = re.search(r'collection "(\w+)"', str(error))
        if collection is None:
            raise
        raise _changes_collection(module, collection[1]) from None
    except (*kinds, errors.ScopeVariableNotFoundError, errors.ScopeCollectionNotFound) as error:
        raise ArgumentError(
            f"params don't fit {type(module).__name__}: they are of another model, or were made "
            f"for inputs of another width. {error}"
        ) from None
    except errors.ApplyScopeInvalidVariablesTypeError:
        raise ArgumentTypeError(
            f"params must be a dict of arrays, as {type(module).__name__}.init makes them."
        ) from None


def from_nnx(
    module: "nnx.Module",
    *inputs: Any,
    rngs: Sequence[str] = (),
    mutable: Sequence[str] = (),
) -> tuple[Params, Apply]:
    """Splits an NNX module into its parameters and a pure apply function.

    Args:
        module: any ``flax.nnx.Module`` that can be called. Its random streams stay as they are now,
            but for those of ``rngs``.
        *inputs: example inputs, if what the module lacks is to be found now and not in the first
            call.
        rngs: the tags of the random streams that the module draws from when it is called; that of
            ``nnx.Dropout(0.5, rngs=nnx.Rngs(0))`` is ``"default"``. With them ``apply`` is keyed.
        mutable: the collections that a call changes, such as ``("batch_stats",)``.

    Returns:
        ``(params, apply)``. ``params`` is a dict of the arrays of its ``nnx.Param``; where the
        module has other variables (``nnx.BatchStat``), it is a dict of collections, ``"params"``,
        ``"batch_stats"`` and so on, as Linen has them. ``apply(params, *inputs, **kwargs)`` calls
        the module with these arrays; with ``mutable``, here or in the call, it returns
        ``(outputs, changed collections)``. With ``rngs`` it is ``apply(params, *inputs, key)``:
        the i-th stream of the module gets ``jax.random.fold_in(key, i)``.

    Raises:
        ArgumentError: if the module has no parameters; from ``apply``, or at once with ``inputs``,
            if its outputs depend on a random stream, or it changes a collection, that isn't named.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> params, apply = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> params["kernel"].shape, apply(params, jnp.zeros((4, 3))).shape
        ((3, 2), (4, 2))
    """
    # Imported here alone: some pairs of jax and flax versions break nnx, but not linen.
    from flax import nnx

    _, streams, others = nnx.split(module, nnx.RngState, ...)
    kinds = sorted({type(leaf) for _, leaf in nnx.to_flat_state(others)}, key=str)
    names = [nnx.variable_name_from_type(kind) for kind in kinds]
    graph, streams, *parts = nnx.split(module, nnx.RngState, *kinds)
    found = {name: nnx.to_pure_dict(part) for name, part in zip(names, parts, strict=True)}
    if "params" not in found:
        raise ArgumentError(f"module has no nnx.Param to learn: {type(module).__name__}.")
    alone = names == ["params"]

    def with_keys(key: jax.Array | None) -> Any:
        """The streams: those of ``rngs`` start afresh from the key."""
        if key is None:
            return streams
        fresh, count = [], 0
        for path, leaf in nnx.to_flat_state(streams):
            value = leaf.get_value()
            if leaf.tag in rngs and isinstance(leaf, nnx.RngKey):
                value = jax.random.fold_in(key, count)
                value = jax.random.split(value, leaf.shape) if leaf.shape else value
                count += 1
            elif leaf.tag in rngs:
                value = jnp.zeros_like(value)
            fresh.append((path, leaf.replace(value)))
        return nnx.from_flat_state(fresh)

    def call(params: Params, streams: Any, args: tuple, kwargs: dict) -> tuple[Any, dict, list]:
        """The outputs, the changed collections, and the tags of the streams drawn from."""
        given = {"params": params} if alone else params
        states = [jax.tree.map(lambda leaf: leaf, part) for part in parts]
        for name, state in zip(names, states, strict=True):
            nnx.replace_by_pure_dict(state, given[name])
        merged = nnx.merge(graph, streams, *states, copy=True)
        output = merged(*args, **kwargs)
        _, streams_after, *parts_after = nnx.split(merged, nnx.RngState, *kinds)
        changed = {
            name: nnx.to_pure_dict(after)
            for name, after, before in zip(names, parts_after, states, strict=True)
            if name != "params" and not _same(after, before)
        }
        drawn = [
            leaf.tag
            for (_, leaf), (_, before) in zip(
                nnx.to_flat_state(streams_after), nnx.to_flat_state(streams), strict=True
            )
            if leaf.get_value() is not before.get_value()
        ]
        return output, changed, drawn

    def apply(
        params: Params, *args: Any, mutable: Sequence[str] = tuple(mutable), **kwargs: Any
    ) -> Any:
        args, key = _take_key(args, rngs)
        output, changed, drawn = call(params, with_keys(key), args, kwargs)
        constant = [tag for tag in drawn if key is None or tag not in rngs]
        if constant:
            outputs = lambda streams: call(params, streams, args, kwargs)[0]
            if _depends(outputs, streams):
                raise _needs_stream(module, constant[0])
        for name in changed:
            if name not in mutable:
                raise _changes_collection(module, name)
        return (output, changed) if mutable else output

    start = found["params"] if alone else found
    if inputs:
        _try_once(apply, start, inputs, jax.random.key(0) if rngs else None)
    return start, _marks.marked(apply, keyed=bool(rngs), masked=_marks.has(type(module), "masked"))


def _same(a: PyTree, b: PyTree) -> bool:
    return all(x is y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _depends(function: Callable[[PyTree], PyTree], argument: PyTree) -> bool:
    """Whether a function's outputs depend on its argument, as its program says."""
    from jax.extend.core import Literal

    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    variables = lambda atoms: {atom for atom in atoms if not isinstance(atom, Literal)}
    needed = variables(jaxpr.outvars)
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed |= variables(equation.invars)
    return not needed.isdisjoint(jaxpr.invars)


def _let_flax_store(key: jax.Array) -> None:
    """Lets ``flax.serialization`` write and read typed random keys, which it doesn't by itself.

    Example:
        >>> from flax import serialization
        >>> _let_flax_store(jax.random.key(3))
        >>> stored = serialization.to_bytes({"key": jax.random.key(3)})
        >>> serialization.from_bytes({"key": jax.random.key(0)}, stored)["key"] == jax.random.key(3)
        Array(True, dtype=bool)
    """
    from flax import serialization

    kind = type(key)
    known = serialization.is_serializable(kind) or isinstance(key, jax.core.Tracer)
    if trees.is_key(key) and not known:
        serialization.register_serialization_state(
            kind,
            jax.random.key_data,
            lambda like, data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(like)),
        )
