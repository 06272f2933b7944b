"""The header of a GGUF file: its fields, and where its tensors are.

The ``gguf`` library's own reader makes NumPy arrays of every token. For a large vocabulary that
takes seconds and hundreds of megabytes. It also reads beyond the end of a file that is cut short.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax._extras import import_extra
from metajax.files import open_to_read
from metajax.lm._folder import CheckpointError, checkpoint_errors

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_AXES = 4


class StoredTensor(NamedTuple):
    """A tensor in the file.

    Attributes:
        shape: as NumPy has it, the last axis contiguous.
        quantisation: the ``gguf.GGMLQuantizationType``.
        rows: its bytes, ``[rows, bytes of a row]``, on disk until they are read.
    """

    shape: tuple[int, ...]
    quantisation: Any
    rows: np.ndarray


def read(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Fields and tensors by name.

    Raises:
        CheckpointError: the file is missing, is no GGUF file, or is damaged or cut short.
        ImportError: gguf isn't installed.
    """
    gguf = import_extra("gguf", extra="lm")
    with checkpoint_errors():
        file = open_to_read(path)
    try:
        with file:
            data = np.memmap(file, mode="r").view(np.ndarray)
        return _Header(data, gguf).content()
    except (ValueError, OSError, OverflowError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{path} is no GGUF file, or is cut short: {error}.") from error


class _Header:
    def __init__(self, data: np.ndarray, gguf: Any) -> None:
        self._bytes, self._gguf, self._place = data.data, gguf, 0

    def content(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        if bytes(self._take(4)) != b"GGUF":
            raise ValueError("it doesn't begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:  # one of the other byte order is among these
            raise ValueError(f"version {version} isn't supported, 2 and 3 are")
        n_tensors, n_fields = self._number("Q"), self._number("Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name = self._text()
            self._new(name, fields)
            fields[name] = self._value(self._number("I"))
        headers: dict[str, Any] = {}
        for _ in range(n_tensors):
            name = self._text()
            self._new(name, headers)
            axes = self._number("I")
            if axes > _MOST_AXES:
                raise ValueError(f"{name} has {axes} axes")
            shape = tuple(self._number("Q") for _ in range(axes))[::-1]
            headers[name] = shape, self._number("I"), self._number("Q")
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self._place // alignment) * alignment
        return fields, {name: self._tensor(name, start, *found) for name, found in headers.items()}

    def _tensor(
        self, name: str, start: int, shape: tuple[int, ...], kind: int, offset: int
    ) -> StoredTensor:
        quantisation = self._gguf.GGMLQuantizationType(kind)
        together, size = self._gguf.GGML_QUANT_SIZES[quantisation]
        *rows, last = shape or (1,)
        if last % together:
            raise ValueError(f"rows of {name} have {last} numbers, no multiple of {together}")
        width = last // together * size
        self._place = start + offset
        taken = self._take(math.prod(rows) * width)
        return StoredTensor(shape, quantisation, np.asarray(taken).reshape(-1, max(1, width)))

    def _take(self, size: int) -> memoryview:
        end = self._place + size
        if end > len(self._bytes):
            raise ValueError(f"it has {len(self._bytes)} bytes, and needs {end}")
        taken = self._bytes[self._place : end]
        self._place = end
        return taken

    def _number(self, code: str) -> Any:
        (number,) = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))
        # A number of 32 bits as the shortest decimal: 1e-6, not 9.99999997e-7.
        return float(str(np.float32(number))) if code == "f" else number

    def _text(self) -> str:
        return str(self._take(self._number("Q")), "utf-8")

    def _value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError(f"a field of kind {kind} is unknown")
        kind, count = self._number("I"), self._number("Q")
        if kind in _NUMBERS:
            code = _NUMBERS[kind]
            return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(code))))
        return [self._value(kind) for _ in range(count)]

    @staticmethod
    def _new(name: str, known: dict[str, Any]) -> None:
        if name in known:
            raise ValueError(f"{name} is there twice")
