"""Generation in equal chunks, which the proposer and the solver share."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from metajax import lm
from metajax.models import Transformer
from metajax.parallel import _devices as devices
from metajax.types import Params


def generate_in_chunks(
    model: Transformer,
    params: Params,
    prompts: Sequence[Any],
    key: jax.Array,
    *,
    chunk: int,
    mesh: Mesh | None,
    masks: Sequence[np.ndarray] | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, log-probabilities and lengths of ``lm.generate``, for many prompts, on the host.

    Args:
        model: the language model.
        params: its parameters, or ``{"params": ..., "lora": ...}``.
        prompts: token ids of each.
        key: a random key.
        chunk: prompts that are generated together.
        mesh: devices that share them.
        masks: allowed tokens of each prompt, bools ``[max_new_tokens, vocab]``.
        **options: of ``lm.generate``.
    """
    if isinstance(params, dict) and set(params) == {"params", "lora"}:
        ready = lm.decoding_params(params["params"], lora=params["lora"], mesh=mesh)
    else:
        ready = lm.decoding_params(params, mesh=mesh)
    parts = []
    for start, rows in chunks_of(range(len(prompts)), chunk, mesh):
        if masks is not None:
            options["allowed"] = np.stack([masks[row] for row in rows], axis=1)
        part = lm.generate(
            model,
            ready,
            [prompts[row] for row in rows],
            jax.random.fold_in(key, start),
            mesh=mesh,
            **options,
        )
        parts.append(jax.device_get(part))
    tokens, log_probs, lengths = (
        np.concatenate(leaves)[: len(prompts)] for leaves in zip(*parts, strict=True)
    )
    return tokens, log_probs, lengths


def chunks_of(rows: Sequence[Any], chunk: int, mesh: Mesh | None) -> list[tuple[int, list[Any]]]:
    """The start and the rows of each chunk. The last one is filled with its first row, so that all
    have one size: nothing is compiled for the rest, and devices share it equally.

    Example:
        >>> chunks_of("abcde", 2, None)
        [(0, ['a', 'b']), (2, ['c', 'd']), (4, ['e', 'e'])]
    """
    count = devices.size(mesh)
    size = min(chunk, -(-len(rows) // count) * count)
    chunks = []
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        chunks.append((start, part + part[:1] * (size - len(part))))
    return chunks
