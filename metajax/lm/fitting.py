"""Whether parameters and low-rank factors are those of a model, before anything is compiled."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metajax import trees
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.lm.lora import Factors
from metajax.models import Transformer, TransformerConfig
from metajax.types import Params


@functools.lru_cache(maxsize=32)
def shapes_of(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by its path without stacked layers.

    Example:
        >>> config = TransformerConfig(vocab_size=9, width=8, n_layers=2, n_heads=2)
        >>> shapes_of(config)["block_1/mlp/up/kernel"]
        (8, 32)
    """
    stacked: Any = Transformer(dataclasses.replace(config, scan=True, remat=False))
    tree = jax.eval_shape(stacked.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    found = {}
    for path, leaf in zip(trees.leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if not path.startswith("blocks/"):
            found[path] = leaf.shape
            continue
        inner = path.removeprefix("blocks/")
        found |= {f"block_{layer}/{inner}": leaf.shape[1:] for layer in range(config.n_layers)}
    return found


def check_params(config: TransformerConfig, params: Params) -> None:
    """Raises an ArgumentError unless parameters, without stacked layers, are a model's.

    Example:
        >>> config = TransformerConfig(vocab_size=9, width=8, n_layers=2, n_heads=2)
        >>> try:
        ...     check_params(config, {"embed": {"embedding": jnp.zeros((9, 4))}})
        ... except ArgumentError as error:
        ...     print(str(error)[:70])
        params don't fit the model: 'embed/embedding' has shape (9, 4), not (9
    """
    if not isinstance(params, Mapping):
        raise ArgumentTypeError(
            f"params must be a dict of arrays, as Transformer.init makes them, got "
            f"{type(params).__name__}."
        )
    wanted = shapes_of(config)
    leaves = jax.tree.leaves(params)
    found = dict(zip(trees.leaf_paths(params), map(jnp.shape, leaves), strict=True))
    if found == wanted:
        return
    problems = [
        f"{path!r} has shape {found[path]}, not {shape}"
        for path, shape in wanted.items()
        if path in found and found[path] != shape
    ]
    problems += [f"{path!r} is missing" for path in wanted if path not in found]
    problems += [f"{path!r} is unknown" for path in found if path not in wanted]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise ArgumentError(f"params don't fit the model: {'; '.join(problems[:3])}{more}.")


def check_lora(config: TransformerConfig, lora: Params) -> None:
    """Raises an ArgumentError unless factors, without stacked layers, are of a model's matrices.

    Example:
        >>> config = TransformerConfig(vocab_size=9, width=8, n_layers=2, n_heads=2)
        >>> check_lora(config, {})
    """
    wanted = shapes_of(config)
    is_factors = lambda node: isinstance(node, Factors)
    for keys, factors in jax.tree_util.tree_flatten_with_path(lora, is_leaf=is_factors)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not is_factors(factors):
            raise ArgumentTypeError(
                f"lora must hold Factors in nested dicts, got {type(factors).__name__} at {path!r}."
            )
        shape = wanted.get(path, ())
        if len(shape) != 2:
            raise ArgumentError(f"lora has factors at {path!r}, where the model has no matrix.")
        rank = factors.rank
        if (factors.a.shape, factors.b.shape) != ((shape[0], rank), (rank, shape[1])):
            raise ArgumentError(
                f"lora: factors of shapes {factors.a.shape} and {factors.b.shape} don't fit "
                f"{path!r} of shape {shape}."
            )
