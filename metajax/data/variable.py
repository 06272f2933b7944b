"""Episodes of varying size in arrays of one size, so that one program serves them all."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from metajax._checks import at_least, positive_int
from metajax.data.episodes import ClassData, Rotations, episode_sampler
from metajax.errors import ArgumentError
from metajax.types import Batch, Episode, MaskedBatch, Sampler


def variable_episode_sampler(
    data: ClassData,
    *,
    max_way: int,
    max_shot: int,
    query: int,
    min_way: int = 2,
    min_shot: int = 1,
    balanced: bool = True,
    rotations: Rotations = "none",
    groups: jax.Array | None = None,
) -> Sampler:
    """Builds ``sample(key) -> Episode`` of ``MaskedBatch``: way and shot differ from task to task.

    The number of classes is uniform from ``min_way`` to ``max_way``, the number of support examples
    of a class from ``min_shot`` to ``max_shot``. Padding repeats the task's examples, so that a
    network that normalises by the batch sees nothing but the task.

    Args:
        data: as for ``episode_sampler``.
        max_way: the most classes, and the number that arrays have room for.
        max_shot: the most support examples of a class.
        query: query examples of each class.
        min_way: the fewest classes, at least 2.
        min_shot: the fewest support examples.
        balanced: whether all classes of a task have equally many; if not, each draws a number.
        rotations: as for ``episode_sampler``.
        groups: as for ``episode_sampler``.

    Returns:
        A pure function of a key, and a pytree with the leaves of ``episode_sampler``'s. The episode
        has ``support.inputs`` ``[max_way * max_shot, ...]``, ``query.inputs``
        ``[max_way * query, ...]``, masks of the same lengths and ``classes`` ``[max_way]``.

    Raises:
        ArgumentError: as ``episode_sampler``; and if ``min_way`` or ``min_shot`` is more than its
            maximum.

    Example:
        >>> data = ClassData(jnp.zeros([120, 8, 8], jnp.uint8), jnp.full([20], 6))
        >>> sample = variable_episode_sampler(data, max_way=5, max_shot=3, query=2)
        >>> episode = sample(jax.random.key(1))
        >>> episode.support.inputs.shape, int(episode.support.classes.sum())
        ((15, 8, 8, 1), 2)
    """
    at_least("min_way", min_way, 2)
    positive_int("min_shot", min_shot)
    for name, least, most in (("way", min_way, max_way), ("shot", min_shot, max_shot)):
        if least > most:
            raise ArgumentError(f"min_{name} is {least}, more than max_{name}, {most}.")
    largest = episode_sampler(
        data, n_way=max_way, k_shot=max_shot, query=query, rotations=rotations, groups=groups
    )
    return Partial(_Draw((min_way, max_way), (min_shot, max_shot), query, balanced), largest)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The fewest and the most classes and support examples, and the rest of the options."""

    ways: tuple[int, int]
    shots: tuple[int, int]
    query: int
    balanced: bool

    def __call__(self, largest: Sampler, key: jax.Array) -> Episode:
        """The largest episode, with some of its classes and examples turned into padding."""
        (min_way, max_way), (min_shot, max_shot) = self.ways, self.shots
        key, way_key, shot_key = jax.random.split(key, 3)
        episode = largest(key)
        way = jax.random.randint(way_key, (), min_way, max_way + 1)
        numbers = (max_way,) if not self.balanced else ()
        shots = jax.random.randint(shot_key, numbers, min_shot, max_shot + 1)
        shots = jnp.broadcast_to(shots, (max_way,))
        classes = jnp.arange(max_way) < way
        return episode._replace(
            support=_padded(episode.support, classes, way, shots),
            query=_padded(episode.query, classes, way, jnp.full(max_way, self.query)),
        )


def _padded(batch: Batch, classes: jax.Array, way: jax.Array, counts: jax.Array) -> MaskedBatch:
    """The batch with all but ``counts`` examples of the first ``way`` classes as padding."""
    most = len(batch.targets) // len(classes)
    by_class = batch.inputs.reshape(len(classes), most, *batch.inputs.shape[1:])
    owner = jnp.arange(len(classes)) % way
    example = jnp.arange(most) % counts[owner][:, None]
    inputs = by_class[owner[:, None], example].reshape(batch.inputs.shape)
    mask = classes[:, None] & (jnp.arange(most) < counts[:, None])
    return MaskedBatch(inputs, batch.targets, mask.reshape(-1), classes)
