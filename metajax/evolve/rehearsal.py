"""Rehearsal: what a model wrote before it learned goes on being as likely."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import _checks
from metajax.evolve._generate import generate_in_chunks
from metajax.lm import SamplingParams
from metajax.lm._token_batch import token_losses
from metajax.losses import Apply
from metajax.models import Transformer
from metajax.types import Metrics, Params


class Rehearsal(NamedTuple):
    """Texts that a model wrote.

    Attributes:
        tokens: ``[n, length + 1]``, int32; the first column is the token they begin with.
        log_probs: of each token but the first under that model, in nats, ``[n, length]``.
    """

    tokens: Any
    log_probs: Any


def rehearsal(
    model: Transformer,
    params: Params,
    key: jax.Array,
    *,
    begin: int,
    count: int = 256,
    length: int = 128,
    chunk: int = 64,
    mesh: Mesh | None = None,
) -> Rehearsal:
    """What a model writes freely, at temperature 1, for ``fine_tune(rehearsal=...)``.

    Args:
        model: the language model.
        params: the model's before it learns, or ``{"params": ..., "lora": ...}``.
        key: a random key.
        begin: the token that texts begin with.
        count: texts.
        length: tokens of each.
        chunk: texts that are written together.
        mesh: devices that share them.

    Raises:
        ArgumentError: a number isn't a positive integer.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig.nope(vocab_size=5, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> own = rehearsal(model, params, jax.random.key(1), begin=0, count=4, length=6)
        >>> own.tokens.shape, own.log_probs.shape
        ((4, 7), (4, 6))

    Source: Huang et al. 2024, "Self-Synthesized Rehearsal" (arXiv 2403.01244).
    """
    for name, value in (("count", count), ("length", length), ("chunk", chunk)):
        _checks.positive_int(name, value)
    _checks.non_negative_int("begin", begin)
    tokens, log_probs, _ = generate_in_chunks(
        model,
        params,
        [[begin]] * count,
        key,
        chunk=chunk,
        mesh=mesh,
        max_new_tokens=length,
        sampling=SamplingParams(1.0),
    )
    tokens = np.pad(tokens[:, 0].astype(np.int32), ((0, 0), (1, 0)), constant_values=begin)
    return Rehearsal(tokens, log_probs[:, 0])


def rehearsed(
    loss_fn: Callable[[Params, Any], tuple[jax.Array, Metrics]], apply: Apply, weight: float
) -> Callable[[Params, Any], tuple[jax.Array, Metrics]]:
    """A loss with the divergence from the model that wrote the rehearsal, ``weight`` times.

    Args:
        loss_fn: ``loss_fn(params, batch)``, of what is learned.
        apply: returns logits, as for ``lm.next_token_loss``.
        weight: of the divergence, in nats a token.

    Returns:
        ``loss_fn(params, {"rows": batch, "rehearsal": Rehearsal}) -> (loss, metrics)``; the
        divergence is among the metrics, as ``"rehearsal_kl"``. It is estimated at the tokens that
        were written: with r the likelihood ratio of both models, r - 1 - ln r, which goes on as a
        line of ln r above r = e. Its mean is that of the divergence as long as no ratio is larger,
        and it is 0 for every token as long as the models are the same.

    Example:
        >>> apply = lambda params, tokens: jnp.zeros((*tokens.shape, 2)) + params
        >>> tokens = jnp.array([[0, 0, 1]])
        >>> before = Rehearsal(tokens, jax.nn.log_softmax(jnp.zeros(2))[tokens[:, 1:]])
        >>> loss_fn = rehearsed(lambda params, batch: (jnp.zeros(()), {}), apply, 2.0)
        >>> float(loss_fn(jnp.zeros(2), {"rows": None, "rehearsal": before})[0])
        0.0

    Source: Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html), k3.
    """

    def both(params: Params, batch: Any) -> tuple[jax.Array, Metrics]:
        before = batch["rehearsal"]
        loss, metrics = loss_fn(params, batch["rows"])
        losses, _ = token_losses(apply, params, before.tokens)
        difference = -losses - before.log_probs
        # On a line beyond 1: few tokens of an exponential would outweigh all others' gradients.
        near = jnp.minimum(difference, 1)
        divergence = (jnp.expm1(near) - near + jnp.expm1(1.0) * (difference - near)).mean()
        return loss + weight * divergence, {**metrics, "rehearsal_kl": divergence}

    return both
