"""A folder in which everything would show that is written outside of the files that are read."""

import tempfile

import pytest


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """The working folder, home and temporary folder of the test, with the folder of its files."""
    for name in ("files", "home", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path
