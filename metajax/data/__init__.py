"""Data sets, and samplers that draw episodes from them on the device.

``sample(key)`` draws an episode. A sampler is also a pytree whose leaves are the data: a compiled
program that takes it as an argument can be given another with the same options, of data of the same
shapes.
"""

from metajax.data._cache import CacheError, cache_folder
from metajax.data._cifar import cifar_fs, fc100
from metajax.data._glyphs import glyphs
from metajax.data._mini_imagenet import mini_imagenet
from metajax.data._omniglot import omniglot, omniglot_alphabets
from metajax.data._split_files import from_splits
from metajax.data._tfds import DataNotFoundError
from metajax.data.arrays import from_arrays, from_folder, select_classes, split_classes
from metajax.data.augment import random_affine, random_colours, random_flips, random_shifts
from metajax.data.episodes import ClassData, Rotations, episode_sampler
from metajax.data.padding import pad_episodes
from metajax.data.sinusoid import sinusoid_sampler
from metajax.data.streaming import stream
from metajax.data.variable import variable_episode_sampler

__all__ = [
    "CacheError",
    "ClassData",
    "DataNotFoundError",
    "Rotations",
    "cache_folder",
    "cifar_fs",
    "episode_sampler",
    "fc100",
    "from_arrays",
    "from_folder",
    "from_splits",
    "glyphs",
    "mini_imagenet",
    "omniglot",
    "omniglot_alphabets",
    "pad_episodes",
    "random_affine",
    "random_colours",
    "random_flips",
    "random_shifts",
    "select_classes",
    "sinusoid_sampler",
    "split_classes",
    "stream",
    "variable_episode_sampler",
]
