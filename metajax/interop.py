"""Flax modules as a pair of parameters and a pure apply function."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from metajax import _checks
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import Params

if TYPE_CHECKING:
    from flax import linen, nnx

Apply = Callable[..., Any]


def from_linen(module: "linen.Module", key: jax.Array, *inputs: Any) -> tuple[Params, Apply]:
    """Initialises a Linen module and returns its parameters and a pure apply function.

    Args:
        module: any ``flax.linen.Module``.
        key: the random key of the initialisation.
        *inputs: example inputs, whose shapes the module is initialised for.

    Returns:
        ``(params, apply)``. ``params`` is the module's ``params`` collection; where it has others
        (``batch_stats``), it is the dict of all collections. ``apply(params, *inputs, **kwargs)``
        is the module's ``apply`` on that; with ``mutable=[...]`` it returns
        ``(outputs, changed collections)`` as Linen's does.

    Raises:
        ArgumentTypeError: if ``module`` isn't an unbound Linen module, or ``key`` not a key.
        ArgumentError: from ``apply``, if the parameters aren't the module's, or the inputs are of
            another width than they were made for.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn
        >>> params, apply = from_linen(nn.Dense(2), jax.random.key(0), jnp.zeros((1, 3)))
        >>> params["kernel"].shape, apply(params, jnp.zeros((4, 3))).shape
        ((3, 2), (4, 2))
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise ArgumentTypeError(f"module must be a flax.linen.Module, got {type(module).__name__}.")
    _checks.key("key", key)
    _checks.arrays("inputs", inputs)
    variables = jax.jit(lambda: module.init(key, *inputs))()  # one program, not one an operation
    alone = set(variables) == {"params"}

    def apply(params: Params, *args: Any, **kwargs: Any) -> Any:
        with fitting(module):
            return module.apply({"params": params} if alone else params, *args, **kwargs)

    return variables["params"] if alone else dict(variables), apply


@contextlib.contextmanager
def fitting(module: Any) -> Iterator[None]:
    """Turns Flax's errors about parameters that don't fit a module into an ArgumentError.

    They are of another model, or the inputs have another width than those that they were made for.
    """
    from flax import errors

    kinds = errors.ScopeParamNotFoundError, errors.ScopeParamShapeError
    try:
        yield
    except (*kinds, errors.ScopeVariableNotFoundError, errors.ScopeCollectionNotFound) as error:
        raise ArgumentError(
            f"params don't fit {type(module).__name__}: they are of another model, or were made "
            f"for inputs of another width. {error}"
        ) from None
    except errors.ApplyScopeInvalidVariablesTypeError:
        raise ArgumentTypeError(
            f"params must be a dict of arrays, as {type(module).__name__}.init makes them."
        ) from None


def from_nnx(module: "nnx.Module") -> tuple[Params, Apply]:
    """Splits an NNX module into its parameters and a pure apply function.

    Args:
        module: any ``flax.nnx.Module`` that can be called. What isn't an ``nnx.Param`` (statistics,
            random streams) is taken as it stands now and held constant.

    Returns:
        ``(params, apply)``: a dict of arrays, and ``apply(params, *inputs, **kwargs)``, which calls
        the module with these parameters.

    Raises:
        ArgumentTypeError: if ``module`` isn't an NNX module.
        ArgumentError: if it has no parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> params, apply = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> params["kernel"].shape, apply(params, jnp.zeros((4, 3))).shape
        ((3, 2), (4, 2))
    """
    # Imported here alone: some pairs of jax and flax versions break nnx, but not linen.
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ArgumentTypeError(f"module must be a flax.nnx.Module, got {type(module).__name__}.")
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    arrays = nnx.to_pure_dict(params)
    if not jax.tree.leaves(arrays):
        raise ArgumentError(f"module has no nnx.Param to learn: {type(module).__name__}.")

    def apply(arrays: Params, *args: Any, **kwargs: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, arrays)
        return nnx.merge(graph, state, rest, copy=True)(*args, **kwargs)

    return arrays, apply
