"""Episodes drawn on the device from examples grouped by class, inside the training program."""

import dataclasses
import warnings
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from metajax._checks import instance, one_of, positive_int
from metajax.errors import ArgumentError
from metajax.types import Batch, Episode, Sampler

Rotations = Literal["none", "per_class", "as_classes"]
"""How an episode's classes are turned; see ``episode_sampler``."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ClassData:
    """Examples grouped by class: those of the first class, then those of the second, and so on.

    Attributes:
        examples: array ``[examples, ...]``. uint8 means images with values from 0 to 255,
            ``[examples, H, W, channels]``; ``[examples, H, W]`` in uint8 are grey images with one
            channel.
        counts: integers ``[classes]``, how many examples each class has.
        names: what each class is called, in words; empty where that isn't known.

    Example:
        Which classes an episode has: the same key draws their numbers in place of the images.

        >>> data = ClassData(np.zeros([6, 28, 28], np.uint8), np.array([2, 4]), ("cat", "owl"))
        >>> data.examples[data.starts[1] :].shape  # the owls
        (4, 28, 28)
        >>> numbers = dataclasses.replace(data, examples=np.repeat([0, 1], data.counts))
        >>> options = dict(n_way=2, k_shot=1, query=1)
        >>> episode = episode_sampler(data, **options)(jax.random.key(0))
        >>> drawn = episode_sampler(numbers, **options)(jax.random.key(0)).support.inputs
        >>> [data.names[number] for number in drawn]
        ['owl', 'cat']
    """

    examples: jax.Array | np.ndarray
    counts: jax.Array | np.ndarray
    names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def starts(self) -> np.ndarray:
        """``[classes]``: class c has ``examples[starts[c] : starts[c] + counts[c]]``."""
        counts = np.asarray(self.counts)
        return np.cumsum(counts) - counts


def _equal_classes(examples: np.ndarray, names: tuple[str, ...]) -> ClassData:
    """Classes of one size, ``[classes, per_class, ...]``."""
    counts = np.full(examples.shape[0], examples.shape[1], np.int32)
    return ClassData(examples.reshape(-1, *examples.shape[2:]), counts, names)


def episode_sampler(
    data: ClassData,
    *,
    n_way: int,
    k_shot: int,
    query: int,
    rotations: Rotations = "none",
    groups: jax.Array | np.ndarray | None = None,
) -> Sampler:
    """Builds ``sample(key) -> Episode``: one N-way K-shot classification task.

    Classes are drawn uniformly without replacement, and so are the ``k_shot + query`` examples of
    each, so support and query never share one. Labels run from 0 to ``n_way - 1`` in the order of
    the draw, and examples lie class by class: ``targets`` is ``0, 0, ..., 1, 1, ...``.

    Args:
        data: the classes to draw from. uint8 examples leave the sampler as float32 in [0, 1] and
            with a channel axis; floating-point ones as float32; other integers unchanged.
        n_way: classes in an episode.
        k_shot: support examples of each class.
        query: query examples of each class.
        rotations: ``"none"``; ``"per_class"``, one random multiple of 90 degrees for each class of
            each episode, the same for support and query (MAML's protocol); ``"as_classes"``, the
            four rotations of a class are four classes (Matching Networks' protocol).
        groups: integers ``[classes]``, such as ``metajax.data.omniglot_alphabets``: an episode's
            classes are then of one group, which is drawn uniformly first; of all if None.

    Returns:
        A pure function of a key, and a pytree: its leaves are the examples on the device, and each
        class's place and count (and the groups). The episode has ``support.inputs``
        ``[n_way * k_shot, ...]``, ``query.inputs`` ``[n_way * query, ...]`` and int32 ``targets``
        of the same lengths. Samplers with the same options, of as many classes and examples of one
        shape, have the same structure.

    Raises:
        ArgumentError: if an argument is not a positive integer, the data has too few classes or too
            few examples in a class (it names the class), its values are not finite, images to
            rotate are not square, or a group has fewer classes than ``n_way``.

    Warns:
        UserWarning: if images seem to have their channels first.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from metajax.data import ClassData, episode_sampler
        >>> data = ClassData(jnp.zeros([120, 28, 28], jnp.uint8), jnp.full([20], 6))
        >>> sample = episode_sampler(data, n_way=5, k_shot=1, query=3, rotations="per_class")
        >>> episode = sample(jax.random.key(0))
        >>> episode.support.inputs.shape, episode.query.inputs.shape
        ((5, 28, 28, 1), (15, 28, 28, 1))
        >>> episode.support.targets.tolist()
        [0, 1, 2, 3, 4]

    References:
        Vinyals et al., "Matching Networks for One Shot Learning", 2016, arXiv:1606.04080.
        Finn et al., "Model-Agnostic Meta-Learning", 2017, arXiv:1703.03400.
    """
    n_way = positive_int("n_way", n_way)
    k_shot = positive_int("k_shot", k_shot)
    query = positive_int("query", query)
    one_of("rotations", rotations, get_args(Rotations))
    examples, counts = _checked(data)
    _warn_if_channels_first("data.examples", examples)
    if rotations != "none" and (examples.ndim != 4 or examples.shape[1] != examples.shape[2]):
        raise ArgumentError(
            f"rotations={rotations!r} needs square images [examples, H, H, channels], got examples "
            f"of shape {tuple(examples.shape)}. Use rotations='none'."
        )
    n_classes = len(counts) * (4 if rotations == "as_classes" else 1)
    if n_way > n_classes:
        raise ArgumentError(
            f"n_way is {n_way}, but there are only {n_classes} classes to draw from."
            " Lower n_way, or use a split with more classes."
        )
    per_class = k_shot + query
    smallest = int(np.argmin(counts))
    if per_class > counts[smallest]:
        name = f" ({data.names[smallest]!r})" if data.names else ""
        too_small = int(np.sum(counts < per_class))
        raise ArgumentError(
            f"k_shot + query is {k_shot} + {query} = {per_class}, but class {smallest}{name} has "
            f"only {counts[smallest]} examples, and {too_small} of the {len(counts)} classes have "
            "too few. Lower one of them, or take the larger classes: "
            f"metajax.data.select_classes(data, data.counts >= {per_class})."
        )
    draw = _Draw(n_way, k_shot, query, rotations)
    on_device = _ragged(examples, counts)
    if groups is None:
        return Partial(draw, on_device, None)
    return Partial(draw, on_device, _grouped(np.asarray(groups), len(counts), draw))


class _Ragged(NamedTuple):
    """Parts of one array, each after the one before: classes of examples, or groups of classes.

    Attributes:
        values: ``[values, ...]``.
        starts: where each part begins, int32 ``[parts]``.
        counts: how many values it has, uint32 ``[parts]``.
    """

    values: jax.Array
    starts: jax.Array
    counts: jax.Array


def _ragged(values: jax.Array | np.ndarray, counts: np.ndarray) -> _Ragged:
    starts = np.cumsum(counts) - counts
    return _Ragged(
        jnp.asarray(values), jnp.asarray(starts, jnp.int32), jnp.asarray(counts, jnp.uint32)
    )


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What is static of a sampler. Equal options are equal values: they need one program."""

    n_way: int
    k_shot: int
    query: int
    rotations: Rotations

    @property
    def rotations_of_a_class(self) -> int:
        """How many classes there are for each class of the data."""
        return 4 if self.rotations == "as_classes" else 1

    def __call__(self, data: _Ragged, groups: _Ragged | None, key: jax.Array) -> Episode:
        per_class = self.k_shot + self.query
        # One call of the generator for the whole episode: each call costs more than its numbers.
        columns = 2 + per_class + (groups is not None)
        bits = jax.random.bits(key, [self.n_way, columns])
        group = None if groups is None else bits[0, -1] % len(groups.counts)
        total = jnp.uint32(len(data.counts)) if groups is None else groups.counts[group]
        classes = _distinct(bits[:, 0], self.rotations_of_a_class * total)
        turns = jnp.zeros([self.n_way], jnp.int32)
        if self.rotations == "as_classes":
            # Two classes may be the same character in two rotations: each draws its own examples.
            classes, turns = classes // 4, classes % 4
        elif self.rotations == "per_class":
            turns = (bits[:, 1] % 4).astype(jnp.int32)
        if groups is not None:
            classes = groups.values[groups.starts[group] + classes]
        chosen = jax.vmap(_distinct)(bits[:, 2 : 2 + per_class], data.counts[classes])
        # Gathered and turned in the stored dtype: a quarter of the memory traffic of float32.
        picked = data.values[data.starts[classes][:, None] + chosen]
        if self.rotations != "none":
            picked = _turn(picked, turns)
        picked = _to_model_dtype(picked)
        return Episode(
            support=self._batch(picked[:, : self.k_shot]),
            query=self._batch(picked[:, self.k_shot :]),
        )

    def _batch(self, examples: jax.Array) -> Batch:
        """Examples ``[n_way, n, ...]``, class by class, with their labels."""
        labels = jnp.repeat(jnp.arange(self.n_way, dtype=jnp.int32), examples.shape[1])
        return Batch(examples.reshape(-1, *examples.shape[2:]), labels)


def _grouped(labels: np.ndarray, n_classes: int, draw: _Draw) -> _Ragged:
    """The classes of each group, or an ArgumentError if one is too small for an episode."""
    if labels.shape != (n_classes,) or not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"groups must be integers of shape [{n_classes}], one for each class, got "
            f"{labels.dtype} of shape {list(labels.shape)}."
        )
    names, counts = np.unique(labels, return_counts=True)
    smallest = np.argmin(counts)
    available = draw.rotations_of_a_class * counts[smallest]
    if available < draw.n_way:
        raise ArgumentError(
            f"n_way is {draw.n_way}, but group {names[smallest]} has only {available} classes. "
            "Lower n_way, or leave out the small groups' classes with metajax.data.select_classes."
        )
    return _ragged(np.argsort(labels, kind="stable").astype(np.int32), counts)


def _checked(data: ClassData) -> tuple[jax.Array, np.ndarray]:
    """The examples on the device, with a channel axis, and the counts on the host."""
    instance("data", data, ClassData, "a ClassData, as metajax.data.from_arrays returns it")
    array = jax.Array | np.ndarray
    examples = instance("data.examples", data.examples, array, "an array [examples, ...]")
    counts = np.asarray(data.counts)
    if examples.ndim < 1 or 0 in examples.shape:
        raise ArgumentError(
            f"data.examples must be [examples, ...] and not empty, got shape {examples.shape}."
        )
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer):
        raise ArgumentError(
            "data.counts must be integers [classes], one for each class, got "
            f"{counts.dtype} of shape {list(counts.shape)}."
        )
    if counts.min(initial=1) < 1:
        raise ArgumentError(f"data.counts must be at least 1, got {counts.min()}.")
    if counts.sum() != len(examples):
        raise ArgumentError(
            "data.counts must add up to the number of examples (data.examples is [examples, ...], "
            f"one class after another, without padding), got counts of sum {counts.sum()} and "
            f"examples of shape {examples.shape}."
        )
    if data.names and len(data.names) != len(counts):
        raise ArgumentError(
            f"data.names must be one for each of the {len(counts)} classes, or none, got "
            f"{len(data.names)}."
        )
    if examples.dtype == np.uint8 and examples.ndim == 3:
        examples = examples[..., None]
    examples = jnp.asarray(examples)
    if jnp.issubdtype(examples.dtype, jnp.inexact) and not bool(jnp.isfinite(examples).all()):
        raise ArgumentError(
            "data.examples has NaN or infinite values. Remove or repair those examples."
        )
    return examples, counts.astype(np.int64)


