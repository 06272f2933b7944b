"""The meta-step that every program computes, and the check that they all do.

The second-order MAML meta-step of Finn et al. 2017 on episodes shaped as Omniglot's: a Conv-4 with
stride 2, batch statistics and a shift that the inner loop doesn't adapt, the spatial mean, a linear
head; plain gradient descent on the mean cross-entropy inside, Adam outside.

Weights are a dict of NumPy arrays in Flax's layout, which each program turns into its own:
``conv_{0..3}/kernel`` [3, 3, in, out], ``conv_{i}/bias`` [out], ``norm_{i}/bias`` [out],
``head/kernel`` [features, ways], ``head/bias`` [ways].
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LAYERS = 4
NORM_EPSILON = 1e-3

Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes and rates of the meta-step."""

    tasks: int = 32
    """Tasks in a meta-batch."""
    n_way: int = 5
    """Classes in a task."""
    k_shot: int = 1
    """Support images a class; as many query images."""
    image_size: int = 28
    """Height and width in pixels."""
    features: int = 64
    """Filters of each convolution."""
    inner_steps: int = 1
    """Gradient steps of the inner loop."""
    inner_rate: float = 2.0
    """Learning rate of the inner loop, on the mean cross-entropy."""
    outer_rate: float = 1e-3
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be above zero; got {value}")


class Arrays(NamedTuple):
    """The episodes of one meta-batch, as NumPy arrays.

    Attributes:
        support_inputs: float32 ``[tasks, n_way * k_shot, height, width, 1]``, in [0, 1].
        support_targets: int32 ``[tasks, n_way * k_shot]``.
        query_inputs: as the support's.
        query_targets: as the support's.
    """

    support_inputs: np.ndarray
    support_targets: np.ndarray
    query_inputs: np.ndarray
    query_targets: np.ndarray


class Program(NamedTuple):
    """One implementation of the meta-step.

    Attributes:
        name: what the table calls it.
        gradient: ``gradient() -> (meta-gradient, mean query loss)`` at the initial weights.
        init: ``init() -> state``, the initial weights and Adam's state.
        step: ``step(state) -> state``: one meta-step, returning when it is complete.
        compile_seconds: time to trace and compile the step; None where nothing is compiled.
        temporary_bytes: XLA's temporary memory of the step; None where it isn't XLA's.
    """

    name: str
    gradient: Callable[[], tuple[Weights, float]]
    init: Callable[[], Any]
    step: Callable[[Any], Any]
    compile_seconds: float | None
    temporary_bytes: int | None


def initial_weights(workload: Workload, seed: int) -> Weights:
    """Convolutions Xavier-uniform, head standard normal, as in the paper's code.

    The biases and shifts start at small random values instead of zero, so that an error in their
    part of the gradient shows.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    channels = 1
    for layer in range(LAYERS):
        bound = np.sqrt(6 / (9 * (channels + workload.features)))
        shape = (3, 3, channels, workload.features)
        weights[f"conv_{layer}/kernel"] = rng.uniform(-bound, bound, shape)
        weights[f"conv_{layer}/bias"] = 0.1 * rng.standard_normal(workload.features)
        weights[f"norm_{layer}/bias"] = 0.1 * rng.standard_normal(workload.features)
        channels = workload.features
    weights["head/kernel"] = rng.standard_normal((workload.features, workload.n_way))
    weights["head/bias"] = 0.1 * rng.standard_normal(workload.n_way)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def random_episodes(workload: Workload, seed: int) -> Arrays:
    """Random images, a prototype a class and noise on each; the cost doesn't depend on them."""
    rng = np.random.default_rng(seed)
    side = workload.image_size
    prototypes = rng.random((workload.tasks, workload.n_way, 1, side, side, 1))
    classes = np.repeat(np.arange(workload.n_way, dtype=np.int32), workload.k_shot)
    targets = np.tile(classes, (workload.tasks, 1))

    def images() -> np.ndarray:
        noise = rng.random((workload.tasks, workload.n_way, workload.k_shot, side, side, 1))
        mixed = (0.7 * prototypes + 0.3 * noise).astype(np.float32)
        return mixed.reshape(workload.tasks, -1, side, side, 1)

    return Arrays(images(), targets, images(), targets.copy())


def relative_error(gradient: Weights, reference: Weights) -> float:
    """The Euclidean norm of the difference over the reference's, all leaves together.

    >>> relative_error({"w": np.array([1.0, 1.0])}, {"w": np.array([1.0, 0.0])})
    1.0
    """
    if gradient.keys() != reference.keys():
        raise ValueError(f"gradients have other leaves: {sorted(gradient.keys() ^ reference)}")
    difference = sum(
        float(np.sum((gradient[name].astype(np.float64) - reference[name]) ** 2))
        for name in reference
    )
    norm = sum(float(np.sum(reference[name].astype(np.float64) ** 2)) for name in reference)
    return float(np.sqrt(difference / norm))
