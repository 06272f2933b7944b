"""What a row of the tables is, and what must hold of each."""

import pathlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import metajax

PACKAGE = pathlib.Path(metajax.__file__).parent


class Row(NamedTuple):
    """One bad input: what is called, and the words that its message must contain."""

    name: str
    call: Callable[[], Any]
    words: tuple[str, ...]


def each(rows):
    """A test of every row."""
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    return pytest.mark.parametrize("row", rows, ids=names)


def refused(call, words, kind=metajax.MetajaxError):
    """The call ends in one of metajax's errors, raised by metajax, with these words."""
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert PACKAGE in pathlib.Path(last.filename).parents, last
    return caught.value