def _warn_if_channels_first(name: str, images: jax.Array | np.ndarray) -> None:
    """Warns the caller's caller of images ``[examples, channels, H, W]``."""
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and min(images.shape[2:]) > 4:
        warnings.warn(
            f"{name} of shape {images.shape} seems to be images with their channels first. Here "
            f"they come last, [examples, H, W, channels]: np.moveaxis({name}, 1, -1).",
            stacklevel=3,
        )


def _distinct(bits: jax.Array, size: jax.Array) -> jax.Array:
    """Turns random bits into distinct integers below ``size``, in random order.

    The i-th is the r-th smallest of the ``size - i`` integers not yet drawn, with r uniform. (A
    permutation of all of them would cost more than the rest of the sampler: they are thousands,
    and tens are drawn.)

    Args:
        bits: uint32 ``[n]``, independent and uniform.
        size: how many integers there are, uint32 scalar, at least ``n``.

    Returns:
        int32 ``[n]``. Every ordered choice is equally likely, but for the remainder's bias of
        less than ``size / 2**32``.
    """
    n = bits.shape[0]
    slots = jnp.arange(n, dtype=jnp.int32)
    ranks = (bits % (size - slots.astype(jnp.uint32))).astype(jnp.int32)

    def draw(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        drawn, ordered = carry  # ordered: what was drawn, ascending, then sentinels
        # ordered[j] - j free integers lie below ordered[j]: count the drawn ones to step over.
        value = ranks[i] + jnp.sum(ordered - slots <= ranks[i], dtype=jnp.int32)
        before = jnp.sum(ordered < value, dtype=jnp.int32)
        shifted = jnp.where(slots > before, jnp.roll(ordered, 1), ordered)
        return drawn.at[i].set(value), jnp.where(slots == before, value, shifted)

    sentinel = jnp.iinfo(jnp.int32).max
    start = (jnp.zeros([n], jnp.int32), jnp.full([n], sentinel, jnp.int32))
    drawn, _ = jax.lax.fori_loop(0, n, draw, start)
    return drawn


def _turn(images: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates ``images`` ``[classes, n, H, H, channels]`` by ``turns`` ``[classes]`` quarters.

    A quarter turn is anticlockwise, as in ``numpy.rot90``. All four are made and one is picked:
    looking up single pixels took three times as long.
    """
    turned = jnp.stack([jnp.rot90(images, quarter, (2, 3)) for quarter in range(4)])
    return turned[turns, jnp.arange(images.shape[0])]


def _to_model_dtype(examples: jax.Array) -> jax.Array:
    if examples.dtype == jnp.uint8:
        return examples.astype(jnp.float32) / 255
    if jnp.issubdtype(examples.dtype, jnp.floating):
        return examples.astype(jnp.float32)
    return examples
