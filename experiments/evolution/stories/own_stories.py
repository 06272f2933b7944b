"""What a model writes by itself."""

from pathlib import Path

import jax
import numpy as np

from experiments.evolution.stories.config import Setup, prompts
from metajax import evolve as ev
from metajax.files import open_to_read, replacing


def write(setup: Setup, file: Path, count: int, key: jax.Array) -> list[list[int]]:
    """The base model's stories behind the begin token, at temperature 1, so that they are its own
    distribution; read from a file that an earlier call has left."""
    begin = setup.problem.first_token
    if not file.exists():
        solve = ev.model_solver(
            setup.model,
            answer_length=lambda level: setup.config.longest,
            end=setup.problem.end,
            temperature=1.0,
            slack=0,
            chunk=4 * setup.config.chunk,
        )
        found = solve(setup.params, key, prompts([[begin]] * count))
        with replacing(file) as path, path.open("wb") as opened:
            np.savez(opened, tokens=found.tokens[:, 0], lengths=found.lengths[:, 0])
    with open_to_read(file) as opened, np.load(opened) as loaded:
        rows = zip(loaded["tokens"], loaded["lengths"], strict=True)
        return [[begin, *row[:length].tolist()] for row, length in rows]


def examples(rows: list[list[int]]) -> ev.Examples:
    """Stories as texts to imitate, all but the token that they begin with."""
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return ev.Examples(
        tokens,
        np.ones(len(rows), np.int32),
        np.array([len(row) for row in rows], np.int32),
        np.ones(len(rows), np.float32),
    )
