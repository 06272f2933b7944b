"""The tokenizer in a GGUF file, as one of the library ``tokenizers``."""

from pathlib import Path
from typing import Any

from metajax._extras import import_extra
from metajax.lm._folder import (
    FLAG,
    INTEGER,
    LIST,
    NUMBER,
    TEXT,
    TEXTS,
    CheckpointError,
    JsonFile,
    Kind,
    library_errors,
)
from metajax.lm._gguf import GGUFFile

_OWN = "tokenizer.ggml."
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # kinds of tokens
_SPACE = "▁"
# How a text is cut before its bytes are merged, by the name that llama.cpp gives it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CUTS = {
    "gpt-2": [_GPT2],
    "llama-bpe": [_WORDS.replace("DIGITS", "{1,3}")],
    "qwen2": [_WORDS.replace("DIGITS", "")],
    "smollm": [r"\p{N}", _GPT2],
}
_NUMBERS = Kind(
    "a list of numbers", lambda value: LIST.holds(value) and all(map(NUMBER.holds, value))
)
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read(path: Path) -> tuple[Any, dict[str, str], dict[str, str], dict[str, bool]]:
    """A file's tokenizer, its special tokens by name, its chat templates by name, and whether begin
    and end token go around each text.

    Raises:
        CheckpointError: there is none; its kind isn't supported; its lists don't fit each other or
            the model's embedding.
        ImportError: gguf or tokenizers isn't installed.
    """
    file = GGUFFile(path)
    meta = file.metadata
    tokens = meta.get(_OWN + "tokens", TEXTS)
    if tokens is None:
        raise CheckpointError(f"{path} has no tokenizer.")
    file.vocab_size()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise CheckpointError(f"{path}: {_OWN}tokens must hold each of them once.")
    types = meta.get(_OWN + "token_type", _NUMBERS, [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise CheckpointError(
            f"{path}: {_OWN}token_type has {len(types)} numbers for {len(tokens)} tokens."
        )
    tokenizers = import_extra("tokenizers", extra="lm")
    special = {
        ours: tokens[number]
        for ours, theirs in _SPECIAL.items()
        if (number := _token(meta, theirs, len(tokens))) is not None
    }
    kind = meta.one_of(_OWN + "model", ("llama", "gpt2"))
    if kind == "llama":
        backend = _sentencepiece(file, vocabulary, types, special.get("unk_token"))
    else:
        backend = _byte_level(file, vocabulary)
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, normalized=False, special=of == _CONTROL)
            for token, of in zip(tokens, types, strict=True)
            if of in (_CONTROL, _USER_DEFINED)
        ]
    )
    begins = kind == "llama" or meta.fields.get(_OWN + "pre") == "llama-bpe"
    around = {
        name: meta.get(_OWN + name, FLAG, default)
        for name, default in (("add_bos_token", begins), ("add_eos_token", False))
    }
    return backend, special, _chat_templates(meta), around


def _token(meta: JsonFile, name: str, size: int) -> int | None:
    number = meta.get(_OWN + name, INTEGER)
    if number is None or 0 <= number < size:
        return number
    raise CheckpointError(f"{meta.name}: {_OWN}{name} must be below {size}, got {number}.")


def _sentencepiece(
    file: GGUFFile, vocabulary: dict[str, int], types: list[int], unknown: str | None
) -> Any:
    """SentencePiece's BPE: of all neighbours, those whose union has the highest score merge."""
    tokenizers = import_extra("tokenizers", extra="lm")
    scores = file.metadata.get(_OWN + "scores", _NUMBERS, [])
    if len(scores) != len(vocabulary):
        raise CheckpointError(
            f"{file.path}: {_OWN}scores must have {len(vocabulary)} numbers, got {len(scores)}."
        )
    merges = [
        (scores[number], token[:cut], token[cut:])
        for token, number in vocabulary.items()
        if types[number] == _NORMAL
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges.sort(key=lambda merge: -merge[0])
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary,
            [(left, right) for _, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=_BYTE in types,
        )
    )
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    prefix = file.metadata.get(_OWN + "add_space_prefix", FLAG, True)
    before = [normalizers.Prepend(_SPACE)] if prefix else []
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return backend


def _byte_level(file: GGUFFile, vocabulary: dict[str, int]) -> Any:
    """GPT-2's BPE of bytes, with the merges in their order."""
    tokenizers = import_extra("tokenizers", extra="lm")
    pairs = [tuple(merge.split(" ")) for merge in file.metadata.get(_OWN + "merges", TEXTS, [])]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise CheckpointError(f"{file.path}: {_OWN}merges must be pairs with a space between.")
    cut = file.metadata.one_of(_OWN + "pre", _CUTS)
    with library_errors(f"{file.path}: {_OWN}merges don't fit its tokens"):
        model = tokenizers.models.BPE(vocabulary, pairs, ignore_merges=cut == "llama-bpe")
    backend = tokenizers.Tokenizer(model)
    if cut == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            *(
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(at), "isolated")
                for at in _CUTS[cut]
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _chat_templates(meta: JsonFile) -> dict[str, str]:
    """A single one is ``"default"``."""
    beginning = "tokenizer.chat_template"
    return {
        name.removeprefix(beginning).removeprefix(".") or "default": meta.need(name, TEXT)
        for name in meta.fields
        if name == beginning or name.startswith(beginning + ".")
    }
