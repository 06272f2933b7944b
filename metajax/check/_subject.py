"""The tasks, the programs and the first results that all checks of a learner share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax.check._perturb import changed
from metajax.learners.base import Learner, adapt_to
from metajax.meta_gradient import meta_gradient
from metajax.trees import strongly_typed
from metajax.types import Episode, Params

Seen = tuple[bool | None, str]
"""Whether a check passed (None: it doesn't apply), and a sentence."""

N_TASKS = 3


@dataclasses.dataclass(frozen=True)
class Subject:
    """A learner and what its checks share; nothing is computed before it is asked for."""

    learner: Learner
    model_params: Params
    given: Any
    n_way: int | None
    rtol: float
    seed: int

    @functools.cached_property
    def params(self) -> Params:
        """The meta-parameters, as ``meta_trainer`` starts from them."""
        given = self.learner.init(jax.tree.map(jnp.asarray, self.model_params))
        arrays = all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(given))
        return strongly_typed(given) if arrays else given

    @functools.cached_property
    def near(self) -> Params:
        """Meta-parameters near them, for what zeros among them may hide."""
        return changed(self.params, self.key(1), 0.05)

    def key(self, number: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.seed), number)

    @functools.cached_property
    def tasks(self) -> list[Episode]:
        """Three tasks: drawn, or the given one and two like it."""
        if isinstance(self.given, Episode):
            given = jax.tree.map(jnp.asarray, self.given)
            like = lambda number: changed(given, self.key(number), 0.1, integers=False)
            tasks = [given, like(2), like(3)]
        else:
            tasks = [self.given(self.key(2 + i)) for i in range(N_TASKS)]
        if self.learner.keyed:
            tasks = [task._replace(key=self.key(7 + i)) for i, task in enumerate(tasks)]
        return tasks

    @functools.cached_property
    def stacked(self) -> Episode:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.tasks)

    def outcome(self, params: Params, episode: Episode) -> tuple[Params, jax.Array]:
        """Adapted parameters and query loss."""
        adapted, _ = adapt_to(self.learner, params, episode)
        return adapted, self.learner.loss(adapted, episode)[0]

    @functools.cached_property
    def compiled(self) -> Callable[[Params, Episode], tuple[Params, jax.Array]]:
        return jax.jit(self.outcome)

    @functools.cached_property
    def loss(self) -> Callable[[Params, Episode], jax.Array]:
        return jax.jit(lambda adapted, episode: self.learner.loss(adapted, episode)[0])

    @functools.cached_property
    def traces(self) -> list[None]:
        """One entry for every time that ``gradient`` was traced."""
        return []

    @functools.cached_property
    def gradient(self) -> Callable[[Params, Episode], tuple[Params, dict[str, jax.Array]]]:
        inner = meta_gradient(self.learner, tasks_per_chunk=1)

        def traced(params, episodes):
            self.traces.append(None)
            return inner(params, episodes)

        return jax.jit(traced)

    @functools.cached_property
    def first_gradient(self) -> tuple[Params, dict[str, jax.Array]]:
        return self.gradient(self.params, self.stacked)

    @functools.cached_property
    def uncompiled(self) -> tuple[Params, jax.Array]:
        return self.outcome(self.params, self.tasks[0])
