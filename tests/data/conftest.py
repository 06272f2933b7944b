import omniglot_standin
import pytest

from metajax.data import _omniglot, _tfds


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    """No cache, no data, no TensorFlow."""
    monkeypatch.delenv("METAJAX_OMNIGLOT", raising=False)
    monkeypatch.setenv("METAJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no tfds"))
    monkeypatch.setattr(_tfds.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def small_omniglot(nothing_there, monkeypatch):
    """Omniglot as if it had the stand-in's characters, and was nowhere to be found."""
    monkeypatch.setattr(_omniglot, "CHARACTERS", omniglot_standin.CHARACTERS)
    monkeypatch.setattr(_omniglot, "DRAWINGS", 3)
