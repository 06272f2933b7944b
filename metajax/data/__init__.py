"""Data sets, and samplers that draw episodes from them on the device."""

from metajax.data.episodes import ClassData, episode_sampler
from metajax.data.glyphs import glyphs
from metajax.data.omniglot import DataNotFoundError, omniglot
from metajax.data.sinusoid import sinusoid_sampler

__all__ = [
    "ClassData",
    "DataNotFoundError",
    "episode_sampler",
    "glyphs",
    "omniglot",
    "sinusoid_sampler",
]
