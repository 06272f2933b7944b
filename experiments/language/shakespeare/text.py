"""The text: a file, or Shakespeare's plays from the cache or the network."""

import urllib.request
from pathlib import Path

from metajax import files
from metajax.data import DataNotFoundError, cache_folder
from metajax.files import write_atomically

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
CHARACTERS = 1_115_394
"""The length of the text at ``URL``."""
MOST_BYTES = 1 << 33
"""Of a text; it is kept in memory."""


def read_text(path: Path | None) -> str:
    """The text of a file, or Shakespeare's, which is kept in the cache.

    Raises:
        DataNotFoundError: there is no such file, or the download fails.
        FileError: the file isn't UTF-8, or has more than ``MOST_BYTES``.
    """
    if path is not None:
        if not path.exists():
            raise DataNotFoundError(f"data: there is no file {path}.")
        return files.read_text(path, MOST_BYTES)
    cached = cache_folder() / "text" / "tinyshakespeare.txt"
    if cached.exists():
        return _checked(files.read_text(cached), f"the file {cached}")
    print(f"Downloading {URL} ...", flush=True)
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            text = response.read(files.MOST_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataNotFoundError(
            f"Shakespeare's text could not be downloaded from {URL} ({error}). Without a network,"
            " name a text of yours: --data FILE"
        ) from error
    text = _checked(text, f"what {URL} sent")
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, text)
    return text


def _checked(text: str, what: str) -> str:
    if len(text) <= 1_000_000 or not text.startswith("First Citizen"):
        raise DataNotFoundError(
            f"{what} is not Shakespeare's plays: {len(text)} characters that begin with"
            f" {text[:20]!r}. Remove it, or name another text: --data FILE"
        )
    return text
