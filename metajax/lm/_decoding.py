"""Prefill and decoding with a cache of keys and values: the programs behind ``generate``."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from metajax.lm._sampling import SamplingParams, choose, row_keys, seen_tokens
from metajax.models import KVCache, Transformer, TransformerConfig
from metajax.models._attention import positions_in_segments
from metajax.parallel import _devices as devices


@functools.partial(jax.jit, static_argnames=("config", "room"))
def prefill(
    variables, tokens, segment_ids, config: TransformerConfig, room: int, prefix: Any = None
):
    """Puts prompts ``[prompts, length]`` into a new cache that has room for so many new tokens.

    Tokens ``prefix [n]`` that stand before each of them are computed once.

    Returns:
        Logits of each prompt's next token ``[prompts, vocab]``, the cache, and the position of that
        token ``[prompts]``.
    """
    batch, length = tokens.shape
    model: Any = Transformer(config)
    before, count = None, 0
    if prefix is not None:
        count = len(prefix)
        _, before = model.apply(
            variables,
            prefix[None],
            positions=jnp.arange(count)[None],
            cache=KVCache.empty(config, 1, count),
            at=jnp.zeros((1, 0), jnp.int32),
        )
    logits, cache = model.apply(
        variables,
        tokens,
        segment_ids=segment_ids,
        positions=count + positions_in_segments(segment_ids),
        cache=KVCache.empty(config, batch, length + room - 1, before),
        at=jnp.full((batch, 1), length - 1),
    )
    return logits[:, -1], cache, count + segment_ids.sum(axis=1)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(variables, token, position, cache: KVCache, config: TransformerConfig):
    """Logits ``[rows, vocab]`` of the token after ``token [rows]``, which is at ``position``."""
    model: Any = Transformer(config)
    logits, cache = model.apply(variables, token[:, None], positions=position[:, None], cache=cache)
    return logits[:, -1], cache


@functools.partial(jax.jit, static_argnames=("config", "sampling", "room", "samples", "mesh"))
def generate(
    variables,
    tokens,
    segment_ids,
    key,
    allowed,
    max_new_tokens,
    config: TransformerConfig,
    sampling: SamplingParams,
    room: int,
    samples: int,
    mesh: Mesh | None,
    prefix: Any = None,
):
    """Continues each prompt ``samples`` times by at most ``max_new_tokens``.

    Tokens ``prefix [n]`` stand before each prompt.

    Returns:
        Tokens and log-probabilities ``[prompts * samples, room]``, zero after the end, and lengths
        ``[prompts * samples]``.
    """
    every, rows = PartitionSpec(), PartitionSpec(devices.AXIS)
    mask_per_prompt = allowed is not None and allowed.shape[1] > 1
    masks = PartitionSpec(None, devices.AXIS) if mask_per_prompt else every
    shared = devices.share(
        functools.partial(_generate, config=config, sampling=sampling, room=room, samples=samples),
        mesh,
        in_specs=(every, rows, rows, rows, masks, every, every),
        out_specs=rows,
    )
    keys = row_keys(key, len(tokens) * samples)
    return shared(variables, tokens, segment_ids, keys, allowed, max_new_tokens, prefix)


def _generate(
    variables,
    tokens,
    segment_ids,
    keys,
    allowed,
    max_new_tokens,
    prefix,
    *,
    config,
    sampling,
    room,
    samples,
):
    """``generate`` for one device's prompts, with a key for each row."""
    logits, cache, position = prefill(variables, tokens, segment_ids, config, room, prefix)
    seen = seen_tokens(tokens, segment_ids, config.vocab_size, sampling)
    if seen is not None and prefix is not None:
        seen = seen.at[:, prefix].set(True)
    if samples > 1:
        repeat = functools.partial(jnp.repeat, repeats=samples, axis=0)
        logits, position, seen = jax.tree.map(repeat, (logits, position, seen))
        once = {"filled": cache.filled, "prefix": cache.prefix}
        cache = jax.tree.map(repeat, cache._replace(filled=None, prefix=None))._replace(**once)
        if allowed is not None and allowed.shape[1] > 1:
            allowed = jnp.repeat(allowed, samples, axis=1)
    rows = logits.shape[0]
    stops = jnp.array(sampling.stop_tokens, jnp.int32)

    def record(state, step, logits, seen):
        done, tokens, log_probs, lengths = state
        mask = None if allowed is None else allowed[step]
        token, log_prob, seen = choose(logits, keys, step, mask, seen, sampling)
        tokens = tokens.at[:, step].set(jnp.where(done, 0, token))
        log_probs = log_probs.at[:, step].set(jnp.where(done, 0, log_prob))
        lengths = lengths + ~done
        return token, seen, (done | jnp.isin(token, stops), tokens, log_probs, lengths)

    empty = (
        jnp.zeros(rows, bool),
        jnp.zeros((rows, room), jnp.int32),
        jnp.zeros((rows, room), jnp.float32),
        jnp.zeros(rows, jnp.int32),
    )
    token, seen, state = record(empty, 0, logits, seen)

    def goes_on(carry):
        step, *_, (done, *_) = carry
        return (step < max_new_tokens) & ~done.all()

    def body(carry):
        step, token, cache, seen, state = carry
        logits, cache = decode(variables, token, position + step - 1, cache, config)
        token, seen, state = record(state, step, logits, seen)
        return step + 1, token, cache, seen, state

    start = (jnp.ones((), jnp.int32), token, cache, seen, state)
    *_, (_, tokens, log_probs, lengths) = jax.lax.while_loop(goes_on, body, start)
    return tokens, log_probs, lengths
