"""Answers and tasks by hand, for tests of self-evolution."""

import numpy as np

from experiments.evolution.strings.tasks import digits
from metajax.evolve import Completions, Tasks

COPY = digits("copy")


def completions_of(rows, *, log_probs=None, end=13, width=0):
    """Completions ``[n, samples]`` from lists of tokens."""
    width = max(width, *(len(answer) for row in rows for answer in row))
    tokens = np.array([[answer + [0] * (width - len(answer)) for answer in row] for row in rows])
    lengths = np.array([[len(answer) for answer in row] for row in rows])
    ended = np.array([[answer[-1] == end for answer in row] for row in rows])
    if log_probs is None:
        log_probs = np.zeros(tokens.shape)
    return Completions(tokens.astype(np.int32), np.asarray(log_probs, np.float32), lengths, ended)


def tasks_of(levels, *, valid=None):
    """Tasks of which only levels and validity matter."""
    levels = np.asarray(levels)
    valid = np.ones(len(levels), bool) if valid is None else np.asarray(valid)
    return Tasks(np.zeros((len(levels), 3), np.int32), np.full(len(levels), 3), levels, valid)


def solved(problem, tasks, *, wrong=()):
    """Right answers as completions, but for those of the rows ``wrong``, which lack a digit."""
    answers = problem.answer(tasks)
    rows = []
    for row, (tokens, length) in enumerate(
        zip(np.asarray(answers.tokens).tolist(), np.asarray(answers.lengths).tolist(), strict=True)
    ):
        own = tokens[:length]
        rows.append([own[1:] if row in wrong else own])
    return completions_of(rows, width=answers.tokens.shape[1])
