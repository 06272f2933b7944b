"""What the playground's tests share."""

import functools

import jax
import pytest

from experiments.fewshot import networks
from experiments.fewshot.playground import models


@pytest.fixture(scope="module")
def untrained():
    """The playground's two models with few features and random parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "conv4", functools.partial(networks.conv4, features=4))
        patch.setattr(models, "network_of", functools.partial(models.network_of, features=4))
        made = {name: models.model_of(name, jax.random.key(0)) for name in models.TITLES}
    return {name: models.Trained(each.learner, each.params, []) for name, each in made.items()}
