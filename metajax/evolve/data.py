"""D_t: real data and the model's own examples, and how a mixture of them is drawn and packed."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from metajax import _checks, lm
from metajax.errors import ArgumentError
from metajax.evolve.types import Answers, Examples, Problem, Rollouts, Tasks, TrainingData


def real_only(real: Examples) -> TrainingData:
    """Data without a round, such as a control trains on: the new examples have weight 0.

    Example:
        >>> rows = np.array([[4, 5], [6, 7]])
        >>> real = Examples(rows, np.array([1, 1]), np.array([2, 2]), np.ones(2))
        >>> real_only(real).new.weights
        array([0., 0.])
    """
    return TrainingData(real, (), real._replace(weights=np.zeros_like(real.weights)), None)


def as_examples(tasks: Tasks, answers: Answers, weights: np.ndarray) -> Examples:
    """Joins prompts and answers into texts.

    Args:
        tasks: ``n`` prompts.
        answers: one to each.
        weights: ``[n]``; tasks that aren't valid get 0.

    Example:
        >>> tasks = Tasks(np.array([[0, 5, 6], [5, 6, 7]]), np.array([2, 3]), None, np.ones(2) > 0)
        >>> answers = Answers(np.array([[8, 1], [9, 1]]), np.array([2, 2]))
        >>> as_examples(tasks, answers, np.ones(2)).tokens
        array([[5, 6, 8, 1, 0],
               [5, 6, 7, 9, 1]], dtype=int32)
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


def labelled_examples(rollouts: Rollouts) -> Examples:
    """The tasks of a round with their labels, weighted as the verdict says.

    Example:
        >>> from metajax.evolve import Completions, Verdict
        >>> tasks = Tasks(np.array([[5, 6]]), np.array([2]), None, np.array([True]))
        >>> tokens = np.array([[[7, 1], [8, 1]]])
        >>> completions = Completions(tokens, None, np.array([[2, 2]]), None)
        >>> verdict = Verdict(np.array([1]), np.array([0.5]), np.array([0.5]))
        >>> examples = labelled_examples(Rollouts(tasks, completions, verdict))
        >>> examples.tokens.tolist(), examples.weights.tolist()
        ([[5, 6, 8, 1]], [0.5])
    """
    tokens, _, lengths, _ = rollouts.completions
    choice = np.asarray(rollouts.verdict.choice)
    rows = np.arange(len(choice))
    answers = Answers(np.asarray(tokens)[rows, choice], np.asarray(lengths)[rows, choice])
    return as_examples(rollouts.tasks, answers, np.asarray(rollouts.verdict.weight))


def sampled_examples(rollouts: Rollouts, weights: np.ndarray) -> Examples:
    """All samples of a round as texts, a task's samples one after another.

    Args:
        rollouts: a round of ``n`` tasks.
        weights: of each sample, ``[n, samples]``; those of tasks that aren't valid get 0.

    Example:
        >>> from metajax.evolve import Completions
        >>> tasks = Tasks(np.array([[5, 6]]), np.array([2]), None, np.array([True]))
        >>> completions = Completions(np.array([[[7, 1], [8, 1]]]), None, np.array([[2, 2]]), None)
        >>> sampled_examples(Rollouts(tasks, completions, None), np.ones((1, 2))).tokens.tolist()
        [[5, 6, 7, 1], [5, 6, 8, 1]]
    """
    tokens, lengths = np.asarray(rollouts.completions.tokens), rollouts.completions.lengths
    repeat = lambda leaf: np.repeat(np.asarray(leaf), tokens.shape[1], axis=0)
    answers = Answers(tokens.reshape(-1, tokens.shape[-1]), np.asarray(lengths).reshape(-1))
    return as_examples(jax.tree.map(repeat, rollouts.tasks), answers, weights.reshape(-1))


def real_examples(problem: Problem, key: jax.Array, levels: Sequence[int], count: int) -> Examples:
    """Random prompts with right answers; each level is equally likely.

    Raises:
        ArgumentError: ``count`` isn't a positive integer, or there are no ``levels``.

    Example:
        >>> from metajax import evolve, lm
        >>> copy = evolve.text_problem(
        ...     lm.CharTokenizer.of("01=.", specials=("_",)), name="copy", end=1,
        ...     write=lambda rng, level: "".join(map(str, rng.integers(0, 2, level))) + "=",
        ...     answer=lambda prompt: prompt[:-1], read=lambda text: len(text) - 1,
        ...     longest=lambda level: (level + 1, level),
        ... )
        >>> [copy.show(row) for row in real_examples(copy, jax.random.key(0), [1, 2], 2).tokens]
        ['10=10.', '01=01.']
    """
    count = _checks.positive_int("count", count)
    if isinstance(levels, str) or not len(levels):
        raise ArgumentError(f"levels must be a list of at least one level, got {levels!r}.")
    level_key, task_key = jax.random.split(key)
    chosen = np.asarray(levels)[np.asarray(jax.random.randint(level_key, (count,), 0, len(levels)))]
    # The prompts' width is that of the hardest level, whether or not it was drawn.
    chosen[0] = max(levels)
    tasks = problem.draw(task_key, chosen)
    return as_examples(tasks, problem.answer(tasks), np.ones(count))


