"""The JSON files of a Hugging Face folder: configs, indices and special tokens."""

import json
from pathlib import Path
from typing import Any

from metajax.lm.hf_config import CheckpointError

MOST_BYTES = 1 << 26
"""Of a JSON file: indices and configs have a few MB at most."""


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: the file is missing or can't be read, isn't JSON, or holds something else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "config.json"
        >>> file.write_text('{"model_type": "llama"}')
        23
        >>> read_object(file)
        {'model_type': 'llama'}
    """
    try:
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file} can't be read: it is no file.")
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error}.") from error
    if len(text) > MOST_BYTES:
        raise CheckpointError(f"{file} can't be read: it has more than {MOST_BYTES} bytes.")
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} isn't JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return content
