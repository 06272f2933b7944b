"""A Hugging Face folder and its JSON files, with errors that name the file and the field."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax import _checks
from metajax._extras import import_extra
from metajax.errors import FileError, MetajaxError
from metajax.files import open_to_read, read_json

_DTYPES = ("F64", "F32", "F16", "BF16")


class CheckpointError(FileError):
    """A checkpoint can't be read or written. The message names the file, and tensor or field."""


@contextlib.contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Makes a ``CheckpointError`` of another of our errors."""
    try:
        yield
    except MetajaxError as error:
        raise CheckpointError(str(error)) from error


@contextlib.contextmanager
def library_errors(problem: str, kind: type[MetajaxError] = CheckpointError) -> Iterator[None]:
    """Makes our error of what tokenizers raises: bare exceptions, and where it panics one that
    isn't an ``Exception``."""
    try:
        yield
    except MetajaxError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise kind(f"{problem}: {error}.") from error
        raise


@contextlib.contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """An open safetensors file; a CheckpointError if it is missing or damaged."""
    safetensors = import_extra("safetensors", extra="lm")
    with checkpoint_errors():
        open_to_read(file).close()
    try:
        opened = safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short: {error}.") from error
    with opened:
        yield opened


def read_tensor(
    file: Path, opened: Any, name: str, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """A tensor of floats from a safetensors file, of that shape if one is given; else a
    CheckpointError."""
    safetensors = import_extra("safetensors", extra="lm")
    try:
        header = opened.get_slice(name)
        found, dtype = tuple(header.get_shape()), header.get_dtype()
        if found == (found if shape is None else shape) and dtype in _DTYPES:
            return opened.get_tensor(name)
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{file}: {name} can't be read: {error}.") from error
    if shape not in (None, found):
        raise CheckpointError(f"{file}: {name} has shape {found}, config.json asks for {shape}.")
    raise CheckpointError(
        f"{file}: {name} has dtype {dtype}, which isn't supported, {', '.join(_DTYPES)} are."
    )


class Kind(NamedTuple):
    """What a field's value must be: in words, and as a predicate."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any, types: Any) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)  # JSON's true is no number


INTEGER = Kind("an integer", lambda value: _is_number(value, int))
NUMBER = Kind("a number", lambda value: _is_number(value, int | float))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
TOKENS = Kind(
    "an integer or a list of integers",
    lambda value: all(
        _is_number(token, int) for token in (value if isinstance(value, list) else [value])
    ),
)
TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
)


class JsonFile(NamedTuple):
    """The object in a JSON file.

    Attributes:
        fields: the object; a field that is null counts as missing.
        name: of the file, for messages.

    Example:
        >>> config = JsonFile({"r": 8, "bias": None}, "config.json")
        >>> config.need("r", INTEGER), config.get("bias", TEXT, "none")
        (8, 'none')
    """

    fields: Mapping[str, Any]
    name: str

    @classmethod
    def read(cls, file: Path) -> "JsonFile":
        """Reads a file.

        Raises:
            CheckpointError: it is missing or can't be read, or doesn't hold a JSON object.
        """
        with checkpoint_errors():
            fields = read_json(file)
        if not isinstance(fields, dict):
            raise CheckpointError(f"{file} must hold a JSON object, got {type(fields).__name__}.")
        return cls(fields, str(file))

    def get(self, field: str, kind: Kind, default: Any = None) -> Any:
        """A field's value, or the default where it is missing."""
        value = self.fields.get(field)
        if value is None:
            return default
        if not kind.holds(value):
            raise CheckpointError(
                f"{self.name}: {field} must be {kind.words}, got {_checks.shown(value)}."
            )
        return value

    def need(self, field: str, kind: Kind) -> Any:
        """The same, of a field that must be there."""
        if self.fields.get(field) is None:
            raise CheckpointError(f"{self.name}: the field {field!r} is missing.")
        return self.get(field, kind)

    def one_of(self, field: str, supported: Collection[Any], default: Any = None) -> Any:
        """The same, of a field with few supported values; of the default too, where it is given."""
        value = self.fields.get(field)
        value = default if value is None else value
        # A list or an object of JSON can't be looked up in a dict.
        if not any(value == each for each in supported):
            raise self.unsupported(field, value, " or ".join(map(repr, supported)) + " is")
        return value

    def unsupported(self, field: str, value: Any, supported: str = "") -> CheckpointError:
        """The error for a value that means something which metajax doesn't do."""
        suffix = f", {supported}" if supported else ""
        return CheckpointError(
            f"{self.name}: {field}={_checks.shown(value)} isn't supported{suffix}."
        )


def resolve(folder: str | Path) -> Path:
    """A folder as it is; a hub's id as the folder that huggingface_hub downloads it to.

    Raises:
        CheckpointError: it isn't there and can't be downloaded.
        ImportError: huggingface_hub isn't installed.
    """
    path = _checks.path_of("folder", folder)
    if path.is_dir():
        return path
    name = str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"folder: {name} is no folder, and no hub id such as 'Qwen/Qwen3-0.6B'."
        )
    hub = import_extra("huggingface_hub", extra="lm")
    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # whatever the hub's client and its transport raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"folder: {name} is no folder here, and downloading it from the hub failed "
            f"({type(error).__name__}: {first}). Download its files on a machine that can, and "
            "pass their folder."
        ) from error
