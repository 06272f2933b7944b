"""A vocabulary of fewer tokens: most of a small model's work is its head's."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from metajax import lm
from metajax.errors import ArgumentError
from metajax.models import Transformer


class FewerTokens:
    """A tokenizer that keeps some of another one's tokens, and the model's rows of them.

    The body of the model is the same, and factors of it fit the whole model. Probabilities are of
    the tokens that are kept.

    Args:
        tokenizer: the whole one.
        texts: whose tokens are kept, and those of each character that can be seen in ASCII, alone
            and behind a space.
        vocab_size: the model's number of tokens.
        most: how many are kept; the first ones fill up. None keeps all.

    Attributes:
        kept: the original numbers of the tokens, in order.

    Raises:
        ArgumentError: the texts have more tokens than ``most``, or the tokenizer has more than the
            model.
    """

    def __init__(
        self, tokenizer: lm.HFTokenizer, texts: Iterable[str], vocab_size: int, most: int | None
    ) -> None:
        if vocab_size < tokenizer.vocab_size:
            raise ArgumentError(
                f"vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, got "
                f"{vocab_size}."
            )
        self._tokenizer = tokenizer
        self.kept = np.arange(vocab_size)
        if most is None or most >= vocab_size:
            return
        seen = [*map(chr, range(33, 127)), "\n"]
        whole = [*texts, *seen, *(f" {character}" for character in seen)]
        ends = [tokenizer.bos_id, tokenizer.eos_id]
        used = {token for token in ends if token is not None}.union(*map(self._whole, whole))
        if len(used) > most:
            raise ArgumentError(f"vocabulary must be at least {len(used)} here; got {most}")
        first = (number for number in range(vocab_size) if number not in used)
        self.kept = np.sort([*used, *(next(first) for _ in range(most - len(used)))])

    def cut(self, model: Transformer, params: Any) -> tuple[Transformer, Any]:
        """The model with these tokens alone.

        Raises:
            ArgumentError: its head isn't tied.
        """
        count = len(self.kept)
        if count == model.config.vocab_size:
            return model, params
        if not model.config.tied:
            raise ArgumentError("vocabulary: only a model with a tied head can be cut")
        rows = params["embed"]["embedding"][self.kept]
        config = dataclasses.replace(model.config, vocab_size=count, stop_tokens=())
        return Transformer(config), {**params, "embed": {"embedding": rows}}

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        return len(self.kept)

    @property
    def bos_id(self) -> int | None:
        """What a text begins with; None if nothing."""
        return self._number(self._tokenizer.bos_id)

    @property
    def eos_id(self) -> int | None:
        """What a text ends with; None if nothing."""
        return self._number(self._tokenizer.eos_id)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without others around it.

        Raises:
            ArgumentError: one of them isn't kept.
        """
        found = self._whole(text)
        numbers = np.searchsorted(self.kept, found)
        missing = self.kept[np.minimum(numbers, len(self.kept) - 1)] != found
        if missing.any():
            piece = self._tokenizer.decode([found[int(np.argmax(missing))]])
            raise ArgumentError(f"text has a token that isn't kept, {piece!r}.")
        return numbers.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens."""
        return self._tokenizer.decode(self.kept[np.asarray(ids, int)].tolist())

    def _whole(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _number(self, token: int | None) -> int | None:
        return None if token is None else int(np.searchsorted(self.kept, token))
