"""Answers of a language model to tasks."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve._contracts import check_tasks
from metajax.evolve._generate import generate_in_chunks
from metajax.evolve.types import Completions, Solver, Tasks
from metajax.lm import SamplingParams
from metajax.models import Transformer
from metajax.parallel import _devices as devices
from metajax.types import Params

_MULTIPLE = 16
"""Completions are padded to a multiple of so many tokens, so that what reads them isn't compiled
for every level."""


@dataclasses.dataclass(frozen=True)
class _ModelSolver:
    """A solver that tells its temperature, which a policy gradient must share."""

    solve: Solver
    temperature: float | None

    def __call__(self, params: Params, key: jax.Array, tasks: Tasks, /) -> Completions:
        return self.solve(params, key, tasks)


def model_solver(
    model: Transformer,
    *,
    answer_length: Callable[[int], int],
    end: int,
    samples: int = 1,
    temperature: float | None = None,
    slack: int = 2,
    prefix: Sequence[int] = (),
    chunk: int = 512,
    mesh: Mesh | None = None,
) -> Solver:
    """Builds ``solve(params, key, tasks) -> Completions`` from ``metajax.lm.generate``.

    Args:
        model: the language model.
        answer_length: tokens of a level's answer, the end token among them.
        end: the token that ends an answer.
        samples: completions of each task; more than one needs a ``temperature``.
        temperature: of sampling; None takes the likeliest token.
        slack: how many tokens more than ``answer_length`` a completion may have.
        prefix: tokens before every prompt, such as worked examples, which the tasks don't have in
            them. A prompt's first token is left out where the prefix begins with the same one, the
            begin token. They are computed once a chunk.
        chunk: tasks that are answered together.
        mesh: devices that share them.

    Returns:
        The solver. ``params`` are the model's, or ``{"params": ..., "lora": ...}``.

    Raises:
        ArgumentError: a number isn't a positive integer; several samples without a temperature;
            from the solver, tasks of a wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig.nope(vocab_size=14, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> solve = model_solver(model, answer_length=lambda level: level + 1, end=13)
        >>> tasks = Tasks(np.array([[0, 4], [5, 6]]), np.array([1, 2]), np.ones(2), np.ones(2))
        >>> solve(params, jax.random.key(2), tasks).tokens.shape
        (2, 1, 16)
    """
    _checks.positive_int("samples", samples)
    _checks.positive_int("chunk", chunk)
    _checks.non_negative_int("slack", slack)
    _checks.non_negative_int("end", end)
    if temperature is not None:
        _checks.positive_float("temperature", temperature)
    elif samples > 1:
        raise ArgumentError(f"samples={samples} would all be the same: give a temperature.")
    devices.equal_share("chunk", chunk, mesh)

    def solve(params: Params, key: jax.Array, tasks: Tasks, /) -> Completions:
        check_tasks(tasks)
        prompts, lengths, levels = (np.asarray(part) for part in tasks[:3])
        longest = answer_length(int(levels.max())) + slack
        tokens, log_probs, counts = generate_in_chunks(
            model,
            params,
            [_behind(prefix, row[-length:]) for row, length in zip(prompts, lengths, strict=True)],
            key,
            chunk=chunk,
            mesh=mesh,
            max_new_tokens=longest,
            sampling=SamplingParams(temperature, stop_tokens=(end,)),
            samples=samples,
        )
        padding = ((0, 0), (0, 0), (0, -longest % _MULTIPLE))
        tokens, log_probs = np.pad(tokens, padding), np.pad(log_probs, padding)
        last = np.take_along_axis(tokens, counts[..., None] - 1, axis=-1)[..., 0]
        return Completions(tokens, log_probs, counts, last == end)

    return _ModelSolver(solve, temperature)


def _behind(prefix: Sequence[int], prompt: np.ndarray) -> np.ndarray:
    """The prompt behind a prefix, which may have the begin token already."""
    before = np.asarray(prefix, np.int32)
    return np.concatenate([before, prompt[int(prompt[:1].tolist() == before[:1].tolist()) :]])
