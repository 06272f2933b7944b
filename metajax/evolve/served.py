"""Answers from a server with the OpenAI-compatible API, such as vLLM or SGLang."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve._contracts import check_tasks
from metajax.evolve._http import Client
from metajax.evolve._scoring import Scored, scorer
from metajax.evolve._server_adapters import adapter_publisher
from metajax.evolve._server_checks import must_agree, must_be_drawn_from
from metajax.evolve._server_requests import Answer, Asker, Prompt, only_model
from metajax.evolve._server_texts import Chat, sent_as
from metajax.evolve.solvers import _MULTIPLE, _behind, _ModelSolver
from metajax.evolve.types import Completions, Solver, Tasks
from metajax.lm import HFTokenizer
from metajax.models import Transformer
from metajax.parallel import _devices as devices
from metajax.parallel._processes import from_first
from metajax.types import Params

_CHECKED = 8
"""How many completions are scored beside a server that gives log-probabilities."""
_log = logging.getLogger("metajax.evolve")

_Scored = Callable[[Sequence[tuple[int, np.ndarray]]], Scored]
"""``scored([(number of an answer, its tokens), ...])``."""


def served(
    url: str,
    model: Transformer,
    *,
    answer_length: Callable[[int], int],
    end: int,
    samples: int = 1,
    temperature: float | None = None,
    slack: int = 2,
    prefix: Sequence[int] = (),
    server: Literal["vllm", "sglang", "transformers", "openai"] = "vllm",
    name: str | None = None,
    tokenizer: HFTokenizer | None = None,
    chat: Chat | None = None,
    adapters: str | Path | None = None,
    publish: Callable[[Params], str] | None = None,
    score: bool = False,
    tolerance: float = 0.05,
    workers: int = 32,
    timeout: float = 600.0,
    retries: int = 5,
    api_key: str | None = None,
) -> Solver:
    """Builds ``solve(params, key, tasks) -> Completions`` from a server that has the same model.

    Prompts go to ``/v1/completions``, a request for each sample, each with a seed of its own. vLLM
    and SGLang get tokens and return tokens. ``transformers serve`` and others get text, of which
    their tokenizer must make the prompt's tokens, and the text of an answer is tokenized again.
    Where that doesn't give what was drawn (a model may write a word in other pieces than the
    tokenizer would) a line in the log of ``metajax.evolve`` counts it. Tasks that aren't valid
    aren't sent; their completions are empty.

    Log-probabilities are the server's where it gives tokens and all of these have one. Otherwise,
    and with ``score``, they are the model's own.

    The server must draw from ``params``. If it gives log-probabilities, 8 completions are scored by
    ``params`` too; the mean difference may be ``tolerance``. An adapter of an earlier round is
    noticed so, unless it is closer than that. If not, what was drawn must be as likely under
    ``params`` as the model's own samples: the median completion within ``tolerance`` a token, or
    within chance. This notices clear differences alone, and the better the more completions. It is
    left out where more than a fifth of the texts can't be read as they were drawn.

    Parameters ``{"params": ..., "lora": ...}`` are handed over as an adapter, when they change;
    ``publish`` is for any others. Plain parameters are taken for the server's base model.

    In several processes the first one asks the server, and all get what it found.

    Args:
        url: such as ``"http://localhost:8000"``.
        model: the language model, for scores and adapters.
        answer_length: tokens of a level's answer, the end token among them.
        end: the token that ends an answer. For ``"openai"``, the one that the server stops at.
        samples: completions of each task; more than one needs a ``temperature``.
        temperature: of sampling; None takes the likeliest token.
        slack: how many tokens more than ``answer_length`` a completion may have.
        prefix: tokens before every prompt, as for ``model_solver``.
        server: what it is. ``"openai"`` asks for nothing but what OpenAI's own API has.
        name: the server's name of the base model; its only one if None. For ``transformers serve``
            a folder or a hub's id.
        tokenizer: the model's, from ``lm.load_tokenizer``; not needed where tokens go both ways.
        chat: ``chat(prompt) -> messages``, for a server that has ``/v1/chat/completions`` alone;
            its template must make the prompt's tokens of them.
        adapters: a folder that this machine and the server have under the same path. Each adapter
            becomes one below it, as ``lm.save_adapters`` writes it. The two newest are kept.
        publish: ``publish(params) -> model name``, instead of ``adapters``: hands parameters over
            in another way. It gets NumPy arrays.
        score: whether ``params`` score all completions.
        tolerance: in nats a token, above 0.
        workers: requests at a time. ``transformers serve`` draws by one generator for all requests,
            so that with it seeds need ``workers=1``.
        timeout: seconds without a byte of an answer.
        retries: how often a request is sent again after a connection error, a timeout or the status
            408, 429 or 5xx, after 0.5, 1, 2 ... seconds.
        api_key: sent as a bearer token.

    Raises:
        ArgumentError: a number is out of its bounds; several samples without a temperature; an
            option that the server or another option rules out; from the solver, tasks of a wrong
            shape, a prompt that is too long, or one that the server's tokenizer would read
            otherwise; factors without ``adapters`` or ``publish``.
        ServerError: from the solver: the server refuses a request, or doesn't answer, or draws from
            another model.

    Example:
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig.llama(vocab_size=64, width=8, n_layers=1, n_heads=2)
        >>> solve = served(
        ...     "http://localhost:8000",
        ...     Transformer(config),
        ...     answer_length=lambda level: level + 1,
        ...     end=2,
        ...     samples=4,
        ...     temperature=1.0,
        ...     adapters="/shared/adapters",
        ... )

    Source: the APIs of vLLM, SGLang and ``transformers serve`` 5.
    """
    _checks.positive_int("samples", samples)
    _checks.non_negative_int("slack", slack)
    _checks.non_negative_int("end", end)
    _checks.positive_int("workers", workers)
    _checks.positive_float("tolerance", tolerance)
    _checks.one_of("server", server, ("vllm", "sglang", "transformers", "openai"))
    if temperature is not None:
        _checks.positive_float("temperature", temperature)
    elif samples > 1:
        raise ArgumentError(f"samples={samples} would all be the same: give a temperature.")
    takes_text = server in ("transformers", "openai") or chat is not None
    if takes_text and tokenizer is None:
        raise ArgumentError(f"tokenizer must be given: server={server!r} takes text here.")
    if adapters is not None and publish is not None:
        raise ArgumentError("adapters and publish are two ways to do the same: give one of them.")
    if adapters is not None and server == "openai":
        raise ArgumentError("adapters: server='openai' has no call that loads one; give publish.")
    client = Client(url, timeout=timeout, retries=retries, api_key=api_key)
    asker = Asker(
        client, server, end, model.config.vocab_size, temperature, not score, tokenizer, chat,
        workers,
    )  # fmt: skip
    base = functools.cache(lambda: only_model(client) if name is None else name)
    if adapters is not None:
        root = _checks.path_of("adapters", adapters)
        publish = adapter_publisher(client, server, root, model.config, base)
    name_of = _Names(base, publish, factors_alone=adapters is not None)
    score_all = scorer(model, temperature)

    def solve(params: Params, key: jax.Array, tasks: Tasks, /) -> Completions:
        check_tasks(tasks)
        prompts, lengths, levels, valid = (np.asarray(part) for part in tasks[:4])
        longest = answer_length(int(levels.max())) + slack
        places = [(row, sample) for row in np.flatnonzero(valid) for sample in range(samples)]
        completions = _empty((len(prompts), samples, -(-longest // _MULTIPLE) * _MULTIPLE))
        if not places:
            return completions
        given = {row: _behind(prefix, prompts[row, -lengths[row] :]) for row, _ in places}
        _check_lengths(given.values(), longest, model.config.max_length)
        sent = {
            row: sent_as(tokenizer, tokens.tolist(), chat)
            if takes_text and tokenizer is not None
            else tokens.tolist()
            for row, tokens in given.items()
        }
        asked = [Prompt(sent[row], given[row].tolist()) for row, _ in places]
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        seeds = rng.integers(2**31, size=len(places))
        served_as = name_of(params)
        answers = from_first(lambda: asker.ask(served_as, asked, seeds, longest))

        def scored(tokens: Sequence[tuple[int, np.ndarray]]) -> Scored:
            texts = [(given[places[number][0]], own) for number, own in tokens]
            return score_all(params, texts, completions.tokens.shape[-1])

        answers = _likeliest(answers, scored)
        found = _log_probs(answers, scored, score, tolerance, url)
        for place, answer, log_probs in zip(places, answers, found, strict=True):
            count = len(answer.tokens)
            completions.tokens[place][:count] = answer.tokens
            completions.log_probs[place][:count] = log_probs[:count]
            completions.lengths[place] = count
            completions.ended[place] = answer.tokens[-1:].tolist() == [end]
        return completions

    return _ModelSolver(solve, temperature)


class _Names:
    """What the server calls parameters, after they were handed over if need be.

    Args:
        base: gives the name of its base model.
        publish: ``publish(params) -> name``, or None.
        factors_alone: whether ``publish`` takes low-rank factors, and what has none is the base.
    """

    def __init__(
        self,
        base: Callable[[], str],
        publish: Callable[[Any], str] | None,
        *,
        factors_alone: bool,
    ) -> None:
        self._base, self._publish, self._factors_alone = base, publish, factors_alone
        self._known: list[tuple[list[Any], str]] = []

    def __call__(self, params: Params) -> str:
        factors = params["lora"] if isinstance(params, dict) and "lora" in params else None
        if factors is None and (self._publish is None or self._factors_alone):
            return from_first(self._base)
        publish = self._publish
        if publish is None:
            raise ArgumentError("adapters or publish must be given: params have factors.")
        leaves = jax.tree.leaves(params)
        for known, name in self._known:
            if list(map(id, known)) == list(map(id, leaves)):
                return name
        given = devices.to_host(factors if self._factors_alone else params)
        name = from_first(lambda: publish(given))
        # The gate goes back and forth between two.
        self._known = [*self._known[-1:], (leaves, name)]
        return name


def _empty(shape: tuple[int, int, int]) -> Completions:
    """Completions without a token, to be filled."""
    return Completions(
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
        np.zeros(shape[:2], np.int32),
        np.zeros(shape[:2], bool),
    )


def _check_lengths(prompts: Iterable[np.ndarray], longest: int, most: int) -> None:
    found = max(map(len, prompts)) + longest
    if found > most:
        raise ArgumentError(
            f"tasks: prompt and answer must fit into max_length={most}, got {found} tokens."
        )


def _likeliest(answers: list[Answer], scored: _Scored) -> list[Answer]:
    """The answers with one reading each: that which is likeliest under the model."""
    open_ones = [
        (number, tokens)
        for number, answer in enumerate(answers)
        if len(answer.readings) > 1
        for tokens in answer.readings
    ]
    if not open_ones:
        return answers
    sums = scored(open_ones).log_probs.sum(axis=1)
    best: dict[int, tuple[float, np.ndarray]] = {}
    for (number, tokens), log_prob in zip(open_ones, sums.tolist(), strict=True):
        if number not in best or log_prob > best[number][0]:
            best[number] = log_prob, tokens
    return [
        answer._replace(readings=[best[number][1]]) if number in best else answer
        for number, answer in enumerate(answers)
    ]


def _log_probs(
    answers: list[Answer], scored: _Scored, score: bool, tolerance: float, url: str
) -> list[np.ndarray]:
    """Of each answer's tokens, the server's or the model's, after both were compared."""
    inexact = sum(not answer.exact for answer in answers)
    if inexact:
        _log.warning(
            "%d of %d completions were drawn as other tokens than the tokenizer makes of their "
            "text; they are learned as it makes them",
            inexact,
            len(answers),
        )
    numbered = [(number, answer.tokens) for number, answer in enumerate(answers)]
    own = [answer.log_probs for answer in answers if answer.log_probs is not None]
    if score or len(own) < len(answers):
        every = scored(numbered)
        must_be_drawn_from(answers, every, tolerance, url)
        return list(every.log_probs)
    which = np.unique(np.linspace(0, len(answers) - 1, _CHECKED).astype(int)).tolist()
    some = scored([numbered[number] for number in which])
    must_agree([answers[number] for number in which], some, tolerance, url)
    return own
