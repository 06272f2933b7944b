"""Data sets that don't fit on the device: parts of them, read while the last one is trained on."""

import concurrent.futures
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from metajax import _checks
from metajax._checks import positive_int
from metajax.data.episodes import ClassData
from metajax.errors import ArgumentError


def stream(
    read: Callable[[np.ndarray], Any],
    labels: Any,
    *,
    classes: int,
    per_class: int,
    seed: int = 0,
    start: int = 0,
    ahead: int = 2,
) -> Iterator[ClassData]:
    """Parts of a data set without end: random classes, and random examples of each.

    A part is as large as the others. So a compiled trainer takes each by ``sample=``, and draws
    many episodes from it on the device while the next parts are read in a thread.

    Args:
        read: ``read(rows) -> [len(rows), ...]``, the examples of some rows, such as those of a data
            source of tensorflow-datasets or grain; called from a thread, a part at a time.
        labels: ``[examples]``, the class of every row.
        classes: how many a part has.
        per_class: examples of each; classes with fewer are left out.
        seed: part ``n`` is the same for the same seed.
        start: the first part's number, for a run that goes on.
        ahead: how many parts are read before they are asked for.

    Returns:
        An iterator over ``ClassData`` in the host's memory, in order of their numbers.

    Raises:
        ArgumentError: if a number isn't positive, or fewer than ``classes`` classes have
            ``per_class`` examples; when read, if ``read`` returns another number of examples. An
            error in ``read`` is raised where its part is asked for.

    Example:
        >>> import jax, optax, metajax
        >>> rows = np.random.default_rng(0).normal(size=(60, 2))  # stands for files
        >>> parts = stream(rows.__getitem__, np.arange(60) % 6, classes=3, per_class=4)
        >>> sampler = lambda part: metajax.data.episode_sampler(part, n_way=2, k_shot=1, query=2)
        >>> learner = metajax.prototypical(lambda w, x: x * w, n_way=2)
        >>> first = next(parts)
        >>> trainer = metajax.meta_trainer(learner, optax.sgd(0.1), sampler(first), meta_batch=2)
        >>> state = trainer.init(np.ones(2), jax.random.key(0))
        >>> for part in [first, next(parts)]:
        ...     state, metrics = trainer.run(state, 5, sample=sampler(part))
        >>> int(state.step), part.examples.shape
        (10, (12, 2))
    """
    for name, value in (("classes", classes), ("per_class", per_class), ("ahead", ahead)):
        positive_int(name, value)
    _checks.non_negative_int("start", start)
    found, inverse = np.unique(np.asarray(labels), return_inverse=True)
    rows = [np.flatnonzero(inverse == number) for number in range(len(found))]
    large = np.array([n for n, each in enumerate(rows) if len(each) >= per_class], int)
    if len(large) < classes:
        raise ArgumentError(
            f"classes is {classes}, but only {len(large)} of {len(found)} have the {per_class} "
            "examples of per_class."
        )

    def part(number: int) -> ClassData:
        rng = np.random.default_rng([seed, number])
        chosen = rng.choice(large, classes, replace=False)
        wanted = np.concatenate([rng.choice(rows[c], per_class, replace=False) for c in chosen])
        examples = np.asarray(read(wanted))
        if examples.shape[:1] != (classes * per_class,):
            raise ArgumentError(
                f"read must return {classes * per_class} examples for as many rows, got shape "
                f"{examples.shape}."
            )
        names = tuple(str(found[c]) for c in chosen)
        return ClassData(examples, np.full(classes, per_class, np.int32), names)

    return _read_ahead(part, start, ahead)


def _read_ahead(part: Callable[[int], ClassData], start: int, ahead: int) -> Iterator[ClassData]:
    thread = concurrent.futures.ThreadPoolExecutor(1)
    waiting: deque[concurrent.futures.Future[ClassData]] = deque()
    try:
        for number in itertools.count(start):
            waiting.append(thread.submit(part, number))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
