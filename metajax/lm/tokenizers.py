"""Text to tokens and back: by character, or as a Hugging Face folder says; chat templates."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from metajax import _checks
from metajax._extras import import_extra
from metajax.errors import ArgumentError
from metajax.files import read_bytes, write_atomically
from metajax.lm import _chat_templates, _gguf_tokenizer
from metajax.lm._folder import (
    TEXT,
    TEXTS,
    CheckpointError,
    JsonFile,
    checkpoint_errors,
    library_errors,
    resolve,
)


class Tokenizer(Protocol):
    """What turns text into tokens; ``CharTokenizer`` and ``HFTokenizer`` do."""

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of tokens."""
        ...


def _shown(items: Sequence[str], limit: int = 20) -> str:
    """Up to so many of them, quoted."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(repr, items[:limit])) + more


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """A token for each character, after those for the special tokens.

    ``encode`` makes characters only; a special token's number is ``special(token)``.

    Raises:
        ArgumentError: if a character or a special token comes twice, or a special token is empty.

    Example:
        >>> tokenizer = CharTokenizer.of("hello", specials=("<pad>",))
        >>> tokenizer.encode("hole"), tokenizer.vocab_size, tokenizer.special("<pad>")
        ([2, 4, 3, 1], 5, 0)
        >>> tokenizer.decode([2, 4, 3, 1, 0])
        'hole<pad>'
    """

    characters: str
    """The characters, in the order of their tokens."""
    specials: tuple[str, ...] = ()
    """Special tokens, numbered from 0; the characters come after them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "specials", tuple(self.specials))
        for name in ("characters", "specials"):
            values = list(getattr(self, name))
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ArgumentError(f"{name} must be distinct, got {_shown(twice)} twice.")
        if "" in self.specials:
            raise ArgumentError(f"specials must not be empty strings, got {self.specials!r}.")

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        first = len(self.specials)
        return {character: first + index for index, character in enumerate(self.characters)}

    @classmethod
    def of(cls, text: str, *, specials: Sequence[str] = ()) -> "CharTokenizer":
        """A tokenizer of the characters that a text has, sorted."""
        return cls("".join(sorted(set(text))), tuple(specials))

    @property
    def vocab_size(self) -> int:
        """Special tokens and characters."""
        return len(self.specials) + len(self.characters)

    def special(self, token: str) -> int:
        """A special token's number."""
        if not self.specials:
            raise ArgumentError(f"token: the tokenizer has no special tokens, got {token!r}.")
        if token not in self.specials:
            raise ArgumentError(f"token must be one of {_shown(self.specials)}, got {token!r}.")
        return self.specials.index(token)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; an ArgumentError for characters without one."""
        try:
            return [self._numbers[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - self._numbers.keys())
            raise ArgumentError(
                f"text has characters without a token: {_shown(unknown)}. Those with one are "
                f"{_shown(self.characters) or 'none'}."
            ) from None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens, with or without special ones; an ArgumentError for unknown tokens."""
        first, pieces = len(self.specials), [*self.specials, *self.characters]
        numbers = np.asarray(ids).tolist()
        wrong = [str(number) for number in numbers if not 0 <= number < len(pieces)]
        if wrong:
            raise ArgumentError(f"ids must be from 0 to {len(pieces) - 1}, got {_shown(wrong)}.")
        skipped = first if skip_special_tokens else 0
        return "".join(pieces[number] for number in numbers if number >= skipped)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all."""
        content = {"characters": self.characters, "specials": list(self.specials)}
        write_atomically(Path(path), json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "CharTokenizer":
        """Reads what ``save`` wrote; a ValueError that names the file where it isn't that."""
        file = JsonFile.read(Path(path))
        characters, specials = file.need("characters", TEXT), file.need("specials", TEXTS)
        try:
            return cls(characters, tuple(specials))
        except ArgumentError as error:
            raise CheckpointError(f"{path}: {error}") from error


class _ChatText(str):
    """What a chat template wrote, which has its special tokens."""


