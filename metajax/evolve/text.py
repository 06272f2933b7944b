"""Text tasks for any tokenizer: functions on strings become a ``Problem`` on tokens."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.evolve.types import Answers, Problem, Tasks
from metajax.lm.tokenizers import HFTokenizer, Tokenizer

_ALLOWED_FROM = 1000
"""How many prompts ``allowed`` looks at."""


def text_problem(
    tokenizer: Tokenizer,
    *,
    name: str,
    write: Callable[[np.random.Generator, int], str],
    answer: Callable[[str], str],
    read: Callable[[str], int | None],
    longest: Callable[[int], tuple[int, int]],
    begin: int | None = None,
    end: int | None = None,
    vocab_size: int | None = None,
) -> Problem:
    """A family of text tasks, given by functions on strings.

    A text is a prompt, its answer and the end token. The answer is tokenized behind its prompt; if
    the tokenizer merges the two, it is tokenized alone. An answer is right if its tokens are: other
    tokens that spell the same text count as wrong.

    Args:
        tokenizer: such as ``lm.CharTokenizer`` or ``lm.HFTokenizer``.
        name: for reports.
        write: ``write(rng, level)``: a random prompt of a level, drawn from a NumPy generator.
        answer: ``answer(prompt)``: the right answer. The oracle of the problem.
        read: ``read(text)``: the level of a prompt, from 1 on; None for a text that isn't one.
        longest: ``longest(level) -> (prompt, answer)``: the most tokens that each has, without
            begin and end token. The number of bytes will do for nearly every tokenizer.
        begin: the token that every prompt begins with; the tokenizer's ``bos_id`` if None.
        end: the token that every answer ends with; the tokenizer's ``eos_id`` if None.
        vocab_size: the model's number of tokens, where it has more than the tokenizer.

    Returns:
        A ``Problem``. ``draw`` pads prompts to the longest of the levels asked for. What isn't a
        task is answered with the end token alone. ``allowed`` has at each place the tokens of 1,000
        random prompts, and all tokens where these have ended. ``show`` leaves out leading zeros,
        which are padding. For ``model_proposer`` all prompts of a level must have as many tokens as
        ``longest`` says.

    Raises:
        ArgumentError: a token isn't in the vocabulary, or there is no end token; from ``draw`` and
            ``answer``, functions that contradict each other, such as a prompt that ``read`` takes
            for another level, or a text with more tokens than ``longest`` says.

    Example:
        >>> import re
        >>> from metajax import lm
        >>> tokenizer = lm.CharTokenizer.of("0123456789*=", specials=("<pad>", "<", ">"))
        >>> problem = text_problem(
        ...     tokenizer,
        ...     name="doubling",
        ...     write=lambda rng, level: f"2*{rng.integers(10 ** (level - 1), 10**level)}=",
        ...     answer=lambda prompt: str(2 * int(prompt[2:-1])),
        ...     read=lambda text: len(text) - 3 if re.fullmatch(r"2\\*[1-9]\\d*=", text) else None,
        ...     longest=lambda level: (level + 3, level + 1),
        ...     begin=tokenizer.special("<"),
        ...     end=tokenizer.special(">"),
        ... )
        >>> tasks = problem.draw(jax.random.key(0), [2, 3])
        >>> tasks.prompts.shape, tasks.lengths.tolist()
        ((2, 7), [6, 7])
        >>> [problem.show(row) for row in tasks.prompts]
        ['<2*86=', '<2*673=']
        >>> [problem.show(row) for row in problem.answer(tasks).tokens]
        ['172>', '1346>']
    """
    begin = getattr(tokenizer, "bos_id", None) if begin is None else begin
    end = getattr(tokenizer, "eos_id", None) if end is None else end
    count = tokenizer.vocab_size if vocab_size is None else vocab_size
    if _checks.positive_int("vocab_size", count) < tokenizer.vocab_size:
        raise ArgumentError(
            f"vocab_size must be at least the tokenizer's {tokenizer.vocab_size}, got {vocab_size}."
        )
    if end is None:
        raise ArgumentError("end must be given: the tokenizer names no token that ends a text.")
    for which, token in (("begin", begin), ("end", end)):
        if token is not None and not 0 <= token < count:
            raise ArgumentError(f"{which} must be a token from 0 to {count - 1}, got {token}.")
    texts = _Texts(tokenizer, write, answer, read, longest, begin, end, count)
    return Problem(
        name=name,
        vocab_size=count,
        begin=begin,
        end=end,
        prompt_length=texts.prompt_length,
        answer_length=texts.answer_length,
        draw=texts.draw,
        answer=texts.answers,
        read=texts.read,
        allowed=functools.cache(texts.allowed),
        show=texts.show,
    )


@dataclasses.dataclass(frozen=True)
class _Texts:
    tokenizer: Tokenizer
    write: Callable[[np.random.Generator, int], str]
    answer: Callable[[str], str]
    level_of: Callable[[str], int | None]
    longest: Callable[[int], tuple[int, int]]
    begin: int | None
    end: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        return encode_part(self.tokenizer, text)

    def prompt_length(self, level: int) -> int:
        return self.longest(level)[0] + (self.begin is not None)

    def answer_length(self, level: int) -> int:
        return self.longest(level)[1] + 1

    def draw(self, key: jax.Array, levels: Any) -> Tasks:
        levels = _checks.levels("levels", levels)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        rows = [self._drawn(rng, level) for level in levels.tolist()]
        width = max(map(self.prompt_length, np.unique(levels).tolist()))
        prompts = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
        lengths = np.array([len(row) for row in rows], np.int32)
        return Tasks(prompts, lengths, levels.astype(np.int32), np.ones(len(rows), bool))

    def _drawn(self, rng: np.random.Generator, level: int) -> list[int]:
        text = self.write(rng, level)
        found = self.level_of(text)
        if found != level:
            raise ArgumentError(
                f"write must give a prompt of the level, got {text!r} for level {level}, of which "
                f"read says {found!r}."
            )
        tokens = self.encode(text)
        kept = self.tokenizer.decode(tokens)
        if kept != text or not tokens:
            raise ArgumentError(
                f"write must give prompts that the tokenizer keeps, got {text!r}, which it reads "
                f"back as {kept!r}."
            )
        self._must_fit("a prompt", text, len(tokens), level, self.longest(level)[0])
        return tokens if self.begin is None else [self.begin, *tokens]

    def answers(self, tasks: Tasks) -> Answers:
        prompts, lengths = np.asarray(tasks.prompts), np.asarray(tasks.lengths)
        read = [self._task(row, length) for row, length in zip(prompts, lengths, strict=True)]
        rows = [[self.end] if task is None else self._answered(*task) for task in read]
        # As wide for all tasks of the same levels, so that little is compiled again.
        levels = {*np.unique(tasks.levels).tolist(), *(task[1] for task in read if task)}
        width = max(map(self.answer_length, levels))
        tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
        return Answers(tokens, np.array([len(row) for row in rows], np.int32))

    def _answered(self, prompt: str, level: int) -> list[int]:
        text = self.answer(prompt)
        before, both = self.encode(prompt), self.encode(prompt + text)
        apart = both[: len(before)] == before
        tokens = both[len(before) :] if apart else self.encode(text)
        if self.end in tokens:
            raise ArgumentError(f"answer must not have the end token in it, got {text!r}.")
        self._must_fit("an answer", text, len(tokens), level, self.longest(level)[1])
        return [*tokens, self.end]

    def _must_fit(self, what: str, text: str, count: int, level: int, most: int) -> None:
        if count > most:
            raise ArgumentError(
                f"longest({level}) says that {what} has at most {most} tokens, but {text!r} has "
                f"{count}."
            )

    def read(self, prompts: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        prompts, lengths = np.asarray(prompts), np.asarray(lengths)
        found = [self._task(row, length) for row, length in zip(prompts, lengths, strict=True)]
        valid = np.array([task is not None for task in found], bool)
        return valid, np.array([task[1] if task else 0 for task in found], np.int32)

    def _task(self, row: np.ndarray, length: int) -> tuple[str, int] | None:
        """Text and level of a prompt, or None if the tokens aren't one."""
        first = int(self.begin is not None)
        if not first < length <= len(row):
            return None
        prompt = row[len(row) - length :].tolist()
        tokens = prompt[first:]
        if prompt[:first] != [self.begin][:first] or self._known(tokens) != tokens:
            return None
        text = self.tokenizer.decode(tokens)
        level = self.level_of(text)
        # A text is a task in the tokenizer's own spelling alone, so that it counts once.
        if level is None or self.encode(text) != tokens:
            return None
        if level < 1:
            raise ArgumentError(
                f"read must give a level of at least 1, or None, got {level} for {text!r}."
            )
        return text, level

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that the tokenizer has; a model may have more."""
        return [token for token in tokens if 0 <= token < self.tokenizer.vocab_size]

    def allowed(self, level: int) -> np.ndarray:
        tasks = self.draw(jax.random.key(0), np.full(_ALLOWED_FROM, level))
        width = tasks.prompts.shape[1]
        mask = np.zeros((width, self.vocab_size), bool)
        rows, places = np.nonzero(np.arange(width) < np.asarray(tasks.lengths)[:, None])
        # From a prompt's beginning on, whatever its length.
        columns = places + width - np.asarray(tasks.lengths)[rows]
        mask[places, np.asarray(tasks.prompts)[rows, columns]] = True
        mask[~mask.any(axis=1)] = True
        return mask[1:]

    def show(self, tokens: Any) -> str:
        row = np.asarray(tokens)
        start = int(np.append(np.flatnonzero(row), len(row))[0])
        if self.begin == 0 and start > 0:
            start -= 1
        text = row[start:].tolist()
        first = int(text[:1] == [self.begin])  # which may be the end token too
        if self.end in text[first:]:
            text = text[: text.index(self.end, first) + 1]
        return self.tokenizer.decode(self._known(text))


def encode_part(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a part of a text, without begin and end token.

    Example:
        >>> from metajax import lm
        >>> encode_part(lm.CharTokenizer.of("abc"), "cab")
        [2, 0, 1]
    """
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)
