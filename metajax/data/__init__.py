"""Data sets, and samplers that draw episodes from them on the device."""

from metajax.data._cache import CacheError
from metajax.data._tfds import DataNotFoundError
from metajax.data.arrays import from_arrays, from_folder, select_classes, split_classes
from metajax.data.augment import random_shifts
from metajax.data.cifar_fs import cifar_fs
from metajax.data.episodes import ClassData, episode_sampler
from metajax.data.glyphs import glyphs
from metajax.data.mini_imagenet import mini_imagenet
from metajax.data.omniglot import omniglot, omniglot_alphabets
from metajax.data.sinusoid import sinusoid_sampler
from metajax.data.variable import variable_episode_sampler

__all__ = [
    "CacheError",
    "ClassData",
    "DataNotFoundError",
    "cifar_fs",
    "episode_sampler",
    "from_arrays",
    "from_folder",
    "glyphs",
    "mini_imagenet",
    "omniglot",
    "omniglot_alphabets",
    "random_shifts",
    "select_classes",
    "sinusoid_sampler",
    "split_classes",
    "variable_episode_sampler",
]
