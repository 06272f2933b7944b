"""Who proposes the next tasks: a program, as published, or the model itself."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve._generate import generate_in_chunks
from metajax.evolve.text import encode_part
from metajax.evolve.types import Levels, Problem, Proposer, Tasks
from metajax.lm import SamplingParams
from metajax.lm.tokenizers import Tokenizer
from metajax.models import Transformer
from metajax.types import Params


def program_proposer(problem: Problem, *, count: int) -> Proposer:
    """The published proposer: a program draws random prompts, and the model only answers them.

    Args:
        problem: draws the prompts.
        count: tasks a round.

    Raises:
        ArgumentError: ``count`` isn't a positive integer; from the proposer, levels out of order.

    Example:
        >>> from types import SimpleNamespace
        >>> problem = SimpleNamespace(draw=lambda key, levels: levels)  # shows what is asked for
        >>> program_proposer(problem, count=4)(None, jax.random.key(0), Levels(3, 4)).tolist()
        [4, 3, 4, 3]

    Source: Lee et al. 2025 (arXiv 2502.01612).
    """
    _checks.positive_int("count", count)

    def propose(params: Params, key: jax.Array, levels: Levels, /) -> Tasks:
        del params
        return problem.draw(key, _spread(levels, count))

    return propose


def model_proposer(
    model: Transformer,
    problem: Problem,
    *,
    count: int,
    temperature: float = 1.0,
    chunk: int = 512,
    mesh: Mesh | None = None,
) -> Proposer:
    """The model proposes: it writes prompts, and a mask of allowed tokens sets their level.

    ``problem.read`` reads what it writes. A text that is no task, and a duplicate within the round,
    are marked as not valid. The model must be trained on prompts too: see ``prompt_share`` of
    ``fine_tune``.

    Args:
        model: the language model.
        problem: says what a prompt is.
        count: texts a round.
        temperature: of sampling.
        chunk: texts that are written together.
        mesh: devices that share them.

    Raises:
        ArgumentError: a number isn't positive, or the problem has no begin token.

    Example:
        >>> import jax.numpy as jnp
        >>> from metajax import evolve, lm
        >>> from metajax.models import TransformerConfig
        >>> copy = evolve.text_problem(
        ...     lm.CharTokenizer.of("01=.<", specials=("_",)), name="copy", begin=4, end=1,
        ...     write=lambda rng, level: "".join(map(str, rng.integers(0, 2, level))) + "=",
        ...     answer=lambda prompt: prompt[:-1], read=lambda text: len(text) - 1,
        ...     longest=lambda level: (level + 1, level),
        ... )
        >>> config = TransformerConfig.nope(vocab_size=6, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> propose = model_proposer(model, copy, count=2)
        >>> tasks = propose(params, jax.random.key(1), Levels(1, 2))
        >>> tasks.levels.tolist(), copy.show(tasks.prompts[0])[::3]
        ([2, 1], '<=')
    """
    _checks.positive_int("count", count)
    _checks.positive_int("chunk", chunk)
    _checks.positive_float("temperature", temperature)
    begin = problem.begin
    if begin is None:
        raise ArgumentError(
            f"problem {problem.name!r} must have a begin token, behind which a model writes; it "
            "has none."
        )

    def propose(params: Params, key: jax.Array, levels: Levels, /) -> Tasks:
        steps = max(problem.prompt_length(levels.last) - 1, 1)
        masks = {
            level: _allowed(problem, level, steps) for level in range(levels.first, levels.last + 1)
        }
        wanted = _spread(levels, count)
        tokens, *_ = generate_in_chunks(
            model,
            params,
            [[begin]] * count,
            key,
            chunk=chunk,
            mesh=mesh,
            masks=[masks[level] for level in wanted.tolist()],
            max_new_tokens=steps,
            sampling=SamplingParams(temperature, stop_tokens=()),  # the level says where it ends
        )
        lengths = np.array([problem.prompt_length(level) for level in wanted])
        texts = np.pad(tokens[:, 0], ((0, 0), (1, 0)), constant_values=begin)
        prompts = _padded_left(texts, lengths)
        valid, levels_read = (np.asarray(part) for part in problem.read(prompts, lengths))
        return without_duplicates(
            Tasks(prompts, lengths, np.where(valid, levels_read, wanted), valid)
        )

    return propose


def few_shot_proposer(
    model: Transformer,
    problem: Problem,
    tokenizer: Tokenizer,
    *,
    examples: Callable[[np.random.Generator, Levels], Sequence[int]],
    read: Callable[[str], int | None],
    count: int,
    attempts: int = 1,
    otherwise: Params | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    chunk: int = 128,
    mesh: Mesh | None = None,
) -> Proposer:
    """The model proposes: it reads worked examples and writes a further one, of which the prompt
    counts.

    A pretrained model can do this without training. If it learns from its own texts, with a
    ``prompt_share`` of ``fine_tune``, it learns to propose too. The prompt is the shortest
    beginning of what it writes that ``read`` takes. What holds no prompt, a prompt of a level that
    wasn't asked for, and a duplicate within the round are marked as not valid.

    Args:
        model: the language model.
        problem: of ``text_problem``; its begin and end tokens are used.
        tokenizer: the problem's.
        examples: ``examples(rng, levels)``: the tokens of the worked examples, each with its end
            token, the begin token first. They are drawn for each chunk, and computed once in it.
        read: the problem's ``read``, of a text.
        count: tasks a round.
        attempts: how often so many texts are written, until ``count`` of them are valid.
        otherwise: parameters that write from the second attempt on, such as those from before the
            loop, which still pose what a model that learned to answer doesn't; the current ones if
            None.
        max_new_tokens: that a text has, at most; those of the longest prompt if None.
        temperature: of sampling.
        chunk: texts that are written together.
        mesh: devices that share them.

    Raises:
        ArgumentError: a number isn't positive.

    Example:
        >>> import re
        >>> import jax.numpy as jnp
        >>> from metajax import evolve, lm
        >>> from metajax.models import TransformerConfig
        >>> tokenizer = lm.CharTokenizer.of("01=.", specials=("_",))
        >>> read = lambda text: len(text) - 1 if re.fullmatch("[01]+=", text) else None
        >>> copy = evolve.text_problem(
        ...     tokenizer, name="copy", end=tokenizer.encode(".")[0], read=read,
        ...     write=lambda rng, level: "".join(map(str, rng.integers(0, 2, level))) + "=",
        ...     answer=lambda prompt: prompt[:-1], longest=lambda level: (level + 1, level),
        ... )
        >>> config = TransformerConfig.nope(vocab_size=5, width=8, n_layers=1, n_heads=2)
        >>> model = Transformer(config)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
        >>> propose = few_shot_proposer(
        ...     model, copy, tokenizer, read=read, count=4,
        ...     examples=lambda rng, levels: tokenizer.encode("10=10."),
        ... )
        >>> propose(params, jax.random.key(1), Levels(1, 2)).prompts.shape
        (4, 3)

    Source: Brown et al. 2020 (arXiv 2005.14165) for the worked examples; Wang et al. 2023,
    "Self-Instruct" (arXiv 2212.10560).
    """
    for name, value in (("count", count), ("attempts", attempts), ("chunk", chunk)):
        _checks.positive_int(name, value)
    _checks.positive_float("temperature", temperature)
    begin = [] if problem.begin is None else [problem.begin]

    def prompt_in(tokens: list[int]) -> list[int] | None:
        text = tokenizer.decode(tokens)
        cuts = range(1, len(text) + 1)
        found = next((cut for cut in cuts if read(text[:cut]) is not None), None)
        return None if found is None else begin + encode_part(tokenizer, text[:found])

    def written(params: Params, key: jax.Array, levels: Levels) -> Tasks:
        examples_key, write_key = jax.random.split(key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(examples_key)).tolist())
        shown = [list(examples(rng, levels)) for _ in range(0, count, chunk)]
        width = problem.prompt_length(levels.last)
        tokens, _, counts = generate_in_chunks(
            model,
            params,
            [shown[row // chunk] for row in range(count)],
            write_key,
            chunk=chunk,
            mesh=mesh,
            max_new_tokens=max_new_tokens or width,
            sampling=SamplingParams(temperature, stop_tokens=(problem.end,)),
        )
        texts = zip(tokens[:, 0], counts[:, 0], strict=True)
        found = [prompt_in(row[:length].tolist()) for row, length in texts]
        fits = np.array([row is not None and 0 < len(row) <= width for row in found])
        rows = [row if fit else [problem.end] for row, fit in zip(found, fits, strict=True)]
        lengths = np.array([len(row) for row in rows])
        prompts = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
        valid, read_levels = (np.asarray(part) for part in problem.read(prompts, lengths))
        valid = fits & valid & (read_levels >= levels.first) & (read_levels <= levels.last)
        return Tasks(prompts, lengths, np.where(valid, read_levels, levels.last), valid)

    def propose(params: Params, key: jax.Array, levels: Levels, /) -> Tasks:
        found: list[Tasks] = []
        for attempt in range(attempts):
            writes = params if otherwise is None or attempt == 0 else otherwise
            found.append(written(writes, jax.random.fold_in(key, attempt), levels))
            tasks = without_duplicates(jax.tree.map(lambda *x: np.concatenate(x), *found))
            if tasks.valid.sum() >= count:
                break
        best = np.argsort(~tasks.valid, kind="stable")[:count]
        return jax.tree.map(lambda leaf: leaf[best], tasks)

    return propose


def fingerprints(tasks: Tasks) -> np.ndarray:
    """A 64-bit hash of each prompt ``[n]`` (FNV-1a), whatever its padding.

    Example:
        >>> tasks = Tasks(np.array([[0, 5, 7], [5, 5, 7]]), np.array([2, 2]), None, None)
        >>> len(set(fingerprints(tasks)))
        1
    """
    prompts, lengths = np.asarray(tasks.prompts), np.asarray(tasks.lengths)
    width = prompts.shape[1]
    place = np.arange(width) - (width - lengths[:, None])
    prime, found = np.uint64(0x100000001B3), np.full(len(prompts), 0xCBF29CE484222325, np.uint64)
    with np.errstate(over="ignore"):
        for column in range(width):
            token = (prompts[:, column] + 1).astype(np.uint64)
            found = np.where(place[:, column] >= 0, (found ^ token) * prime, found)
    return found


def without_duplicates(tasks: Tasks, known: np.ndarray | None = None) -> Tasks:
    """Marks as not valid all but the first of equal prompts, and prompts that are known.

    Args:
        tasks: what was proposed.
        known: ``fingerprints`` of prompts that may not be learned from, such as held-out ones.

    Example:
        >>> prompts = np.array([[4, 5], [4, 6], [4, 5]])
        >>> tasks = Tasks(prompts, np.full(3, 2), np.ones(3), np.ones(3, bool))
        >>> without_duplicates(tasks).valid.tolist()
        [True, True, False]
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


def _spread(levels: Levels, count: int) -> np.ndarray:
    """Levels ``[count]`` from the hardest to the easiest, again and again: as many of each.

    Example:
        >>> _spread(Levels(2, 4), 5).tolist()
        [4, 3, 2, 4, 3]
    """
    if not 1 <= levels.first <= levels.last:
        raise ArgumentError(
            f"levels must be from 1 on, the first not above the last, got {levels}."
        )
    cycle = np.arange(levels.last, levels.first - 1, -1)
    return cycle[np.arange(count) % len(cycle)]


def _allowed(problem: Problem, level: int, steps: int) -> np.ndarray:
    """The level's mask, and any token where its prompt has ended."""
    mask = problem.allowed(level)
    return np.concatenate([mask, np.ones((steps - len(mask), mask.shape[1]), bool)])


def _padded_left(texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows padded on the left, from rows ``[n, width]`` of which the first ``lengths`` count."""
    width = texts.shape[1]
    source = np.arange(width) - (width - lengths[:, None])
    moved = np.take_along_axis(texts, np.maximum(source, 0), axis=1)
    return np.where(source >= 0, moved, 0).astype(np.int32)
