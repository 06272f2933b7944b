"""D_t: what a model learned from so far, real and its own, and how it becomes rows to train on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from metajax import _checks, lm
from metajax.errors import ArgumentError
from metajax.evolve.types import Answers, Attempts, Examples, Problem, Tasks, Verdict


class Round(NamedTuple):
    """What a round brought.

    Attributes:
        tasks: what was proposed.
        attempts: what was answered.
        verdict: what is trusted.
    """

    tasks: Tasks
    attempts: Attempts
    verdict: Verdict


class Data(NamedTuple):
    """D_t of θ_{t+1} = f(θ_t, D_t).

    Attributes:
        real: examples that were there before the loop, drawn for this round; never left out.
        past: those of each earlier round, oldest first; of a refused one the weights are 0.
        new: those of this round.
        newest: this round as it was made, for updates that want more than its examples; None where
            there was none.
    """

    real: Examples
    past: tuple[Examples, ...]
    new: Examples
    newest: Round | None


def real_alone(real: Examples) -> Data:
    """Data of no round, such as a control is trained on: new examples have weight 0.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> real = real_examples(digits("copy"), jax.random.key(0), [1, 2], 5)
        >>> real_alone(real).new.weights.any()
        np.False_
    """
    return Data(real, (), real._replace(weights=np.zeros_like(real.weights)), None)


def round_of(data: Data, update: str) -> Round:
    """The newest round, for an update that can't do without one."""
    if data.newest is None:
        raise ArgumentError(
            f"{update} learns from a round's answers: data.newest must not be None."
        )
    return data.newest


def as_examples(tasks: Tasks, answers: Answers, weights: np.ndarray) -> Examples:
    """Texts of prompts and answers.

    Args:
        tasks: ``n`` prompts.
        answers: one to each.
        weights: ``[n]``; what isn't valid gets 0 in any case.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> copy = digits("copy")
        >>> tasks = copy.draw(jax.random.key(0), [2, 3])
        >>> examples = as_examples(tasks, copy.solve(tasks), np.ones(2))
        >>> [copy.show(row) for row in examples.tokens]
        ['<72=72>', '<099=099>']
    """
    prompts, lengths, _, valid = map(np.asarray, tasks[:4])
    tokens, counts = map(np.asarray, answers)
    place = np.arange(prompts.shape[1] + tokens.shape[1])
    start = prompts.shape[1] - lengths[:, None]
    joined = np.concatenate([prompts, tokens], axis=1)
    moved = np.take_along_axis(joined, np.minimum(place + start, joined.shape[1] - 1), axis=1)
    total = lengths + counts
    return Examples(
        np.where(place < total[:, None], moved, 0).astype(np.int32),
        lengths.astype(np.int32),
        total.astype(np.int32),
        np.where(valid, np.asarray(weights, np.float32), 0).astype(np.float32),
    )


def examples_of(made: Round) -> Examples:
    """What a round's verdict lets be learned from."""
    tokens, _, lengths, _ = made.attempts
    choice = np.asarray(made.verdict.choice)
    rows = np.arange(len(choice))
    answers = Answers(np.asarray(tokens)[rows, choice], np.asarray(lengths)[rows, choice])
    return as_examples(made.tasks, answers, np.asarray(made.verdict.weight))


def real_examples(problem: Problem, key: jax.Array, levels: Sequence[int], count: int) -> Examples:
    """Random prompts with right answers, each of the levels as likely as another.

    Raises:
        ArgumentError: ``count`` isn't a positive integer, or there are no ``levels``.

    Example:
        >>> from experiments.evolution.strings.digits import digits
        >>> real_examples(digits("copy"), jax.random.key(0), [1, 2], 5).lengths.max()
        np.int32(7)
    """
    count = _checks.positive_int("count", count)
    if isinstance(levels, str) or not len(levels):
        raise ArgumentError(f"levels must be a list of at least one level, got {levels!r}.")
    level_key, task_key = jax.random.split(key)
    chosen = np.asarray(levels)[np.asarray(jax.random.randint(level_key, (count,), 0, len(levels)))]
    # The prompts' width is that of the hardest level, whether or not it was drawn.
    chosen[0] = max(levels)
    tasks = problem.draw(task_key, chosen)
    return as_examples(tasks, problem.solve(tasks), np.ones(count))


def published_shares(base_levels: int, floor: float = 0.0):
    """The published mixture: half of the newest round; of the rest, the real data weighs as much as
    it has levels, and each older round as one.

    Args:
        base_levels: levels of the real data.
        floor: least share of the real data, in [0, 1].

    Returns:
        ``shares(kept) -> [2 + rounds]``: of real data, of each past round and of the new one; none
        of a round of which nothing was kept (``kept``, bools of each past one and the new one).

    Raises:
        ArgumentError: if ``floor`` isn't in [0, 1].

    Example:
        >>> published_shares(8)([True, False, True]).round(3).tolist()
        [0.444, 0.056, 0.0, 0.5]
        >>> published_shares(8)([False]).tolist()  # nothing new
        [1.0, 0.0]

    Source: Lee et al. 2025 (arXiv 2502.01612), appendix.
    """
    base_levels = _checks.positive_int("base_levels", base_levels)
    floor = _checks.between("floor", floor, 0, 1)

    def shares(kept: Sequence[bool]) -> np.ndarray:
        weights = np.array([base_levels, *kept[:-1]], np.float64)
        new = 0.5 * kept[-1]
        found = np.append((1 - new) * weights / weights.sum(), new)
        if found[0] < floor:
            found[1:] *= (1 - floor) / found[1:].sum()
            found[0] = floor
        return found

    return shares


def rows_of(
    data: Data, shares: np.ndarray, seed: jax.Array, *, rows: int, length: int, prompt_share: float
) -> lm.TokenBatch:
    """Packed rows to train on, drawn from a mixture.

    Args:
        data: what there is.
        shares: of texts, as ``published_shares`` gives them.
        seed: a random key.
        rows: how many.
        length: tokens that a model reads of a row.
        prompt_share: share of the texts whose prompts are learned too, which a proposer must have.

    Returns:
        A ``TokenBatch`` ``[rows, length + 1]``, in random order; shapes don't depend on the data.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(seed)).tolist())
    sources = [data.real, *data.past, data.new]
    mean = sum(
        share * float(np.average(source.lengths, weights=source.weights))
        for share, source in zip(shares, sources, strict=True)
        if share
    )
    texts, masks = [], []
    count = int(rows * (length + 1) / mean) + 1
    for number, source in zip(rng.multinomial(count, shares), sources, strict=True):
        if number:
            chance = source.weights.astype(np.float64)
            chosen = rng.choice(len(chance), number, p=chance / chance.sum())
            for row in chosen:
                size = int(source.lengths[row])
                texts.append(source.tokens[row, :size])
                is_learned = prompt_share > 0 and rng.random() < prompt_share
                learned = 0 if is_learned else source.prompt[row]
                masks.append(np.arange(size) >= learned)
    order = rng.permutation(len(texts))
    parts = []
    # In parts, since packing takes the square of their number.
    for start in range(0, len(order), 2048):
        own = order[start : start + 2048]
        parts.append(lm.pack([texts[i] for i in own], length, masks=[masks[i] for i in own]))
    packed = lm.TokenBatch(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    chosen = np.resize(rng.permutation(len(packed.tokens)), rows)
    return lm.TokenBatch(*(leaf[chosen] for leaf in packed))
