"""Completions: the chosen one of each task, and which are right."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.evolve.types import Answers, Completions, Rollouts


@jax.jit
def is_correct(completions: Completions, answers: Answers) -> jax.Array:
    """Which completions equal the answer, the end token included: bools ``[n, samples]``.

    Example:
        >>> answers = Answers(jnp.array([[4, 13]]), jnp.array([2]))
        >>> tokens = jnp.array([[[4, 13, 0], [4, 4, 13]]])
        >>> completions = Completions(tokens, None, jnp.array([[2, 3]]), jnp.ones((1, 2), bool))
        >>> is_correct(completions, answers).tolist()
        [[True, False]]
    """
    width = max(completions.tokens.shape[-1], answers.tokens.shape[-1])
    fill = lambda tokens: jnp.pad(
        jnp.asarray(tokens), [(0, 0)] * (tokens.ndim - 1) + [(0, width - tokens.shape[-1])]
    )
    same = (fill(completions.tokens) == fill(answers.tokens)[:, None]).all(axis=-1)
    return same & (completions.lengths == answers.lengths[:, None])


def chosen_completions(completions: Completions, choice: jax.Array | np.ndarray) -> Completions:
    """The chosen sample of each task: completions with a single sample.

    Example:
        >>> tokens = np.arange(6).reshape(2, 3, 1)
        >>> completions = Completions(tokens, tokens, np.ones((2, 3)), np.ones((2, 3)))
        >>> chosen_completions(completions, np.array([2, 0])).tokens.tolist()
        [[[2]], [[3]]]
    """

    def take(leaf):
        index = choice.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.take_along_axis(jnp.asarray(leaf), jnp.asarray(index), axis=1)

    return Completions(*map(take, completions))


def rewards_of(rollouts: Rollouts) -> np.ndarray:
    """What each sample of a round earns ``[n, samples]``; 0 for tasks that aren't valid, and where
    the verdict's weight is 0.

    It is ``verdict.rewards``, or, without these, 1 for samples that equal the label and 0 for
    others.

    Example:
        >>> from metajax.evolve import Tasks, Verdict
        >>> tasks = Tasks(None, None, None, np.array([True]))
        >>> completions = Completions(np.array([[[4], [5], [4]]]), None, np.ones((1, 3), int), None)
        >>> verdict = Verdict(np.array([0]), np.ones(1), np.ones(1))
        >>> rewards_of(Rollouts(tasks, completions, verdict)).tolist()
        [[1.0, 0.0, 1.0]]
    """
    tasks, completions, verdict = rollouts
    if verdict.rewards is None:
        tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
        choice = np.asarray(verdict.choice)[:, None]
        same = tokens == np.take_along_axis(tokens, choice[..., None], axis=1)
        rewards = same.all(axis=-1) & (lengths == np.take_along_axis(lengths, choice, axis=1))
    else:
        rewards = verdict.rewards
    trusted = np.asarray(tasks.valid) & (np.asarray(verdict.weight) > 0)
    return np.where(trusted[:, None], np.asarray(rewards, float), 0.0)
