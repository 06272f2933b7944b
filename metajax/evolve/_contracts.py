"""What the loop checks of its parts' results, before anything is learned from them."""

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.types import Completions, Tasks, Verdict


def check_tasks(tasks: Tasks, count: int | None = None, *, name: str = "tasks must be") -> None:
    """Raises an ArgumentError that begins with ``name`` for wrong shapes or prompt lengths, or if
    there aren't ``count`` tasks (any number above 0 if None)."""
    shapes = {each: np.shape(getattr(tasks, each)) for each in Tasks._fields if each != "about"}
    shapes |= {f"about, {n}": np.shape(leaf) for n, leaf in enumerate(jax.tree.leaves(tasks.about))}
    prompts = shapes["prompts"]
    if count is None and prompts:
        count = prompts[0]
    if len(prompts) != 2 or not count or any(shape[:1] != (count,) for shape in shapes.values()):
        raise ArgumentError(
            f"{name} prompts [{count or 'n'}, width] and as many lengths, levels and valid,"
            f" got {shapes}."
        )
    lengths = np.asarray(tasks.lengths)
    if lengths.ndim != 1 or lengths.min() < 1 or lengths.max() > prompts[1]:
        raise ArgumentError(
            f"{name} prompts whose lengths are from 1 to the prompts' width, {prompts[1]}, got "
            f"{_checks.shown(lengths)}."
        )


def check_completions(completions: Completions, count: int) -> None:
    """Raises an ArgumentError if the shapes aren't those of completions of ``count`` tasks."""
    shapes = {name: np.shape(getattr(completions, name)) for name in Completions._fields}
    rows = shapes["tokens"][:2]
    wide = len(shapes["tokens"]) == 3 and shapes["log_probs"] == shapes["tokens"]
    if not wide or rows[0] != count or (shapes["lengths"], shapes["ended"]) != (rows, rows):
        raise ArgumentError(
            f"solve must return tokens and log_probs [{count}, samples, width], lengths and ended "
            f"[{count}, samples], got {shapes}."
        )


def check_verdict(verdict: Verdict, count: int, samples: int) -> None:
    """Raises an ArgumentError for wrong shapes, weights that aren't in [0, 1], choices that aren't
    among the samples, and rewards that aren't finite."""
    for name, leaf in zip(("choice", "weight", "agreement"), verdict[:3], strict=True):
        if np.shape(leaf) != (count,):
            raise ArgumentError(
                f"verify must return {name}s [{count}], got shape {np.shape(leaf)}."
            )
    weights, choice = np.asarray(verdict.weight), np.asarray(verdict.choice)
    wrong = ~((weights >= 0) & (weights <= 1))
    if wrong.any():
        raise ArgumentError(f"verify must return weights in [0, 1], got {weights[wrong][0]}.")
    if choice.dtype.kind not in "iu" or choice.min() < 0 or choice.max() >= samples:
        raise ArgumentError(
            f"verify must return choices among the {samples} samples, got {_checks.shown(choice)}."
        )
    if verdict.rewards is None:
        return
    rewards = np.asarray(verdict.rewards)
    if rewards.shape != (count, samples):
        raise ArgumentError(
            f"verify must return rewards [{count}, {samples}], got shape {rewards.shape}."
        )
    if not np.isfinite(rewards).all():
        found = rewards[~np.isfinite(rewards)][0]
        raise ArgumentError(f"verify must return finite rewards, got {found}.")
