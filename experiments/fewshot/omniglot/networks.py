"""The learners that compare images in the Omniglot experiment, and their networks."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

import metajax
from experiments.fewshot.comparing import Network, reporting
from metajax import models

Method = Literal["prototypical", "matching", "relation", "r2d2"]

SIZE = 28
R2D2_PENALTY = 50.0
R2D2_SCALE = 10.0
"""What λ and the logits' scale α start from; from 1 each, α has reached 2 after 400 meta-steps."""
MATCHING_SCALE = 30.0
"""What the cosine is multiplied by: within [-1, 1] a softmax over 20 images can't be sure."""


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


def learner_of(method: Method, network: Network, *, n_way: int, train: bool) -> metajax.Learner:
    """The method on episodes of so many classes.

    In training the batch's statistics normalise, and the running ones are reported; at test these
    do.
    """
    embed = functools.partial(network.embed, train=train)
    if method == "matching":
        return metajax.matching(embed, n_way=n_way, scale=MATCHING_SCALE)
    if method == "relation":
        assert network.relate is not None
        relate = functools.partial(network.relate, train=train)
        return metajax.relation(embed, relate, n_way=n_way)
    if method == "r2d2":
        return metajax.r2d2(embed, n_way=n_way, penalty=R2D2_PENALTY, scale=R2D2_SCALE)
    return metajax.prototypical(embed, n_way=n_way)
