import sys

import omniglot_standin
import pytest

import metajax.data.omniglot  # noqa: F401
from metajax.data import _omniglot_sources


@pytest.fixture
def small_omniglot(tmp_path, monkeypatch):
    """Omniglot as if it had the stand-in's characters; no cache, no data, no TensorFlow."""
    module = sys.modules["metajax.data.omniglot"]  # the package's attribute is the function
    monkeypatch.setattr(module, "CHARACTERS", omniglot_standin.CHARACTERS)
    monkeypatch.setattr(module, "DRAWINGS", 3)
    monkeypatch.delenv("METAJAX_OMNIGLOT", raising=False)
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no tfds"))
    monkeypatch.setattr(_omniglot_sources.importlib.util, "find_spec", lambda name: None)
