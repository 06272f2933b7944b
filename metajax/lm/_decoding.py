"""Prefill and decoding with a cache of keys and values: the programs behind ``generate``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from metajax.lm.sampling import choose, row_keys
from metajax.models import Transformer, TransformerConfig
from metajax.models.cache import Cache, empty_cache
from metajax.models.transformer import positions_of
from metajax.parallel import _devices as devices


@functools.partial(jax.jit, static_argnames=("config", "room"))
def prefill(variables, tokens, real, config: TransformerConfig, room: int):
    """Logits of each prompt's next token ``[prompts, vocab]``, the cache, and the token's place."""
    batch, length = tokens.shape
    segments = real.astype(jnp.int32)
    model: Any = Transformer(config)
    logits, cache = model.apply(
        variables,
        tokens,
        segments=segments,
        positions=positions_of(segments),
        cache=empty_cache(config, batch, length + room - 1),
        last_only=True,
    )
    return logits[:, -1], cache, segments.sum(axis=1)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(variables, token, place, cache: Cache, config: TransformerConfig):
    """Logits ``[rows, vocab]`` of the token after ``token [rows]``, which stands at ``place``."""
    model: Any = Transformer(config)
    logits, cache = model.apply(variables, token[:, None], positions=place[:, None], cache=cache)
    return logits[:, -1], cache


@functools.partial(jax.jit, static_argnames=("config", "choice", "room", "samples", "mesh"))
def generate(
    variables,
    tokens,
    real,
    key,
    allowed,
    new,
    config,
    choice,
    room: int,
    samples: int,
    mesh: Mesh | None,
):
    """Tokens, log-probabilities and lengths, of ``prompts * samples`` rows: ``new`` tokens at most,
    and zeros in the rest of their ``room``."""
    every, rows = PartitionSpec(), PartitionSpec(devices.AXIS)
    each = allowed is not None and allowed.shape[1] > 1
    masks = PartitionSpec(None, devices.AXIS) if each else every
    own = devices.share(
        functools.partial(_rows, config=config, choice=choice, room=room, samples=samples),
        mesh,
        in_specs=(every, rows, rows, rows, masks, every),
        out_specs=rows,
    )
    return own(variables, tokens, real, row_keys(key, len(tokens) * samples), allowed, new)


def _rows(variables, tokens, real, keys, allowed, new, *, config, choice, room: int, samples: int):
    """``generate`` of one device's prompts, with a key for each of their rows."""
    logits, cache, place = prefill(variables, tokens, real, config, room)
    if samples > 1:
        repeat = functools.partial(jnp.repeat, repeats=samples, axis=0)
        logits, place = repeat(logits), repeat(place)
        cache = jax.tree.map(repeat, cache._replace(filled=None))._replace(filled=cache.filled)
        if allowed is not None and allowed.shape[1] > 1:
            allowed = jnp.repeat(allowed, samples, axis=1)
    rows = logits.shape[0]
    stops = jnp.array(choice.stop_tokens, jnp.int32)

    def record(state, step, logits):
        done, tokens, log_probs, lengths = state
        mask = None if allowed is None else allowed[step]
        token, log_prob = choose(logits, keys, step, mask, choice)
        tokens = tokens.at[:, step].set(jnp.where(done, 0, token))
        log_probs = log_probs.at[:, step].set(jnp.where(done, 0, log_prob))
        lengths = lengths + ~done
        return token, (done | jnp.isin(token, stops), tokens, log_probs, lengths)

    nothing = (
        jnp.zeros(rows, bool),
        jnp.zeros((rows, room), jnp.int32),
        jnp.zeros((rows, room), jnp.float32),
        jnp.zeros(rows, jnp.int32),
    )
    token, state = record(nothing, 0, logits)

    def goes_on(carry):
        step, _, _, (done, *_) = carry
        return (step < new) & ~done.all()

    def body(carry):
        step, token, cache, state = carry
        logits, cache = decode(variables, token, place + step - 1, cache, config)
        token, state = record(state, step, logits)
        return step + 1, token, cache, state

    start = (jnp.ones((), jnp.int32), token, cache, state)
    *_, (_, tokens, log_probs, lengths) = jax.lax.while_loop(goes_on, body, start)
    return tokens, log_probs, lengths
