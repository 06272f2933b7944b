"""The JSON files of a Hugging Face folder: configs, indices and special tokens."""

import json
from pathlib import Path
from typing import Any

from metajax.lm.hf_config import CheckpointError


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
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{file} isn't JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return content
