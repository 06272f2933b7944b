"""The meta-step that every program computes, and the check that they all do.

The second-order MAML meta-step of Finn et al. 2017: plain gradient descent on the mean
cross-entropy inside, Adam outside, on one of three networks.

``stride``: the Conv-4 of MAML's Omniglot experiments: stride 2, batch statistics, a learned shift,
the spatial mean, a linear head. ``pool``: that of miniImageNet's: stride 1, batch statistics, a
learned scale and shift, 2×2 max-pooling, a linear head on the flattened features. Neither's scale
and shift are adapted by the inner loop. ``mlp``: fully connected layers with ReLU.

Weights are a dict of NumPy arrays in Flax's layout, which each program turns into its own:
``conv_{i}/kernel`` [3, 3, in, out], ``conv_{i}/bias`` [out], ``norm_{i}/scale`` and
``norm_{i}/bias`` [out], ``dense_{i}/kernel`` [in, out], ``dense_{i}/bias`` [out],
``head/kernel`` [features, ways], ``head/bias`` [ways].
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import common

LAYERS = 4
MLP_WIDTHS = (256, 128, 64, 64)
"""The hidden layers of MAML's fully connected network (which also normalised)."""

TORCH_FUNC, HIGHER, TORCHOPT, PARALLEL_METALEARN, ITERYNE = PEERS = (
    "PyTorch, torch.func vmap",
    "PyTorch, higher",
    "PyTorch, TorchOpt",
    "PyTorch, parallel-metalearn",
    "PyTorch, iteryne",
)
ORDINARY = "JAX, ordinary Flax under vmap, mean of gradients"
"""The name of ordinary Flax in the form that a CPU computes faster."""

Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes and rates of the meta-step."""

    tasks: int = 32
    """Tasks in a meta-batch."""
    n_way: int = 5
    """Classes in a task."""
    k_shot: int = 1
    """Support images a class."""
    query: int = 1
    """Query images a class."""
    inner_steps: int = 1
    """Gradient steps of the inner loop."""
    form: Literal["stride", "pool", "mlp"] = "stride"
    """The network."""
    image_size: int = 28
    """Height and width in pixels."""
    channels: int = 1
    """Channels of the images."""
    features: int = 64
    """Filters of each convolution."""
    inner_rate: float = 0.4
    """Learning rate of the inner loop, on the mean cross-entropy."""
    outer_rate: float = 1e-3
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        numbers = [field.name for field in dataclasses.fields(self) if field.name != "form"]
        common.check_positive(self, *numbers)
        if self.form not in ("stride", "pool", "mlp"):
            raise ValueError(f"form must be 'stride', 'pool' or 'mlp'; got {self.form!r}")
        if self.form == "pool" and self.image_size < 2**LAYERS:
            raise ValueError(
                f"image_size must be at least {2**LAYERS} with form='pool'; got {self.image_size}"
            )

    @property
    def norm_epsilon(self) -> float:
        """What the normalisation adds to the variance."""
        return 1e-3 if self.form == "stride" else 1e-5

    def sides(self) -> list[int]:
        """Height and width of each convolution's output, before any pooling."""
        sides, side = [], self.image_size
        for _ in range(LAYERS):
            if self.form == "stride":
                side = -(-side // 2)
                sides.append(side)
            else:
                sides.append(side)
                side //= 2
        return sides

    def head_inputs(self) -> int:
        """How many features the head sees."""
        if self.form == "mlp":
            return MLP_WIDTHS[-1]
        if self.form == "stride":
            return self.features
        return (self.image_size // 2**LAYERS) ** 2 * self.features

    def forward_flops(self) -> list[int]:
        """Floating-point operations of each layer's product in one image's forward pass."""
        if self.form == "mlp":
            widths = [self.image_size**2 * self.channels, *MLP_WIDTHS, self.n_way]
            return [2 * before * after for before, after in itertools.pairwise(widths)]
        channels = [self.channels, *[self.features] * LAYERS]
        layers = [
            2 * side**2 * 9 * channels[i] * self.features for i, side in enumerate(self.sides())
        ]
        return [*layers, 2 * self.head_inputs() * self.n_way]

    def flops(self) -> int:
        """Floating-point operations of the meta-gradient's products.

        An inner step's forward pass has one product a layer and its backward pass two, for the
        gradients of the weights and of the layer's input; differentiating each of these three
        takes two more: 9. The query's forward and backward passes take 3. The first layer's input
        has no gradient: 4 and 2. What a program computes again, and all that isn't a product,
        isn't counted; a convolution counts as its definition, 3 · 3 · in · out a position.
        """
        first, *others = self.forward_flops()
        support = self.inner_steps * self.n_way * self.k_shot * (4 * first + 9 * sum(others))
        query = self.n_way * self.query * (2 * first + 3 * sum(others))
        return self.tasks * (support + query)


CELLS = {
    "5-way 1-shot": Workload(),
    "5-way 5-shot": Workload(tasks=8, k_shot=5, query=15, inner_steps=5, inner_rate=0.1),
    "20-way 1-shot": Workload(tasks=16, n_way=20, inner_steps=5, inner_rate=0.1),
    "max-pool 28×28": Workload(tasks=4, query=15, inner_steps=5, form="pool", inner_rate=0.01),
    "max-pool 84×84×3": Workload(
        tasks=4,
        query=15,
        inner_steps=5,
        form="pool",
        image_size=84,
        channels=3,
        features=32,
        inner_rate=0.01,
    ),
    "MLP": Workload(inner_steps=5, form="mlp", inner_rate=0.1),
}
"""What the table measures, by name."""


def check_cells(name: str, cells: Iterable[str]) -> None:
    """Raises a ValueError, which names the argument, for what is no cell."""
    for cell in cells:
        if cell not in CELLS:
            raise ValueError(f"{name}: {cell!r} is none of {', '.join(map(repr, CELLS))}")


class Arrays(NamedTuple):
    """The episodes of one meta-batch, as NumPy arrays.

    Attributes:
        support_inputs: float32 ``[tasks, n_way * k_shot, height, width, channels]``, in [0, 1].
        support_targets: int32 ``[tasks, n_way * k_shot]``.
        query_inputs: as the support's, of ``n_way * query`` images.
        query_targets: as the support's.
    """

    support_inputs: np.ndarray
    support_targets: np.ndarray
    query_inputs: np.ndarray
    query_targets: np.ndarray


class Compilation(NamedTuple):
    """What compiling a program took.

    Attributes:
        seconds: time to trace and compile the step; None where nothing is compiled.
        temporary_bytes: XLA's temporary memory of the step; None where it isn't XLA's.
    """

    seconds: float | None
    temporary_bytes: int | None


class Program(NamedTuple):
    """One implementation of the meta-step, on given episodes and initial weights.

    Attributes:
        name: what the table calls it.
        gradient: ``gradient() -> (meta-gradient, mean query loss)`` at the initial weights.
        compile: compiles the step, before it is timed.
        init: ``init() -> state``, the initial weights and Adam's state.
        step: ``step(state) -> state``: one meta-step, returning when it is complete.
    """

    name: str
    gradient: Callable[[], tuple[Weights, float]]
    compile: Callable[[], Compilation]
    init: Callable[[], Any]
    step: Callable[[Any], Any]


def initial_weights(workload: Workload, seed: int) -> Weights:
    """Convolutions Xavier-uniform, as in the paper's code, fully connected layers normal.

    The biases and shifts start at small random values instead of zero, and scales around one, so
    that an error in their part of the gradient shows.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    if workload.form == "mlp":
        inputs = workload.image_size**2 * workload.channels
        for layer, width in enumerate(MLP_WIDTHS):
            kernel = rng.standard_normal((inputs, width)) * np.sqrt(2 / inputs)
            weights[f"dense_{layer}/kernel"] = kernel
            weights[f"dense_{layer}/bias"] = 0.1 * rng.standard_normal(width)
            inputs = width
    else:
        channels, features = workload.channels, workload.features
        for layer in range(LAYERS):
            bound = np.sqrt(6 / (9 * (channels + features)))
            weights[f"conv_{layer}/kernel"] = rng.uniform(-bound, bound, (3, 3, channels, features))
            weights[f"conv_{layer}/bias"] = 0.1 * rng.standard_normal(features)
            if workload.form == "pool":
                weights[f"norm_{layer}/scale"] = 1 + 0.1 * rng.standard_normal(features)
            weights[f"norm_{layer}/bias"] = 0.1 * rng.standard_normal(features)
            channels = features
    inputs = workload.head_inputs()
    weights["head/kernel"] = rng.standard_normal((inputs, workload.n_way)) / np.sqrt(inputs)
    weights["head/bias"] = 0.1 * rng.standard_normal(workload.n_way)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def random_episodes(workload: Workload, seed: int) -> Arrays:
    """Random images, a prototype a class and much noise; the cost doesn't depend on them."""
    rng = np.random.default_rng(seed)
    shape = (workload.image_size, workload.image_size, workload.channels)
    prototypes = rng.random((workload.tasks, workload.n_way, 1, *shape))

    def images(number: int) -> tuple[np.ndarray, np.ndarray]:
        noise = rng.random((workload.tasks, workload.n_way, number, *shape))
        mixed = (0.2 * prototypes + 0.8 * noise).astype(np.float32)
        classes = np.repeat(np.arange(workload.n_way, dtype=np.int32), number)
        return mixed.reshape(workload.tasks, -1, *shape), np.tile(classes, (workload.tasks, 1))

    return Arrays(*images(workload.k_shot), *images(workload.query))


def in_float64(weights: Weights, arrays: Arrays) -> tuple[Weights, Arrays]:
    """The same numbers in double precision."""
    double = lambda array: array.astype(np.float64) if array.dtype == np.float32 else array
    return {name: double(value) for name, value in weights.items()}, Arrays(*map(double, arrays))


def adapts(name: str) -> bool:
    """Whether the inner loop adapts a leaf: all but the normalisation's scale and shift."""
    return not name.startswith("norm_")


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
