"""Answers from a language model, and how it scores them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metajax import _checks, lm
from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.evolve.types import Attempts, Solver, Tasks
from metajax.models import Transformer
from metajax.parallel import _devices as devices
from metajax.types import Params

MULTIPLE = 16
"""Answers have room for a multiple of so many tokens, so that what reads them isn't compiled for
every level."""


def solver(
    model: Transformer,
    *,
    answer_length: Callable[[int], int],
    end: int,
    samples: int = 1,
    temperature: float | None = None,
    slack: int = 2,
    chunk: int = 512,
    mesh: Mesh | None = None,
) -> Solver:
    """Builds ``solve(params, key, tasks) -> Attempts`` by ``metajax.lm.generate``.

    Args:
        model: the language model.
        answer_length: tokens of a level's answer, the end token among them; for how long an answer
            may get.
        end: the token that ends an answer.
        samples: answers to each task; more than one needs a ``temperature``.
        temperature: what they are drawn at; None for the likeliest tokens.
        slack: how many tokens more than ``answer_length`` an answer may have.
        chunk: tasks that are answered together.
        mesh: devices that share them.

    Returns:
        The solver. ``params`` are the model's, or ``{"params": ..., "lora": ...}``.

    Raises:
        ArgumentError: a number isn't a positive integer; more samples without a temperature.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> from metajax.models import TransformerConfig
        >>> copy = digits("copy")
        >>> config = TransformerConfig.nope(vocab_size=14, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> solve = solver(model, answer_length=copy.answer_length, end=copy.end)
        >>> tasks = copy.draw(jax.random.key(1), [3, 2])
        >>> solve(params, jax.random.key(2), tasks).tokens.shape
        (2, 1, 16)
    """
    samples, chunk = _checks.positive_int("samples", samples), _checks.positive_int("chunk", chunk)
    slack = _checks.non_negative_int("slack", slack)
    _checks.instance("model", model, Transformer, "a metajax.models.Transformer")
    _checks.function("answer_length", answer_length, "of a level")
    end = _checks.non_negative_int("end", end)
    if temperature is not None:
        temperature = _checks.positive_float("temperature", temperature)
    elif samples > 1:
        raise ArgumentError(f"samples={samples} would all be the same: give a temperature.")
    devices.equal_share("chunk", chunk, mesh)

    def solve(params: Params, key: jax.Array, tasks: Tasks, /) -> Attempts:
        check_tasks(tasks)
        prompts, lengths, levels = (np.asarray(part) for part in tasks[:3])
        longest = answer_length(int(levels.max())) + slack
        room = -(-longest // MULTIPLE) * MULTIPLE
        ready = prepared(params, mesh)
        rows = [row[-length:] for row, length in zip(prompts, lengths, strict=True)]
        parts = []
        for start, own in chunks_of(rows, chunk, mesh):
            found = lm.generate(
                model,
                ready,
                own,
                jax.random.fold_in(key, start),
                max_new_tokens=longest,
                sampling=lm.SamplingParams(temperature, stop_tokens=(end,)),
                samples=samples,
                mesh=mesh,
            )
            parts.append(jax.device_get(found))
        tokens, log_probs, counts = (
            np.concatenate(leaves)[: len(rows)] for leaves in zip(*parts, strict=True)
        )
        tokens, log_probs = (
            np.pad(leaf, ((0, 0), (0, 0), (0, room - longest))) for leaf in (tokens, log_probs)
        )
        last = np.take_along_axis(tokens, counts[..., None] - 1, axis=-1)[..., 0]
        return Attempts(tokens, log_probs, counts, last == end)

    return solve


def check_tasks(tasks: Any, count: int | None = None, *, name: str = "tasks must be") -> Tasks:
    """Returns ``Tasks`` of ``count`` prompts, any number above 0 if None, or raises an
    ArgumentError that begins with ``name``."""
    if not isinstance(tasks, Tasks):
        raise ArgumentTypeError(f"{name} Tasks, got {_checks.shown(tasks)}.")
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
    return tasks


def chunks_of(
    rows: Sequence[Any], chunk: int, mesh: Mesh | None
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Where each chunk starts, and its rows, as many in each: the last is filled by its first row,
    so that it compiles nothing of its own and devices share it equally.

    Example:
        >>> list(chunks_of("abcde", 2, None))
        [(0, ['a', 'b']), (2, ['c', 'd']), (4, ['e', 'e'])]
    """
    count = devices.size(mesh)
    size = min(chunk, -(-len(rows) // count) * count)
    for start in range(0, len(rows), size):
        own = list(rows[start : start + size])
        yield start, own + own[:1] * (size - len(own))


def prepared(params: Params, mesh: Mesh | None = None) -> lm.DecodingParams:
    """What ``generate`` reads of a model's parameters, or of these with factors beside them."""
    if isinstance(params, dict) and set(params) == {"params", "lora"}:
        return lm.decoding_params(params["params"], lora=params["lora"], mesh=mesh)
    return lm.decoding_params(params, mesh=mesh)


def chosen(attempts: Attempts, choice: jax.Array | np.ndarray) -> Attempts:
    """One sample of each task's: the same with a single sample.

    Example:
        >>> attempts = Attempts(*(np.arange(6).reshape(2, 3, 1),) * 2, *(np.ones((2, 3)),) * 2)
        >>> chosen(attempts, np.array([2, 0])).tokens.tolist()
        [[[2]], [[3]]]
    """

    def take(leaf):
        index = choice.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.take_along_axis(jnp.asarray(leaf), jnp.asarray(index), axis=1)

    return Attempts(*map(take, attempts))
