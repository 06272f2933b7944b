"""Whether a server draws from the model that is trained."""

from collections.abc import Sequence

import numpy as np

from metajax.errors import ServerError
from metajax.evolve._scoring import Scored
from metajax.evolve._server_requests import Answer

_SIGNIFICANT = 6.0
"""Standard errors beyond which what was drawn isn't the model's by chance."""
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
    before it. So the sum over all tokens of log-probability minus mean is a martingale, about
    normal, with the sum of the variances as its variance. Without a temperature each token must be
    about as likely as the likeliest.

    Args:
        answers: all of them; those that aren't ``exact`` don't count.
        scored: the same, by the model.
        tolerance: of the mean difference, in nats a token; the sum must be six standard errors off,
            too.
        url: the server's.
    """
    exact = np.array([answer.exact for answer in answers])
    count = sum(len(answer.tokens) for answer in answers if answer.exact)
    if not count:
        return
    away = float((scored.at_temperature - scored.mean)[exact].sum())
    error = float(np.sqrt(scored.variance[exact].sum()))
    if abs(away) <= max(tolerance * count, _SIGNIFICANT * error):
        return
    raise ServerError(
        f"{url}: the server doesn't draw from the model. Its {count} tokens have a log-probability "
        f"of {away / count:+.3g} nats a token beside the model's own; tolerance is {tolerance}, "
        f"and chance makes {error / count:.3g}. {_ANOTHER}"
    )
