"""Training steps on data that is read part by part, beside the same steps on data on the device.

    python -m experiments.benchmarks.streaming

Prototypical Networks learn images of noise, which lie in a file that is larger than a part. Both
trainings draw from as many classes at a time, and are the same compiled program; they take turns.
The time of a part has its reading, its way to the device, and its steps.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax
from experiments import common
from experiments.benchmarks.report import provenance, write
from experiments.common.report import markdown_table
from metajax import models
from metajax.data import ClassData, episode_sampler, stream


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    classes: int = 64
    """Classes of the file."""
    images: int = 600
    """Images of each, 32 × 32 in colour."""
    part_classes: int = 32
    """Classes of a part."""
    part_images: int = 100
    """Images of each of these."""
    steps: int = 25
    """Training steps on a part."""
    parts: int = 5
    """Timed turns of each."""
    features: int = 64
    """Channels of the four convolutions."""
    n_way: int = 20
    """Classes of an episode, with one support and ten query images each."""
    out: Path = Path("runs/bench")
    """Folder for streaming.json and .md; existing ones are replaced."""

    def __post_init__(self) -> None:
        common.check_positive(
            self, "classes", "images", "part_classes", "part_images", "steps", "parts", "features",
            "n_way",
        )  # fmt: skip


def measure(config: Config, file: Path) -> dict[str, list[float]]:
    """Milliseconds a step of each part, by the kind of training."""
    rows = config.classes * config.images
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (rows, 32, 32, 3))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 1000):
        part = images[start : start + 1000]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    images.flush()
    labels = np.repeat(np.arange(config.classes), config.images)
    parts = stream(
        lambda rows: np.asarray(images[rows]),
        labels,
        classes=config.part_classes,
        per_class=config.part_images,
    )
    first = next(parts)
    resident = jax.device_put(first.examples)

    def sampler(part: ClassData) -> metajax.Sampler:
        return episode_sampler(part, n_way=config.n_way, k_shot=1, query=10)

    module = models.Conv4(None, features=config.features, form="pool")
    params, apply = metajax.from_linen(module, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    trainer = metajax.meta_trainer(
        metajax.prototypical(apply, n_way=config.n_way),
        optax.adam(1e-3),
        sampler(first),
        meta_batch=1,
    )
    state = trainer.init(params, jax.random.key(1))
    state, _ = trainer.run(state, config.steps, sample=sampler(first))
    found: dict[str, list[float]] = {"on the device": [], "streamed": []}
    for _ in range(config.parts):
        for kind, times in found.items():
            started = time.perf_counter()
            part = (
                dataclasses.replace(first, examples=resident) if kind != "streamed" else next(parts)
            )
            state, metrics = trainer.run(state, config.steps, sample=sampler(part))
            jax.block_until_ready(metrics)
            times.append(1000 * (time.perf_counter() - started) / config.steps)
    return found


def table(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    medians = {kind: statistics.median(times) for kind, times in result["ms"].items()}
    base = medians["on the device"]
    columns = {
        "data": list(medians),
        "ms a training step": [f"{median:.1f}" for median in medians.values()],
        "times as long": [f"{median / base:.2f}" for median in medians.values()],
    }
    lines = [
        "# Training on streamed data",
        "",
        f"{result['sizes']} The time of a part has its reading.",
        "",
        *markdown_table(columns),
        "",
        *provenance(dict(result)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    config = common.parse(Config, None, __doc__ or "")
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(config, Path(folder) / "images.npy")
    result = {
        "command": common.command("experiments.benchmarks.streaming", config),
        "environment": common.environment(),
        "sizes": f"Parts of {config.part_classes} classes of {config.part_images} images, of "
        f"{config.classes} classes of {config.images}; {config.steps} steps a part.",
        "ms": times,
    }
    write(config.out, "streaming", result, table(result))
    print(table(result))


if __name__ == "__main__":
    common.guard(main)