def published_mixture(
    base_levels: int, floor: float = 0.0
) -> Callable[[Sequence[bool]], np.ndarray]:
    """The published mixture: half from the newest round; of the other half, real data has as many
    shares as it has levels, and each earlier round has one.

    Args:
        base_levels: levels of the real data.
        floor: least share of the real data, in [0, 1].

    Returns:
        ``mixture(kept) -> [2 + past]``: the shares of real data, of each past round and of the new
        one. ``kept`` says of each past round, and of the new one, whether it has examples.

    Raises:
        ArgumentError: ``floor`` isn't in [0, 1].

    Example:
        >>> published_mixture(8)([True, False, True]).round(3).tolist()
        [0.444, 0.056, 0.0, 0.5]
        >>> published_mixture(8)([False]).tolist()  # nothing new
        [1.0, 0.0]

    Source: Lee et al. 2025 (arXiv 2502.01612), appendix.
    """
    base_levels = _checks.positive_int("base_levels", base_levels)
    floor = _checks.between("floor", floor, 0, 1)

    def mixture(kept: Sequence[bool]) -> np.ndarray:
        weights = np.array([base_levels, *kept[:-1]], np.float64)
        new = 0.5 * kept[-1]
        shares = np.append((1 - new) * weights / weights.sum(), new)
        if shares[0] < floor:
            shares[1:] *= (1 - floor) / shares[1:].sum()
            shares[0] = floor
        return shares

    return mixture


def pack_mixture(
    data: TrainingData,
    shares: np.ndarray,
    key: jax.Array,
    *,
    rows: int,
    length: int,
    prompt_share: float = 0.0,
    in_context: bool = False,
    begin: int | None = None,
) -> lm.TokenBatch:
    """Draws texts from a mixture and packs them into rows. Runs on the host.

    Args:
        data: what there is.
        shares: of the texts, as ``published_mixture`` gives them.
        key: a random key.
        rows: how many rows.
        length: tokens that a model reads of a row.
        prompt_share: share of the texts whose prompts are targets too, as a model that proposes
            tasks needs.
        in_context: whether a row's texts are one document, each read behind those before it, as
            worked examples stand before a question.
        begin: the token that texts begin with; with ``in_context``, a row has one.

    Returns:
        A ``TokenBatch`` ``[rows, length + 1]``, in random order; shapes don't depend on the data.

    Example:
        >>> text = np.array([[4, 5, 1]])
        >>> real = Examples(text, np.array([1]), np.array([3]), np.ones(1))
        >>> rows = pack_mixture(
        ...     real_only(real), np.array([1.0, 0.0]), jax.random.key(0), rows=1, length=5
        ... )
        >>> rows.tokens.tolist(), rows.mask.astype(int).tolist()
        ([[4, 5, 1, 4, 5, 1]], [[0, 1, 1, 0, 1, 1]])
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    sources = [data.real, *data.past, data.new]
    mean = sum(
        share * float(np.average(source.lengths, weights=source.weights))
        for share, source in zip(shares, sources, strict=True)
        if share
    )
    texts = []
    count = int(rows * (length + 1) / mean) + 1
    for number, source in zip(rng.multinomial(count, shares), sources, strict=True):
        if number:
            chance = source.weights.astype(np.float64)
            for row in rng.choice(len(chance), number, p=chance / chance.sum()):
                size = int(source.lengths[row])
                with_prompt = prompt_share > 0 and rng.random() < prompt_share
                mask = np.arange(size) >= (0 if with_prompt else source.prompt[row])
                texts.append((source.tokens[row, :size], mask))
    documents = [texts[i] for i in rng.permutation(len(texts))]
    if in_context:
        documents = list(_one_behind_another(documents, length + 1, begin))
    parts = []
    # In parts, since packing takes the square of their number.
    for start in range(0, len(documents), 2048):
        tokens, masks = zip(*documents[start : start + 2048], strict=True)
        parts.append(lm.pack(tokens, length, masks=masks))
    packed = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    chosen = np.resize(rng.permutation(len(packed.tokens)), rows)
    return jax.tree.map(lambda leaf: leaf[chosen], packed)


_Text = tuple[np.ndarray, np.ndarray]
"""Tokens, and which of them are targets."""


def _joined(texts: Iterable[_Text]) -> _Text:
    tokens, masks = zip(*texts, strict=True)
    return np.concatenate(tokens), np.concatenate(masks)


def _one_behind_another(texts: Iterable[_Text], room: int, begin: int | None) -> Iterator[_Text]:
    """Texts as documents of at most ``room`` tokens, with the begin token of the first alone."""
    document, size = [], 0
    for tokens, mask in texts:
        if document and size + len(tokens) > room:
            yield _joined(document)
            document, size = [], 0
        first = int(size > 0 and tokens[0] == begin)
        document.append((tokens[first:], mask[first:]))
        size += len(tokens) - first
    yield _joined(document)
