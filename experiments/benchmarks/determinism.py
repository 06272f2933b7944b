"""How far two machines, devices or settings of XLA part in a fixed training run.

    python -m experiments.benchmarks.determinism
    python -m experiments.benchmarks.determinism --dtype float64 --compare OTHER.npz

A fixed run of second-order MAML from fixed seeds: on sinusoids with an MLP, or with Conv-4 on
patterns that JAX draws. It prints a digest of every part (episodes, losses, parameters, test
scores), which two runs share if and only if they agree in every bit, and writes the arrays, from
which another run with --compare says by how much they part. All JAX devices share the tasks:
JAX_NUM_CPU_DEVICES=2, say.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import metajax
from experiments import common
from metajax import losses, models
from metajax.data import sinusoid_sampler

Network = Literal["sinusoid", "conv4"]
Dtype = Literal["float32", "float64"]
META_BATCH, N_WAY, FEATURES, SIZE = 8, 5, 8, 28
TEST_EPISODES = 64
AFTER = (1, 10, 100, 1000)
"""Meta-steps after which the losses are compared."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run."""

    network: Network = "sinusoid"
    """The task and its network."""
    dtype: Dtype = "float32"
    """Type of parameters and data."""
    steps: int = 200
    """Meta-steps."""
    dispatch: int = 50
    """Meta-steps in one dispatch; a divisor of steps."""
    out: Path = Path("runs/bench")
    """Folder for the arrays (npz) and the numbers (json)."""
    cores: int | None = None
    """How many of the process's cores are used (Linux); else all."""
    compare: Path | None = None
    """The npz of another run, to compare with."""

    def __post_init__(self) -> None:
        common.check_positive(self, "steps", "dispatch", "cores")
        if self.steps % self.dispatch:
            raise ValueError(f"dispatch must divide steps, {self.steps}; got {self.dispatch}")


def patterns(key: jax.Array) -> metajax.Episode:
    """Five classes, a random pattern each; one noisy copy to learn from, and three to be asked."""
    key_patterns, *keys = jax.random.split(key, 3)
    prototypes = jax.random.uniform(key_patterns, (N_WAY, SIZE, SIZE, 1))

    def batch(key: jax.Array, shots: int) -> metajax.Batch:
        targets = jnp.repeat(jnp.arange(N_WAY), shots)
        noise = jax.random.normal(key, (len(targets), SIZE, SIZE, 1))
        return metajax.Batch(prototypes[targets] + noise, targets)

    return metajax.Episode(batch(keys[0], 1), batch(keys[1], 3))


def task(network: Network) -> tuple[metajax.Sampler, metajax.Learner, Any]:
    """Sampler, learner and parameters."""
    key = jax.random.key(0)
    if network == "sinusoid":
        params, apply = metajax.from_linen(models.MLP(), key, jnp.zeros((1, 1)))
        loss_fn = losses.mean_squared_error(apply)
        return sinusoid_sampler(), metajax.maml(loss_fn, optax.sgd(0.01), steps=2), params
    module = models.Conv4(N_WAY, features=FEATURES)
    params, apply = metajax.from_linen(module, key, jnp.zeros((1, SIZE, SIZE, 1)))
    loss_fn = losses.cross_entropy(apply)
    return patterns, metajax.maml(loss_fn, optax.sgd(0.4), steps=2), params


def train(config: Config) -> dict[str, np.ndarray]:
    """Episodes, losses ``[steps]``, parameters in one vector, and the test tasks' losses."""
    sample, learner, params = task(config.network)
    params = jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)
    trainer = metajax.meta_trainer(
        learner,
        optax.adam(1e-3),
        sample,
        meta_batch=META_BATCH,
        mesh=metajax.task_mesh(META_BATCH),
    )
    state = trainer.init(params, jax.random.key(1))
    history = []
    for _ in range(config.steps // config.dispatch):
        state, metrics = trainer.run(state, config.dispatch)
        history.append(np.asarray(metrics["loss"]))
    scores = metajax.evaluate(
        learner, state.params, sample, jax.random.key(2), episodes=TEST_EPISODES
    )
    episode = jax.jit(sample)(jax.random.key(3))
    return {
        "episode": np.asarray(ravel_pytree(episode)[0]),
        "loss": np.concatenate(history),
        "params": np.asarray(ravel_pytree(jax.device_get(state.params))[0]),
        "scores": scores.values["loss"],
    }


def digest(array: np.ndarray) -> str:
    """Sixteen digits that two arrays share if they agree in type, shape and every bit.

    >>> digest(np.zeros(2)) == digest(np.zeros(2)), digest(np.zeros(2)) == digest(np.zeros(3))
    (True, False)
    """
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative differences: of the loss after so many meta-steps, of the norms of the others.

    >>> one, other = ({"loss": np.array([2.0, x])} for x in (1.0, 1.5))
    >>> differences(one, other)
    {'loss of step 1': 0.0, 'loss of step 2': 0.5}
    """
    found = {}
    for name, array in ours.items():
        other = theirs[name]
        if name == "loss":
            for step in sorted({*(n for n in AFTER if n < len(array)), len(array)}):
                gap = abs(float(array[step - 1]) - float(other[step - 1]))
                found[f"loss of step {step}"] = gap / abs(float(array[step - 1]))
        else:
            found[name] = float(np.linalg.norm(array - other) / np.linalg.norm(array))
    return found


def run(config: Config) -> dict[str, Any]:
    """Trains, compares, and writes both files into ``config.out``."""
    with jax.enable_x64(config.dtype == "float64"):
        arrays = train(config)
    result: dict[str, Any] = {
        "environment": common.environment(),
        "config": {"network": config.network, "dtype": config.dtype, "steps": config.steps},
        "digests": {name: digest(array) for name, array in arrays.items()},
        "numbers": {
            "first loss": float(arrays["loss"][0]),
            "last loss": float(arrays["loss"][-1]),
            "norm of the parameters": float(np.linalg.norm(arrays["params"])),
            "test loss": float(arrays["scores"][:, -1].mean()),
        },
    }
    if config.compare is not None:
        with np.load(config.compare) as other:
            result["differences"] = differences(arrays, dict(other))
    config.out.mkdir(parents=True, exist_ok=True)
    name = f"determinism-{config.network}-{config.dtype}"
    np.savez(config.out / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]
    (config.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def use_cores(count: int) -> None:
    """Leaves the process so many cores; XLA counts them when it is first used."""
    if not hasattr(os, "sched_setaffinity"):
        raise common.RunError("cores: this system doesn't let a process choose its cores")
    there = sorted(os.sched_getaffinity(0))
    if count > len(there):
        raise common.RunError(f"cores must be at most the {len(there)} that there are; got {count}")
    os.sched_setaffinity(0, there[:count])


def main() -> None:
    """The command line: prints the digests, the numbers, and the differences."""
    config = common.parse(Config, None, __doc__ or "")
    if config.cores is not None:
        use_cores(config.cores)
    result = run(config)
    for part in ("digests", "numbers", "differences"):
        for name, value in result.get(part, {}).items():
            print(f"{name:<24} {value if isinstance(value, str) else format(value, '.9g')}")


if __name__ == "__main__":
    common.guard(main)
