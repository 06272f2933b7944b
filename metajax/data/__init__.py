"""Data sets, and samplers that draw episodes from them on the device."""

from metajax.data._cache import CacheError
from metajax.data._omniglot_sources import DataNotFoundError
from metajax.data.arrays import from_arrays, from_folder, select_classes, split_classes
from metajax.data.episodes import ClassData, episode_sampler
from metajax.data.glyphs import glyphs
from metajax.data.omniglot import omniglot
from metajax.data.sinusoid import sinusoid_sampler

__all__ = [
    "CacheError",
    "ClassData",
    "DataNotFoundError",
    "episode_sampler",
    "from_arrays",
    "from_folder",
    "glyphs",
    "omniglot",
    "select_classes",
    "sinusoid_sampler",
    "split_classes",
]
