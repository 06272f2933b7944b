"""Test tasks, and the scores of learners on them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax
from experiments.common import plots
from experiments.language.rules.config import HELD_OUT, SEEN, RulesConfig
from experiments.language.rules.tasks import FAMILIES, tasks_of_family

TEST_SEED, TUNING_SEED = 2024, 2025
TASKS_PER_CHUNK = 4
"""Tasks adapted together on a core."""


def draw_tasks(
    config: RulesConfig, families: Sequence[str], count: int, *, seed: int = TEST_SEED
) -> metajax.Episode:
    """At least ``count`` tasks, as many of each family, family by family; always the same ones."""
    each = 2 * -(-count // (2 * len(families)))  # an even number, so that two cores can share them
    draw = tasks_of_family(config.words, k_shot=config.k_shot, query=config.query)
    draw_all = jax.jit(jax.vmap(draw, in_axes=(0, None)))
    parts = []
    for family in families:
        number = FAMILIES.index(family)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), each)
        parts.append(draw_all(keys, number))
    return joined(parts)


def joined(parts: Iterable[metajax.Episode]) -> metajax.Episode:
    """Joins lists of tasks ``[tasks, ...]``."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def test_tasks(config: RulesConfig) -> dict[str, metajax.Episode]:
    """The test tasks: of rules that are held out, and of rules seen in training."""
    return {
        "held-out": draw_tasks(config, HELD_OUT, config.test_episodes),
        "seen": draw_tasks(config, SEEN, config.test_episodes // 2),
    }


class Scores(NamedTuple):
    """A learner's scores on a list of tasks, after 0, 1, ... inner steps.

    Attributes:
        words: % of words that are right in every letter, ``[tasks, steps + 1]``.
        letters: % of letters that are right, ``[tasks, steps + 1]``.
    """

    words: np.ndarray
    letters: np.ndarray

    def at(self, step: int) -> "Scores":
        """The same after one number of steps alone."""
        return Scores(self.words[:, [step]], self.letters[:, [step]])

    def curve(self, label: str) -> plots.Curve:
        """The mean of ``words`` over tasks, and its 95 % confidence interval."""
        return plots.Curve(label, self.words.mean(axis=0), interval(self.words))


def interval(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % confidence interval of the mean over the first axis."""
    return 1.96 * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def score(learner: metajax.Learner, variables: Any, tasks: metajax.Episode) -> Scores:
    """Scores a learner on tasks ``[tasks, ...]``."""
    scores = metajax.evaluate_episodes(
        learner,
        variables,
        tasks,
        tasks_per_chunk=TASKS_PER_CHUNK,
        mesh=metajax.task_mesh(len(tasks.query.tokens)),
    )
    return Scores(100 * scores.values["exact"], 100 * scores.values["accuracy"])


def scores_by_kind(
    candidates: Mapping[str, tuple[metajax.Learner, Any, Mapping[str, metajax.Episode]]],
) -> dict[str, dict[str, Scores]]:
    """The scores of learners by kind of task, then by name. One program scores all kinds.

    Args:
        candidates: by name, a learner, its variables, and its tasks by kind, the same kinds for
            all.
    """
    found: dict[str, dict[str, Scores]] = {}
    for name, (learner, variables, tasks) in candidates.items():
        whole = score(learner, variables, joined(tasks.values()))
        ends = np.cumsum([len(rows.query.tokens) for rows in tasks.values()])[:-1]
        for kind, *parts in zip(tasks, *(np.split(unit, ends) for unit in whole), strict=True):
            found.setdefault(kind, {})[name] = Scores(*parts)
    return found
