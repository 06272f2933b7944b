"""Completions: the chosen one of each task, and which are right."""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.evolve.types import Answers, Completions


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
