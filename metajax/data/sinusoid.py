"""Sinusoid regression, the small task on which MAML was first shown."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from metajax._checks import positive_int
from metajax.types import Batch, Episode, Sampler


def sinusoid_sampler(k_shot: int = 10, query: int = 10) -> Sampler:
    """Builds ``sample(key) -> Episode``: one curve ``y = amplitude * sin(x - phase)``.

    Amplitude is uniform on [0.1, 5], phase on [0, pi] and every x on [-5, 5].

    Args:
        k_shot: support points.
        query: query points.

    Returns:
        A pure function of a key, and a pytree without leaves. The episode's inputs and targets are
        float32 ``[k_shot, 1]`` (support) and ``[query, 1]`` (query).

    Raises:
        ArgumentError: if ``k_shot`` or ``query`` is not a positive integer.

    Example:
        >>> import jax
        >>> from metajax.data import sinusoid_sampler
        >>> episode = sinusoid_sampler(k_shot=5)(jax.random.key(0))
        >>> episode.support.inputs.shape, episode.query.targets.shape
        ((5, 1), (10, 1))

    References:
        Finn et al., "Model-Agnostic Meta-Learning", 2017, arXiv:1703.03400, section 5.1.
    """
    return Partial(_Draw(positive_int("k_shot", k_shot), positive_int("query", query)))


@dataclasses.dataclass(frozen=True)
class _Draw:
    k_shot: int
    query: int

    def __call__(self, key: jax.Array) -> Episode:
        amplitude_key, phase_key, x_key = jax.random.split(key, 3)
        amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5.0)
        phase = jax.random.uniform(phase_key, minval=0.0, maxval=jnp.pi)
        x = jax.random.uniform(x_key, [self.k_shot + self.query, 1], minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        n = self.k_shot
        return Episode(Batch(x[:n], y[:n]), Batch(x[n:], y[n:]))
