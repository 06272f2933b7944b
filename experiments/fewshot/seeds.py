"""Runs of several seeds as one program, for a device with room for them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.types import Params, Sampler


class Together(NamedTuple):
    """The states of several runs.

    Attributes:
        runs: a ``TrainState`` whose leaves have a leading axis, ``[seeds, ...]``.
        step: meta-steps that all have taken.
    """

    runs: metajax.TrainState
    step: jax.Array

    @property
    def params(self) -> Params:
        """Parameters ``[seeds, ...]``."""
        return self.runs.params


class Trainer(NamedTuple):
    """What ``common.fit`` needs.

    Attributes:
        run: ``run(state, steps) -> (state, metrics)``; metrics are means over the seeds, and the
            loss of each.
    """

    run: Callable[[Together, int], tuple[Together, dict[str, jax.Array]]]


def one_of(tree: Any, index: int) -> Any:
    """The part of one seed.

    >>> one_of({"w": jnp.array([[1.0], [2.0]])}, 1)["w"].tolist()
    [2.0]
    """
    return jax.tree.map(lambda leaf: leaf[index], tree)


def together(
    trainer: metajax.Trainer, sample: Sampler, params: Sequence[Params], keys: Sequence[jax.Array]
) -> tuple[Trainer, Together]:
    """A trainer of several runs at once, and their states at first.

    Args:
        trainer: of one run; without a mesh, and with another policy than "raise".
        sample: the sampler that it was given.
        params: initial parameters of each run.
        keys: random keys of each.
    """

    # The sampler's arrays are arguments of the program, not constants in it.
    @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
    def program(
        state: Together, sample: Sampler, steps: int
    ) -> tuple[Together, dict[str, jax.Array]]:
        one = lambda run: trainer.run(run, steps, sample=sample)
        runs, metrics = jax.vmap(one)(state.runs)
        found = {name: value.mean(axis=0) for name, value in metrics.items()}
        found |= {f"loss_{index}": loss for index, loss in enumerate(metrics["loss"])}
        return Together(runs, state.step + steps), found

    states = [trainer.init(*each) for each in zip(params, keys, strict=True)]
    runs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    run = lambda state, steps: program(state, sample, steps)
    return Trainer(run), Together(runs, jnp.zeros((), jnp.int32))


def scores_together(
    score: Callable[[Params], Mapping[str, float]], seeds: int
) -> Callable[[Params], dict[str, float]]:
    """Means over the seeds of what ``score`` says of each, and each seed's own."""

    def scores(params: Params) -> dict[str, float]:
        each = [score(one_of(params, index)) for index in range(seeds)]
        found = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        own = {
            f"{name}_{index}": float(value)
            for index, one in enumerate(each)
            for name, value in one.items()
        }
        return found | own

    return scores
