"""What a model says of completions that something else drew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.models import Transformer
from metajax.parallel import _devices as devices
from metajax.types import Params

_MULTIPLE = 16
"""Texts are padded to a multiple of so many tokens, so that few programs are compiled."""
_MOST_ROWS, _MOST_LOGITS = 64, 2**25
"""So many texts go through the model together, or fewer where they need more logits than that."""


class Scored(NamedTuple):
    """Of each token, under the model, all ``[n, width]`` in nats and 0 behind the end.

    Attributes:
        log_probs: before temperature.
        at_temperature: at the solver's temperature; as ``log_probs`` without one.
        mean: what ``at_temperature`` is on average where the model draws; of the likeliest token
            without a temperature.
        variance: of the same; 0 without a temperature.
    """

    log_probs: np.ndarray
    at_temperature: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


Text = tuple[np.ndarray, np.ndarray]
"""Tokens of a prompt and of its answer."""

Score = Callable[[Params, list[Text], int], Scored]
"""``score(params, texts, width) -> Scored``; no answer has more than ``width`` tokens."""


def scorer(model: Transformer, temperature: float | None) -> Score:
    """Builds ``score``, for any number of texts."""

    @jax.jit
    def scores(variables, tokens, places, targets):
        logits: Any = model.apply(variables, tokens, at=places)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        of = lambda values: jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
        if temperature is None:
            best = log_probs.max(axis=-1)
            return of(log_probs), of(log_probs), best, jnp.zeros_like(best)
        tempered = jax.nn.log_softmax(log_probs / temperature)
        chances = jnp.exp(tempered)
        mean = (chances * tempered).sum(axis=-1)
        variance = (chances * (tempered - mean[..., None]) ** 2).sum(axis=-1)
        return of(log_probs), of(tempered), mean, variance

    def score(params: Params, texts: list[Text], width: int) -> Scored:
        has_factors = isinstance(params, dict) and set(params) == {"params", "lora"}
        variables = params if has_factors else {"params": params}
        chunk = min(_MOST_ROWS, max(1, _MOST_LOGITS // (width * model.config.vocab_size)))
        longest = max(len(prompt) for prompt, _ in texts) + width
        length = min(-(-longest // _MULTIPLE) * _MULTIPLE, model.config.max_length)
        found = [np.zeros((len(texts), width), np.float32) for _ in Scored._fields]
        for start in range(0, len(texts), chunk):
            part = slice(start, min(start + chunk, len(texts)))
            tokens = np.zeros((chunk, length), np.int32)
            places, targets = np.zeros((2, chunk, width), np.int32)
            inside = np.zeros((chunk, width), bool)
            for row, (prompt, answer) in enumerate(texts[part]):
                text, count = np.concatenate([prompt, answer]), len(answer)
                tokens[row, : len(text)] = text
                places[row, :count] = len(prompt) - 1 + np.arange(count)
                targets[row, :count], inside[row, :count] = answer, True
            parts = devices.to_host(scores(variables, tokens, places, targets))
            for whole, values in zip(found, parts, strict=True):
                whole[part] = np.where(inside, values, 0)[: part.stop - part.start]
        return Scored(*found)

    return score