class HFTokenizer:
    """The tokenizer of a Hugging Face folder, from ``load_tokenizer``; see there.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        special_tokens: ``{"bos_token": "<s>", ...}``, as the folder names them.
        chat_templates: Jinja sources by name; a single one is ``"default"``.
    """

    def __init__(
        self, backend: Any, special_tokens: Mapping[str, str], chat_templates: Mapping[str, str]
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        missing = [text for text in self.special_tokens.values() if self.token_id(text) is None]
        if missing:
            raise CheckpointError(
                f"tokenizer_config.json names special tokens that tokenizer.json hasn't: "
                f"{_shown(missing)}."
            )
        # So that they stay whole, and decode can leave them out, whatever tokenizer.json says.
        backend.add_special_tokens(list(self.special_tokens.values()))

    @property
    def vocab_size(self) -> int:
        """Tokens with a number, added ones too; a model's embedding may have more rows."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """What a text begins with; None if nothing."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """What a text, or an answer, ends with; None if nothing."""
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """What fills rows up; None if nothing."""
        return self._special_id("pad_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    def token_id(self, token: str) -> int | None:
        """The number of a token given as text, such as ``"<|im_end|>"``; None if there is none."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """The tokens of a text, special ones that it spells out among them.

        Args:
            text: the text.
            add_special_tokens: whether to add those that the folder puts around every text, such as
                the begin token; not a second one where the text spells it out. If None, they are
                added unless the text is from ``apply_chat_template``, which writes them itself.
        """
        if add_special_tokens is None:
            add_special_tokens = not isinstance(text, _ChatText)
        with library_errors("text can't be encoded", ArgumentError):
            ids = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        twice = ids[:2] == [self.bos_id] * 2
        if add_special_tokens and twice and self.backend.encode("").ids[:1] == ids[:1]:
            ids = ids[1:]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens, with or without special ones."""
        numbers = np.asarray(ids).tolist()
        with library_errors("ids can't be decoded", ArgumentError):
            return self.backend.decode(numbers, skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, for ``load_tokenizer`` and transformers.

        Args:
            folder: made if need be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        fields |= self.special_tokens
        if self.chat_templates:
            named = [{"name": k, "template": v} for k, v in self.chat_templates.items()]
            alone = self.chat_templates.get("default") if len(named) == 1 else None
            fields["chat_template"] = alone or named
        write_atomically(folder / "tokenizer.json", self.backend.to_str())
        text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
        write_atomically(folder / "tokenizer_config.json", text)

    def apply_chat_template(
        self,
        messages: Sequence[_chat_templates.Message],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """A chat as the text that the model was trained on; ``encode`` it as it is.

        Args:
            messages: the turns; keys whose value is None are left out.
            add_generation_prompt: whether the text ends with the beginning of an answer.
            template: a name in ``chat_templates``; ``"default"`` if None, or ``"tool_use"`` where
                there is one and ``tools`` are given.
            **variables: others that the template reads, such as ``tools`` or ``enable_thinking``.

        Raises:
            ArgumentError: if there is no message, no template, no such one, or it refuses the
                chat.
            ImportError: if Jinja isn't installed.
        """
        if template is None:
            tools = variables.get("tools") is not None and "tool_use" in self.chat_templates
            template = "tool_use" if tools else "default"
        if not self.chat_templates:
            raise ArgumentError(
                "chat_templates is empty: the folder has no chat template. Set "
                "chat_templates['default'] to the Jinja source of one, or write the text yourself."
            )
        if template not in self.chat_templates:
            known = _shown(sorted(self.chat_templates))
            raise ArgumentError(f"template must be one of {known}, got {template!r}.")
        text = _chat_templates.render(
            self.chat_templates[template],
            messages,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens, **variables},
        )
        return _ChatText(text)


def load_tokenizer(folder: str | Path) -> HFTokenizer:
    """The tokenizer of a Hugging Face folder, or of a GGUF file.

    It reads tokenizer.json, and where they are there tokenizer_config.json, with special tokens and
    chat templates, and chat_template.jinja, which takes precedence. ``encode`` puts begin and end
    token around a text as tokenizer.json does, or as ``add_bos_token`` and ``add_eos_token`` of
    tokenizer_config.json say.

    Args:
        folder: the folder, a hub's id, or a file whose name ends in .gguf; as for
            ``load_pretrained``.

    Raises:
        CheckpointError: if the folder or its tokenizer.json is missing, the latter hasn't a special
            token that is named, or a file can't be read.
        ImportError: if the library ``tokenizers`` isn't installed.

    Example:
        >>> import tempfile, tokenizers
        >>> folder = Path(tempfile.mkdtemp())
        >>> words = tokenizers.models.WordLevel({"hello": 0, "world": 1}, unk_token="hello")
        >>> tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
        >>> load_tokenizer(folder).encode("world")
        [1]
    """
    tokenizers = import_extra("tokenizers", extra="lm")
    path = _checks.path_of("folder", folder)
    if path.suffix.lower() == ".gguf":
        with library_errors(f"{path} has no tokenizer that can be used"):
            *parts, around = _gguf_tokenizer.read(path)
            return _with_ends(HFTokenizer(*parts), around)
    folder = resolve(folder)
    path = folder / "tokenizer.json"
    with checkpoint_errors():
        content = read_bytes(path)
    config = _fields(folder / "tokenizer_config.json")
    # Older folders name special tokens in a file of their own.
    named = {**_fields(folder / "special_tokens_map.json"), **config}
    # A token is a string, or an object whose "content" is one; "add_bos_token" is neither.
    texts = {k: v.get("content") if isinstance(v, dict) else v for k, v in named.items()}
    tokens = {k: v for k, v in texts.items() if k.endswith("_token") and isinstance(v, str)}
    templates = _chat_templates.read(folder, config.get("chat_template"))
    with library_errors(f"{path} can't be used"):
        backend = tokenizers.Tokenizer.from_buffer(content)
        backend.no_truncation()  # it may ask for it, and for padding: that is for training
        backend.no_padding()
        return _with_ends(HFTokenizer(backend, tokens, templates), config)


def _with_ends(tokenizer: HFTokenizer, config: Mapping[str, Any]) -> HFTokenizer:
    """Puts begin and end token around texts as ``add_bos_token`` and ``add_eos_token`` say.

    What isn't said stays as tokenizer.json has it.
    """
    around = tokenizer.backend.encode("").ids
    begins = around[:1] == [tokenizer.bos_id]
    ends = around[begins:][-1:] == [tokenizer.eos_id]
    pieces = []
    for name, now in (("bos_token", begins), ("eos_token", ends)):
        asked = config.get(f"add_{name}")
        text = tokenizer.special_tokens.get(name)
        pieces.append([text] if text and (asked if isinstance(asked, bool) else now) else [])
    first, last = pieces
    if (bool(first), bool(last)) != (begins, ends):
        processors = import_extra("tokenizers.processors", extra="lm")
        tokenizer.backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            special_tokens=[(text, tokenizer.token_id(text)) for text in {*first, *last}],
        )
    return tokenizer


def _fields(path: Path) -> Mapping[str, Any]:
    """The fields of a JSON file; none where it isn't there."""
    return JsonFile.read(path).fields if path.exists() else {}
