"""Functions that take a random key, and the keys that they are given.

The keys of one task come from the task's key: inner step i has ``fold_in(key, i)``, the batch that
``select`` draws for this step and the query loss have keys of their own.
"""

from collections.abc import Callable
from typing import Any

import jax

from metajax import _marks, masks
from metajax.errors import ArgumentError
from metajax.types import Episode

__all__ = ["is_keyed", "keyed", "query_key"]

_QUERY, _SELECT, _PROTOTYPES = 2**31 - 1, 2**31 - 2, 2**31 - 3  # no inner step has such a number


def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that takes a random key as its last positional argument.

    Such are a loss ``loss_fn(params, batch, key)``, a network ``apply(params, inputs, key)`` with
    dropout, and ``select(support, index, key)``. metajax looks at no signature: it passes a key to
    what is marked, and to nothing else.

    Args:
        function: the function.

    Returns:
        The function, marked.

    Example:
        >>> import jax, jax.numpy as jnp, optax, metajax
        >>> @metajax.keyed
        ... def loss_fn(params, batch, key):
        ...     return jnp.sum((params - batch + jax.random.normal(key, batch.shape)) ** 2)
        >>> options = dict(optimizer=optax.sgd(0.5), steps=1, key=jax.random.key(0))
        >>> adapted, _ = metajax.adapt(loss_fn, jnp.zeros(2), jnp.ones(2), **options)
        >>> noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (2,))
        >>> bool(jnp.allclose(adapted, 1 - noise))
        True
    """
    return _marks.marked(function, keyed=True)


def is_keyed(function: Any) -> bool:
    """Whether a function takes a random key as its last argument: it is marked by ``keyed``.

    A loss that ``metajax.losses`` makes of a keyed network is keyed too.

    Example:
        >>> is_keyed(keyed(lambda params, batch, key: 0.0)), is_keyed(None)
        (True, False)
    """
    return _marks.has(function, "keyed")


def query_key(episode: Episode) -> jax.Array | None:
    """The key of the query loss: made from ``episode.key``, and unlike that of any inner step.

    Example:
        >>> import metajax
        >>> query_key(metajax.Episode(support=None, query=None)) is None
        True
    """
    key = getattr(episode, "key", None)
    return None if key is None else jax.random.fold_in(key, _QUERY)


def _step_keys(key: jax.Array | None, index: Any) -> tuple[Any, Any]:
    """The keys of an inner step's loss, and of its ``select``."""
    if key is None:
        return None, None
    step_key = jax.random.fold_in(key, index)
    return step_key, jax.random.fold_in(step_key, _SELECT)


def _prototype_key(key: jax.Array | None) -> jax.Array | None:
    """The key of the pass that makes Proto-MAML's prototypes."""
    return None if key is None else jax.random.fold_in(key, _PROTOTYPES)


def _call(
    name: str,
    function: Callable[..., Any],
    key: jax.Array | None,
    *args: Any,
    mask: jax.Array | None = None,
) -> Any:
    """Calls a function, with the key if it is keyed, and with the mask of its examples if it takes
    one; an ArgumentError if there is no key."""
    options = masks._option(function, mask)
    if not is_keyed(function):
        return function(*args, **options)
    if key is None:
        raise ArgumentError(
            f"{name} is keyed, so it needs a random key: pass key=, or an Episode with a key."
        )
    return function(*args, key, **options)
