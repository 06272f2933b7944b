"""The networks of the learners that compare images in the Omniglot experiment."""

from typing import Literal

import jax
import jax.numpy as jnp

import metajax
from experiments.fewshot.comparing import Network, reporting
from metajax import models

Method = Literal["prototypical", "matching", "relation", "r2d2"]

SIZE = 28


def network_of(method: Method, key: jax.Array, features: int = 64) -> Network:
    """The four-layer network with max-pooling, and Relation Networks' two of their own.

    R2-D2 and Matching Networks have one pooling less, and so nine times as many features: both
    learned faster so.
    """
    images = jnp.zeros((1, SIZE, SIZE, 1))
    if method == "prototypical":
        body = models.Conv4(None, features=features, form="pool", norm="running")
        variables, apply = metajax.from_linen(body, key, images)
        return Network(variables, reporting(apply))
    body = models.Conv4(None, features=features, form="maps", norm="running")
    if method != "relation":
        variables, apply = metajax.from_linen(body, key, images)
        return Network(variables, reporting(apply, after=_pooled))
    head = models.RelationHead(features, norm="running")
    body_key, head_key = jax.random.split(key)
    body_variables, apply = metajax.from_linen(body, body_key, images)
    maps = jax.eval_shape(apply, body_variables, images)
    pairs = jnp.zeros((*maps.shape[:-1], 2 * maps.shape[-1]))
    head_variables, relate = metajax.from_linen(head, head_key, pairs)
    variables = {
        kind: {"body": body_variables[kind], "head": head_variables[kind]}
        for kind in body_variables
    }
    return Network(variables, reporting(apply, "body"), reporting(relate, "head"))


def _pooled(maps: jax.Array) -> jax.Array:
    return models.max_pool(maps).reshape(len(maps), -1)
