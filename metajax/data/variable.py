"""Episodes of varying size in arrays of one size, so that one program serves them all."""

import jax
import jax.numpy as jnp

from metajax._checks import at_least, flag, positive_int
from metajax._checks import key as one_key
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
    of a class from ``min_shot`` to ``max_shot``. Padding repeats the task's own examples, so that a
    network that normalises by the batch sees nothing but the task.

    Args:
        data: as for ``episode_sampler``, with all of whose errors.
        max_way: the most classes, and the number that arrays have room for.
        max_shot: the most support examples of a class.
        query: query examples of each class.
        min_way: the fewest classes, at least 2.
        min_shot: the fewest support examples.
        balanced: whether all classes of a task have as many; if not, each draws its own number.
        rotations: as for ``episode_sampler``.
        groups: as for ``episode_sampler``.

    Returns:
        A pure function: a key to an episode with ``support.inputs`` ``[max_way * max_shot, ...]``,
        ``query.inputs`` ``[max_way * query, ...]``, masks of the same lengths and ``classes``
        ``[max_way]``.

    Raises:
        ArgumentError: beside those of ``episode_sampler``, if ``min_way`` or ``min_shot`` is more
            than its maximum.

    Example:
        >>> data = ClassData(jnp.zeros([20, 6, 8, 8], jnp.uint8), jnp.full([20], 6))
        >>> sample = variable_episode_sampler(data, max_way=5, max_shot=3, query=2)
        >>> episode = sample(jax.random.key(1))
        >>> episode.support.inputs.shape, int(episode.support.classes.sum())
        ((15, 8, 8, 1), 2)
    """
    positive_int("max_way", max_way)
    positive_int("max_shot", max_shot)
    flag("balanced", balanced)
    at_least("min_way", min_way, 2)
    positive_int("min_shot", min_shot)
    for name, least, most in (("way", min_way, max_way), ("shot", min_shot, max_shot)):
        if least > most:
            raise ArgumentError(f"min_{name} is {least}, more than max_{name}, {most}.")
    draw = episode_sampler(
        data, n_way=max_way, k_shot=max_shot, query=query, rotations=rotations, groups=groups
    )

    def sample(key: jax.Array, /) -> Episode:
        one_key("key", key)
        key, way_key, shot_key = jax.random.split(key, 3)
        episode = draw(key)
        way = jax.random.randint(way_key, (), min_way, max_way + 1)
        numbers = (max_way,) if not balanced else ()
        shots = jax.random.randint(shot_key, numbers, min_shot, max_shot + 1)
        shots = jnp.broadcast_to(shots, (max_way,))
        classes = jnp.arange(max_way) < way
        return Episode(
            _padded(episode.support, classes, way, shots),
            _padded(episode.query, classes, way, jnp.full(max_way, query)),
        )

    return sample


def _padded(batch: Batch, classes: jax.Array, way: jax.Array, counts: jax.Array) -> MaskedBatch:
    """The batch with all but ``counts`` examples of the first ``way`` classes as padding."""
    most = len(batch.targets) // len(classes)
    by_class = batch.inputs.reshape(len(classes), most, *batch.inputs.shape[1:])
    owner = jnp.arange(len(classes)) % way
    example = jnp.arange(most) % counts[owner][:, None]
    inputs = by_class[owner[:, None], example].reshape(batch.inputs.shape)
    mask = classes[:, None] & (jnp.arange(most) < counts[:, None])
    return MaskedBatch(inputs, batch.targets, mask.reshape(-1), classes)
