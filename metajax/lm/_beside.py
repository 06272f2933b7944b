"""What a checkpoint's folder holds beside config and weights, written again into another folder."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from metajax.files import read_bytes, replacing, write_atomically
from metajax.lm._folder import CheckpointError, JsonFile
from metajax.lm._hf_config import eos_field, stop_tokens
from metajax.lm.tokenizers import load_tokenizer
from metajax.models import TransformerConfig

_GENERATION = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


def all_stop_tokens(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """The end tokens that a folder's config.json and generation_config.json name.

    Raises:
        CheckpointError: one of them can't be read.
    """
    files = [folder / "config.json", folder / _GENERATION]
    found = [stop_tokens(JsonFile.read(file), vocab_size) for file in files if file.exists()]
    return tuple(dict.fromkeys(token for tokens in found for token in tokens))


def write_again(folder: Path, config: TransformerConfig) -> dict[str, Any]:
    """Writes generation_config.json and the tokenizer of ``config.source``.

    A tokenizer that ``folder`` has already stays. A warning says so where it is another, and where
    the source is gone.

    Returns:
        The special tokens, as fields of config.json.

    Raises:
        CheckpointError: the source's config.json or generation_config.json can't be read.
    """
    if config.source is None:
        return {}
    source = Path(config.source)
    if source.suffix.lower() == ".gguf" and source.is_file():
        return _write_tokenizer(source, folder, config)
    if not (source / "config.json").is_file():
        warnings.warn(
            f"{source}, from which config was read, is gone: its tokenizer and {_GENERATION} "
            f"aren't written to {folder}.",
            stacklevel=3,
        )
        return {}
    fields = JsonFile.read(source / "config.json").fields
    tokens = {name: fields[name] for name in _TOKENS if name in fields}
    own = {}
    if all_stop_tokens(source, config.vocab_size) != config.stop_tokens:
        own = {"eos_token_id": eos_field(config.stop_tokens)}
    if (source / _GENERATION).is_file():
        generation = {**JsonFile.read(source / _GENERATION).fields, **own}
        write_atomically(folder / _GENERATION, json.dumps(generation, indent=2) + "\n")
    _copy_tokenizer(source, folder)
    return tokens | own


def _write_tokenizer(source: Path, folder: Path, config: TransformerConfig) -> dict[str, Any]:
    """Writes the tokenizer of a GGUF file. The weights are saved whatever that file holds."""
    try:
        tokenizer = load_tokenizer(source)
    except CheckpointError as error:
        warnings.warn(f"{error} No tokenizer is written to {folder}.", stacklevel=4)
        return {}
    file = folder / "tokenizer.json"
    if not file.exists():
        tokenizer.save(folder)
    elif read_bytes(file) != tokenizer.backend.to_str().encode():
        _warn_of_own_tokenizer(source, folder)
    tokens = tokenizer.bos_id, eos_field(config.stop_tokens), tokenizer.pad_id
    return dict(zip(_TOKENS, tokens, strict=True))


def _warn_of_own_tokenizer(source: Path, folder: Path) -> None:
    warnings.warn(
        f"{folder} has a tokenizer of its own, which stays: that of {source} isn't written.",
        stacklevel=5,
    )


def _copy_tokenizer(source: Path, folder: Path) -> None:
    files = [file for name in _TOKENIZER for file in sorted(source.glob(name)) if file.is_file()]
    targets = [folder / file.relative_to(source) for file in files]
    pairs = list(zip(files, targets, strict=True))
    if any(there.exists() and read_bytes(there) != read_bytes(file) for file, there in pairs):
        _warn_of_own_tokenizer(source, folder)
        return
    for file, there in pairs:
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            with replacing(there) as temporary:
                shutil.copyfile(file, temporary)
