"""Small data in place of Omniglot and the glyphs, so that the experiments' tests are quick."""

import functools

import numpy as np
import pytest

from experiments.common import command_line
from metajax.data import ClassData


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    """No test writes into the user's cache, nor changes where JAX keeps programs."""
    monkeypatch.setattr(command_line, "keep_compiled", lambda folder: None)


@pytest.fixture
def small_data():
    """Twenty classes of noisy copies of one random pattern each; the split only sets the seed."""

    def load(split, folder=None, protocol="maml"):
        random = np.random.default_rng(len(split))
        patterns = random.integers(0, 200, (20, 1, 28, 28))
        noise = random.integers(0, 55, (20, 20, 28, 28))
        images = (patterns + noise).astype(np.uint8).reshape(-1, 28, 28)
        return ClassData(images, np.full(20, 20, np.int32))

    return load


@pytest.fixture
def small_network(monkeypatch):
    """MAML's network with 4 features instead of 64."""
    from experiments.fewshot import networks

    monkeypatch.setattr(networks, "conv4", functools.partial(networks.conv4, features=4))
