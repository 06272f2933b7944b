"""Parameters in the form that decoding reads."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.lm.fitting import check_lora, check_params
from metajax.models import TransformerConfig
from metajax.models.transformer import unstack_layers
from metajax.parallel import _devices as devices
from metajax.types import Params


class Prepared(NamedTuple):
    """What ``generate`` and ``stream`` take in place of parameters, from ``prepare``.

    Attributes:
        variables: the model's collections, with blocks apart, on the devices that read them.
    """

    variables: dict[str, Any]


def prepare(params: Params, *, lora: Params | None = None, mesh: Mesh | None = None) -> Prepared:
    """Parameters as decoding reads them, for many calls of ``generate``, each of which would
    otherwise do this for itself. Blocks that were stacked, and what a mesh's further devices
    hold, are copies.

    Args:
        params: a ``Transformer``'s parameters.
        lora: low-rank factors beside them.
        mesh: the devices that ``generate`` will share the prompts between.

    Raises:
        ArgumentTypeError: ``params`` or ``lora`` isn't a dict of arrays.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from metajax import lm
        >>> from metajax.models import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(vocab_size=9, width=8, n_layers=1, n_heads=2))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> ready = prepare(params)
        >>> lm.generate(model, ready, [[1, 2, 3]], max_new_tokens=5).tokens.shape
        (1, 1, 5)
    """
    for name, value in (("params", params), ("lora", {} if lora is None else lora)):
        _checks.instance(name, value, Mapping, "a dict, of a Transformer")
        _checks.arrays(name, value)
    collections = {"params": params} if lora is None else {"params": params, "lora": lora}
    variables = {name: unstack_layers(tree) for name, tree in collections.items()}
    return Prepared(devices.replicate(variables, mesh))


def variables_of(
    config: TransformerConfig, params: Params | Prepared, lora: Params | None, mesh: Mesh | None
) -> dict[str, Any]:
    """The model's collections; raises an ArgumentError for ``lora`` beside what is prepared, and
    for what isn't the model's."""
    variables = _variables(params, lora, mesh)
    check_params(config, variables["params"])
    check_lora(config, variables.get("lora", {}))
    return variables


def _variables(params: Params | Prepared, lora: Params | None, mesh: Mesh | None) -> dict[str, Any]:
    if not isinstance(params, Prepared):
        return prepare(params, lora=lora, mesh=mesh).variables
    if lora is not None:
        raise ArgumentError(
            "lora must be given to prepare, since params are prepared; got both here."
        )
    return devices.replicate(params.variables, mesh)
