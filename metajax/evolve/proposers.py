"""Who poses the next tasks: a program, as published, or the model itself."""

import jax
import numpy as np
from jax.sharding import Mesh

from metajax import _checks, lm
from metajax.errors import ArgumentError
from metajax.evolve.solve import chunks_of, prepared
from metajax.evolve.types import Levels, Problem, Proposer, Tasks
from metajax.models import Transformer
from metajax.types import Params


def drawn_by_program(problem: Problem, *, count: int) -> Proposer:
    """The published proposer: a program draws random prompts of the levels asked for; the model
    only answers them.

    Args:
        problem: what draws them.
        count: tasks a round.

    Raises:
        ArgumentError: if ``count`` isn't a positive integer.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> propose = drawn_by_program(digits("copy"), count=4)
        >>> propose(None, jax.random.key(0), Levels(3, 4)).levels.tolist()
        [4, 3, 4, 3]

    Source: Lee et al. 2025 (arXiv 2502.01612).
    """
    count = _checks.positive_int("count", count)

    def propose(params: Params, key: jax.Array, levels: Levels, /) -> Tasks:
        del params
        return problem.draw(key, spread(levels, count))

    return propose


def written_by_model(
    model: Transformer,
    problem: Problem,
    *,
    count: int,
    temperature: float = 1.0,
    chunk: int = 512,
    mesh: Mesh | None = None,
) -> Proposer:
    """The model's own proposer: it writes prompts, as it was trained to, and a mask of allowed
    tokens makes them as hard as asked for.

    What it writes is read back by ``problem.read``; a text that isn't a task, and one that it wrote
    before in this round, is marked as not valid. It must be trained on prompts too; see
    ``metajax.evolve.as_rows``.

    Args:
        model: the language model.
        problem: says what a prompt is.
        count: texts a round.
        temperature: what they are drawn at.
        chunk: texts that are written together.
        mesh: devices that share them.

    Raises:
        ArgumentError: a number isn't a positive integer, or the problem has no begin token, behind
            which a prompt could be written.

    Example:
        >>> import jax.numpy as jnp
        >>> from experiments.evolution.strings.digits import digits
        >>> from metajax.models import TransformerConfig
        >>> config = TransformerConfig.nope(vocab_size=14, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> propose = written_by_model(model, digits("copy"), count=4)
        >>> propose(params, jax.random.key(1), Levels(3, 3)).levels.tolist()
        [3, 3, 3, 3]
    """
    count, chunk = _checks.positive_int("count", count), _checks.positive_int("chunk", chunk)
    _checks.positive_float("temperature", temperature)
    _checks.instance("model", model, Transformer, "a metajax.models.Transformer")
    begin = problem.begin
    if begin is None:
        raise ArgumentError(
            f"problem {problem.name!r} must have a begin token, behind which a model writes; it "
            "has none."
        )

    def propose(params: Params, key: jax.Array, levels: Levels, /) -> Tasks:
        ready = prepared(params, mesh)
        steps = max(problem.prompt_length(levels.last) - 1, 1)
        masks = {
            level: _allowed(problem, level, steps) for level in range(levels[0], levels[1] + 1)
        }
        wanted = spread(levels, count)
        rows = []
        for start, own in chunks_of(wanted.tolist(), chunk, mesh):
            found = lm.generate(
                model,
                ready,
                np.full((len(own), 1), begin),
                jax.random.fold_in(key, start),
                max_new_tokens=steps,
                sampling=lm.SamplingParams(temperature),
                allowed=np.stack([masks[level] for level in own], axis=1),
                mesh=mesh,
            )
            rows.append(np.asarray(found.tokens[:, 0]))
        lengths = np.array([problem.prompt_length(level) for level in wanted])
        texts = np.pad(np.concatenate(rows)[:count], ((0, 0), (1, 0)), constant_values=begin)
        prompts = _to_the_right(texts, lengths)
        valid, levels_read = (np.asarray(part) for part in problem.read(prompts, lengths))
        tasks = Tasks(prompts, lengths, np.where(valid, levels_read, wanted), valid)
        return without_repetitions(tasks)

    return propose


def spread(levels: Levels, count: int) -> np.ndarray:
    """Levels ``[count]`` from the hardest to the easiest, again and again: as many of each.

    Example:
        >>> spread(Levels(2, 4), 5).tolist()
        [4, 3, 2, 4, 3]
    """
    for each in levels:
        _checks.positive_int("levels", each)
    if not 1 <= levels.first <= levels.last:
        raise ArgumentError(
            f"levels must be from 1 on, the first not above the last, got {levels}."
        )
    own = np.arange(levels.last, levels.first - 1, -1)
    return own[np.arange(count) % len(own)]


def fingerprints(tasks: Tasks) -> np.ndarray:
    """A 64-bit number for each prompt ``[n]``, the same whatever its padding.

    Example:
        >>> tasks = Tasks(np.array([[0, 5, 7], [5, 7, 0]]), np.array([2, 3]), None, None)
        >>> fingerprints(tasks)[0] == fingerprints(tasks._replace(lengths=np.array([2, 2])))[1]
        np.False_
    """
    prompts, lengths = np.asarray(tasks.prompts), np.asarray(tasks.lengths)
    width = prompts.shape[1]
    place = np.arange(width) - (width - lengths[:, None])
    factor, found = np.uint64(0x100000001B3), np.full(len(prompts), 0xCBF29CE484222325, np.uint64)
    with np.errstate(over="ignore"):
        for column in range(width):  # FNV-1a, a token at a time; padding leaves the number as it is
            token = (prompts[:, column] + 1).astype(np.uint64)
            found = np.where(place[:, column] >= 0, (found ^ token) * factor, found)
    return found


def without_repetitions(tasks: Tasks, known: np.ndarray | None = None) -> Tasks:
    """Marks as not valid what stands in the tasks twice, but for its first place, and what is
    known.

    Args:
        tasks: what was proposed.
        known: ``fingerprints`` of prompts that may not be learned from, such as held-out ones.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> tasks = digits("copy").draw(jax.random.key(0), [1] * 50)
        >>> int(without_repetitions(tasks).valid.sum())  # of ten digits
        10
    """
    marks = fingerprints(tasks)
    valid = np.asarray(tasks.valid).astype(bool)
    first = np.zeros(len(marks), bool)
    # What isn't valid doesn't stand in the way of what is.
    candidates = np.flatnonzero(valid)
    first[candidates[np.unique(marks[candidates], return_index=True)[1]]] = True
    if known is not None:
        first &= ~np.isin(marks, known)
    return tasks._replace(valid=valid & first)


def _allowed(problem: Problem, level: int, steps: int) -> np.ndarray:
    """The level's mask, and any token where its prompt has ended."""
    mask = problem.allowed(level)
    return np.concatenate([mask, np.ones((steps - len(mask), mask.shape[1]), bool)])


def _to_the_right(texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows padded on the left, from rows ``[n, width]`` of which the first ``lengths`` count."""
    width = texts.shape[1]
    source = np.arange(width) - (width - lengths[:, None])
    moved = np.take_along_axis(texts, np.maximum(source, 0), axis=1)
    return np.where(source >= 0, moved, 0).astype(np.int32)
