"""Answers of a model: what stands in front of prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import evolve as ev
from metajax.models import Transformer, TransformerConfig

CONFIG = TransformerConfig.llama(
    vocab_size=14, width=16, n_layers=2, n_heads=2, mlp_width=16, max_length=64, scan=False
)
MODEL = Transformer(CONFIG)
PREFIX = [1, *range(2, 12), *range(2, 10)]  # longer than what is shared at the least


def tasks_of(rows):
    width = max(map(len, rows))
    prompts = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows])
    return ev.Tasks(prompts, lengths, np.ones(len(rows), int), np.ones(len(rows), bool))


@pytest.mark.parametrize(
    ("rows", "written_out"),
    [
        # The begin token of prompt and prefix is there once.
        ([[1, 4, 5], [1, 6]], [[*PREFIX, 4, 5], [*PREFIX, 6]]),
        ([[4, 5], [6]], [[*PREFIX, 4, 5], [*PREFIX, 6]]),
    ],
    ids=["begin", "no begin"],
)
def test_a_prefix_stands_in_front_of_every_prompt(rows, written_out):
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    options = {
        "answer_length": lambda level: 6, "end": 13, "samples": 2, "temperature": 1.0, "chunk": 2,
    }  # fmt: skip
    key = jax.random.key(3)
    behind = ev.model_solver(MODEL, prefix=PREFIX, **options)(params, key, tasks_of(rows))
    wanted = ev.model_solver(MODEL, **options)(params, key, tasks_of(written_out))
    np.testing.assert_array_equal(behind.tokens, wanted.tokens)
    np.testing.assert_array_equal(behind.lengths, wanted.lengths)
    np.testing.assert_allclose(behind.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-6)
    alone = ev.model_solver(MODEL, **options)(params, key, tasks_of(rows))
    assert np.abs(alone.log_probs[:, :, 0] - wanted.log_probs[:, :, 0]).max() > 1e-3
