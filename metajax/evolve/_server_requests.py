"""What servers with the OpenAI-compatible API are asked, and what their answers mean."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import ServerError
from metajax.evolve._http import Client
from metajax.evolve._server_texts import Chat, readings
from metajax.lm import HFTokenizer


class Prompt(NamedTuple):
    """A prompt as a server reads it.

    Attributes:
        sent: its tokens, its text or its messages.
        tokens: what the server makes of it.
    """

    sent: Any
    tokens: list[int]


class Answer(NamedTuple):
    """A completion as the server gives it.

    Attributes:
        readings: what may be its tokens, the end token among them: one, or two where a text leaves
            it open.
        log_probs: of each token; None where the server doesn't give all.
        exact: whether it drew one of the readings, as far as one can tell.
    """

    readings: list[np.ndarray]
    log_probs: np.ndarray | None
    exact: bool

    @property
    def tokens(self) -> np.ndarray:
        """The first reading."""
        return self.readings[0]


@dataclasses.dataclass(frozen=True)
class Asker:
    """Asks a server for completions.

    Attributes:
        client: the server.
        server: its kind.
        end: the token that ends an answer.
        vocab_size: of the model.
        temperature: of sampling; None takes the likeliest token.
        log_probs: whether to ask for them. Servers of text aren't asked: their tokens may be others
            than those of their text.
        tokenizer: None where tokens go both ways.
        chat: None where prompts are sent.
        workers: requests at a time.
    """

    client: Client
    server: str
    end: int
    vocab_size: int
    temperature: float | None
    log_probs: bool
    tokenizer: HFTokenizer | None
    chat: Chat | None
    workers: int

    def ask(
        self, model: str, prompts: Sequence[Prompt], seeds: np.ndarray, longest: int
    ) -> list[Answer]:
        """An answer of at most ``longest`` tokens to each prompt."""
        bodies = [
            self._body(model, prompt.sent, int(seed), longest)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        path = "/v1/completions" if self.chat is None else "/v1/chat/completions"
        found = self.client.post_all(path, bodies, self.workers)
        return [
            self._read(answer, prompt.tokens, longest)
            for answer, prompt in zip(found, prompts, strict=True)
        ]

    def _body(self, model: str, sent: Any, seed: int, longest: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "max_tokens": longest, "seed": seed}
        body["prompt" if self.chat is None else "messages"] = sent
        if self.server == "transformers":
            # A temperature alone wouldn't make it draw, and it refuses fields that it doesn't know.
            own: dict[str, Any] = {"eos_token_id": self.end, "pad_token_id": self.end}
            if self.temperature is not None:
                own |= {"do_sample": True, "temperature": self.temperature}
                own |= {"top_k": 0, "top_p": 1.0}
            return body | {"generation_config": json.dumps({**own, "max_new_tokens": longest})}
        body |= {"temperature": self.temperature or 0.0, "top_p": 1.0}
        if self.server in ("vllm", "sglang"):
            if self.log_probs:
                body["logprobs"] = 1 if self.chat is None else True
            # The checkpoint's generation_config.json may say otherwise.
            body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
            body |= {"stop_token_ids": [self.end], "return_token_ids": True}
        if self.server == "vllm":
            body["ignore_eos"] = True  # the model may have end tokens beside ``end``
        return body

    def _read(self, answer: Any, prompt: list[int], longest: int) -> Answer:
        try:
            (choice,) = answer["choices"]
            reason, tokens = choice["finish_reason"], choice.get("token_ids")
            log_probs, found, exact = _log_probs_of(choice), [tokens], True
            if tokens is None:
                log_probs = []  # of tokens that may be others
                found, exact = self._from_text(answer, choice, prompt)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            shown = json.dumps(answer)[:500]
            raise ServerError(f"{self.client.url} gave no completion: {shown}") from error
        if reason not in ("stop", "length"):
            raise ServerError(f"{self.client.url} broke a completion off: {reason!r}.")
        stopped = tokens is None and reason == "stop"
        stopped |= self.end in (choice.get("stop_reason"), choice.get("matched_stop"))
        arrays = [self._whole(tokens, stopped)[:longest] for tokens in found]
        complete = len(log_probs) >= len(arrays[0]) and None not in log_probs
        own = np.array(log_probs[: len(arrays[0])], np.float32) if complete else None
        return Answer(arrays, own, exact)

    def _whole(self, tokens: list[int], stopped: bool) -> np.ndarray:
        """Tokens up to the end token, which a server may leave out."""
        if self.end in tokens:
            tokens = tokens[: tokens.index(self.end) + 1]
        elif stopped:
            tokens = [*tokens, self.end]
        found = np.array(tokens, np.int32)
        wrong = found[(found < 0) | (found >= self.vocab_size)]
        if wrong.size:
            raise ServerError(
                f"{self.client.url} has another model: it drew token {wrong[0]}, but there are "
                f"{self.vocab_size}."
            )
        return found

    def _from_text(
        self, answer: Any, choice: Any, prompt: list[int]
    ) -> tuple[list[list[int]], bool]:
        """What may be the tokens of an answer's text, and whether they were drawn."""
        if self.tokenizer is None:
            raise ServerError(
                f"{self.client.url} gives no token_ids, as newer versions do. Give tokenizer, by "
                "which they are found from its text."
            )
        text = choice["text"] if self.chat is None else choice["message"]["content"] or ""
        count = (answer.get("usage") or {}).get("completion_tokens")
        ended = choice["finish_reason"] == "stop"
        counts = [] if count is None else [count - ended]
        if ended and count is not None and self.server == "openai":
            counts.append(count)  # some don't count the end token
        return readings(self.tokenizer, prompt, text, counts)


def _log_probs_of(choice: Any) -> list[float | None]:
    """Of each token; empty where there are none."""
    given = choice.get("logprobs") or {}
    if "token_logprobs" in given:
        return given["token_logprobs"]
    return [each["logprob"] for each in given.get("content") or ()]


def only_model(client: Client) -> str:
    """The name of the base model that a server has.

    Raises:
        ServerError: it has none, or several.
    """
    models = client.get("/v1/models")
    try:
        # vLLM lists adapters too, and of which model they are.
        names = [each["id"] for each in models["data"] if not each.get("parent")]
    except (AttributeError, KeyError, TypeError) as error:
        raise ServerError(f"{client.url}/v1/models lists no models: {models}") from error
    if len(names) != 1:
        raise ServerError(f"{client.url} has the models {names}: say by name which one is meant.")
    return names[0]
