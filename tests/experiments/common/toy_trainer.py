"""A trainer that takes no time, for tests of the loop around it; also a script to kill."""

import dataclasses
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import common


class ToyState(NamedTuple):
    params: dict[str, jax.Array]
    optimizer_state: Any
    key: jax.Array
    step: jax.Array


class ToyTrainer(NamedTuple):
    run: Any


OPTIMIZER = optax.adam(1e-2)


def toy_state(seed: int = 0, size: int = 3) -> ToyState:
    params = {"w": jnp.ones(size), "b": jnp.zeros(())}
    return ToyState(params, OPTIMIZER.init(params), jax.random.key(seed), jnp.int32(0))


def toy_trainer(*, bad_loss_at: int = -1, bad_update_at: int = -1, delay: float = 0.0):
    """Regression on random inputs; optionally a NaN as the loss, or in the update, of a step."""

    def one(state, _):
        x = jax.random.normal(jax.random.fold_in(state.key, state.step), state.params["w"].shape)
        predict = lambda params: params["w"] @ x + params["b"]
        loss, gradient = jax.value_and_grad(lambda p: (predict(p) - 2 * x.sum()) ** 2)(state.params)
        updates, optimizer_state = OPTIMIZER.update(gradient, state.optimizer_state)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        loss = jnp.where(step == bad_loss_at, jnp.nan, loss)
        params["b"] = jnp.where(step == bad_update_at, jnp.inf, params["b"])
        return ToyState(params, optimizer_state, state.key, step), {"loss": loss}

    @partial(jax.jit, static_argnums=1, donate_argnums=0)
    def run(state, steps):
        return jax.lax.scan(one, state, length=steps)

    def slow_run(state, steps):
        time.sleep(delay)
        return run(state, steps)

    return ToyTrainer(slow_run)


@dataclasses.dataclass(frozen=True)
class ToyConfig(common.RunConfig):
    """Options of the toy."""

    steps: int = 200
    """Outer updates."""
    width: int = 3
    """Numbers to learn."""
    log_every: int = 10
    """Steps a dispatch."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""


def main() -> None:
    config = common.parse(ToyConfig, sys.argv[1:], "A toy.")
    run = common.open_run("toy", config)
    common.fit(run, toy_trainer(delay=0.05), toy_state(config.seed), steps=config.steps)


if __name__ == "__main__":
    common.guard(main)
