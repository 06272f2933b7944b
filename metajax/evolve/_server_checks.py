"""Whether a server draws from the model that is trained."""

from collections.abc import Sequence

import numpy as np

from metajax.errors import ServerError
from metajax.evolve._scoring import Scored
from metajax.evolve._server_requests import Answer

_SIGNIFICANT = 6.0
"""Standard errors of a median beyond which what was drawn isn't the model's by chance."""
_SKEW = 0.5
"""A median that is as far off may come from a skew, or from texts that were read otherwise."""
_READABLE = 0.8
"""The share of texts that must be readable as so many tokens as were drawn. Where fewer are, the
others were read otherwise, too."""
_ANOTHER = "Does it serve another model, or the adapter of an earlier round?"


def must_agree(answers: Sequence[Answer], scored: Scored, tolerance: float, url: str) -> None:
    """Raises a ServerError where the server's log-probabilities aren't the model's.

    Args:
        answers: some, with log-probabilities.
        scored: the same, by the model.
        tolerance: of the mean difference, in nats a token.
        url: the server's.
    """
    own = np.concatenate([answer.log_probs for answer in answers if answer.log_probs is not None])
    models, tempered = (
        np.concatenate([row[: len(of.tokens)] for row, of in zip(rows, answers, strict=True)])
        for rows in (scored.log_probs, scored.at_temperature)
    )
    difference = np.abs(own - models)
    if difference.size == 0 or difference.mean() <= tolerance:
        return
    hint = _ANOTHER
    if np.abs(own - tempered).mean() <= tolerance:
        hint = (
            "They agree at the temperature of sampling, but must be from before it: give "
            "score=True, or start SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1."
        )
    raise ServerError(
        f"{url}: the server's log-probabilities aren't the model's. In {len(answers)} completions "
        f"they differ by {difference.mean():.3g} nats a token on average and by "
        f"{difference.max():.3g} at most; tolerance is {tolerance}. {hint}"
    )


def must_be_drawn_from(
    answers: Sequence[Answer], scored: Scored, tolerance: float, url: str
) -> None:
    """Raises a ServerError where the model would hardly draw such tokens.

    The log-probability of a token that the model draws has a mean and a variance, given the tokens
    before it. So a completion's sum of log-probability minus mean, over the root of its sum of
    variances, has mean 0 and variance 1. Their median is compared: a text that was read as other
    tokens than were drawn is far off, but few are. Without a temperature each token must be about
    as likely as the likeliest.

    Args:
        answers: all of them. Those that aren't ``exact`` don't count; where they are more than a
            fifth, nothing is compared.
        scored: the same, by the model.
        tolerance: of the median difference, in nats a token.
        url: the server's.
    """
    if np.mean([answer.exact for answer in answers]) < _READABLE:
        return
    counted = np.array([answer.exact and answer.tokens.size > 0 for answer in answers])
    if not counted.any():
        return
    sizes = np.array([answer.tokens.size for answer in answers])[counted]
    away = (scored.at_temperature - scored.mean)[counted].sum(axis=1)
    spread = np.sqrt(scored.variance[counted].sum(axis=1))
    nats = float(np.median(away / sizes))
    chance = _SKEW + _SIGNIFICANT * 1.2533 / np.sqrt(len(sizes))
    certain = np.all(spread == 0)  # without a temperature
    if abs(nats) <= tolerance or not (
        certain or abs(np.median(away / np.maximum(spread, 1e-6))) > chance
    ):
        return
    raise ServerError(
        f"{url}: the server doesn't draw from the model. The log-probability of what it drew is "
        f"{nats:+.3g} nats a token beside the model's own, in the median of {len(sizes)} "
        f"completions; tolerance is {tolerance}. {_ANOTHER}"
    )
