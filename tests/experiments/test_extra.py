"""What is said where only the library is installed."""

import importlib
import importlib.util

import pytest

import experiments


def test_the_extra_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tyro" else found(name)
    )
    with pytest.raises(ImportError, match=r"need tyro,.*pip install 'metajax\[experiments\]'"):
        importlib.reload(experiments)
