"""Parameters and low-rank factors in the form that decoding reads, checked against the model."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metajax import trees
from metajax.errors import ArgumentError
from metajax.lm.lora import _check_fits, _flat_factors
from metajax.models import Transformer, TransformerConfig, unstack_layers
from metajax.parallel import _devices as devices
from metajax.types import Params


class DecodingParams(NamedTuple):
    """Parameters for many calls of ``generate`` or ``stream``, from ``decoding_params``.

    Attributes:
        variables: the model's collections without stacked blocks, on the devices that read them.
    """

    variables: dict[str, Any]


def decoding_params(
    params: Params, *, lora: Params | None = None, mesh: Mesh | None = None
) -> DecodingParams:
    """Parameters in the form that decoding reads, for many calls of ``generate``.

    Decoding reads each block's parameters apart, on every device that it uses. Each call of
    ``generate`` makes the copies that this needs, unless it gets them from here.

    Args:
        params: a ``Transformer``'s parameters.
        lora: low-rank factors beside them.
        mesh: the devices between which ``generate`` will share the prompts.

    Raises:
        ArgumentError: the leaves of stacked blocks differ in their number of layers.

    Example:
        >>> from metajax import lm
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> ready = decoding_params(params)
        >>> lm.generate(model, ready, [[1, 2, 3]], max_new_tokens=5).tokens.shape
        (1, 1, 5)
    """
    collections = {"params": params} if lora is None else {"params": params, "lora": lora}
    variables = {name: unstack_layers(tree) for name, tree in collections.items()}
    return DecodingParams(devices.replicate(variables, mesh))


def decoding_variables(
    config: TransformerConfig,
    params: Params | DecodingParams,
    lora: Params | None,
    mesh: Mesh | None,
) -> dict[str, Any]:
    """The model's collections for decoding.

    Raises:
        ArgumentError: parameters or factors aren't the model's, or there are factors beside
            ``DecodingParams``.
    """
    if not isinstance(params, DecodingParams):
        variables = decoding_params(params, lora=lora, mesh=mesh).variables
    elif lora is None:
        variables = devices.replicate(params.variables, mesh)
    else:
        raise ArgumentError("lora must be given to decoding_params, which made params.")
    _check_params(config, variables["params"])
    shapes = parameter_shapes(config)
    for path, factors in _flat_factors(variables.get("lora", {})).items():
        _check_fits(factors, shapes.get(path, ()), path)
    return variables


@functools.lru_cache(maxsize=32)
def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter, by its path without stacked layers.

    Example:
        >>> config = TransformerConfig(vocab_size=9, width=8, n_layers=2, n_heads=2)
        >>> parameter_shapes(config)["block_1/mlp/up/kernel"]
        (8, 32)
    """
    model: Any = Transformer(dataclasses.replace(config, scan=True, remat=False))
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    found = {}
    for path, leaf in zip(trees.leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if path.startswith("blocks/"):
            inner = path.removeprefix("blocks/")
            found |= {f"block_{layer}/{inner}": leaf.shape[1:] for layer in range(config.n_layers)}
        else:
            found[path] = leaf.shape
    return found


def _check_params(config: TransformerConfig, params: Params) -> None:
    wanted = parameter_shapes(config)
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
