"""Prompts and answers of servers that take and give text instead of tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from metajax.errors import ArgumentError
from metajax.lm import HFTokenizer

Chat = Callable[[str], Sequence[dict[str, Any]]]
"""``chat(prompt) -> messages``: the chat of which a template makes this prompt."""


def as_text(tokenizer: HFTokenizer, tokens: Sequence[int]) -> str:
    """The text of a prompt. A begin token is left out: a server's tokenizer adds it."""
    return tokenizer.decode(tokens[1:] if tokens[0] == tokenizer.bos_id else tokens)


def sent_as(tokenizer: HFTokenizer, tokens: list[int], chat: Chat | None) -> Any:
    """The text, or the messages, of which a server makes these tokens.

    Raises:
        ArgumentError: it would make others of them.
    """
    text = as_text(tokenizer, tokens)
    if chat is None:
        sent, read = text, tokenizer.encode(text)
    else:
        sent = list(chat(tokenizer.decode(tokens)))
        read = tokenizer.encode(tokenizer.apply_chat_template(sent))
    if read != tokens:
        what = "it" if chat is None else "the chat"
        raise ArgumentError(
            f"tasks: a server would read other tokens than those of the prompt {text!r}. Of {what} "
            f"the tokenizer makes {read}, not {tokens}."
        )
    return sent


def readings(
    tokenizer: HFTokenizer, prompt: list[int], text: str, counts: Sequence[int]
) -> tuple[list[list[int]], bool]:
    """What an answer's text may have been as tokens, without the end token.

    A tokenizer may drop the space that an answer begins with, so that there are two.

    Args:
        tokenizer: the model's.
        prompt: tokens before it.
        text: what the server wrote.
        counts: how many tokens it may have drawn; any number if empty.

    Returns:
        At least one reading, and whether all spell the text and are as many as were drawn.
    """
    before = as_text(tokenizer, prompt)
    found = []
    for written in (text, f" {text}"):
        whole = tokenizer.encode(before + written)
        behind = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt:
            behind = tokenizer.encode(written, add_special_tokens=False)
        if behind not in found:
            found.append(behind)
    spells = lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True) == text
    spelled = list(filter(spells, found))
    exact = [tokens for tokens in spelled if not counts or len(tokens) in counts]
    return exact or spelled[:1] or found[:1], bool(exact)
