"""What a model writes by itself, and words put in front of it afterwards.

A story that was written for no words is right for those that it has (Andrychowicz et al. 2017,
"Hindsight Experience Replay", arXiv 1707.01495). So the model learns what a question means from
its own stories, and a program finds the words.
"""

import collections
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.evolution.pretrained.families.stories import (
    COUNT,
    WORDS,
    ends_well,
    question,
    words_in,
)
from experiments.evolution.stories.config import Setup, prompts
from metajax import evolve as ev
from metajax.evolve.text import encode_part
from metajax.files import replacing

KEPT_BACK = 24
"""One in so many of the stories is never learned from."""


class OwnStories(NamedTuple):
    """Stories that a model wrote.

    Attributes:
        tokens: ``[n, width]``, the end token among them; 0 behind it.
        lengths: tokens of each, ``[n]``.
        ended: whether there is an end token, ``[n]``.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray


def write(setup: Setup, file: Path) -> OwnStories:
    """The base model's stories, at temperature 1, so that they are its own distribution; read from
    a file that an earlier call has left."""
    if not file.exists():
        config = setup.config
        solve = ev.model_solver(
            setup.model,
            answer_length=lambda level: config.longest,
            end=setup.problem.end,
            temperature=1.0,
            slack=0,
            chunk=4 * config.chunk,
        )
        begin = setup.problem.end if setup.problem.begin is None else setup.problem.begin
        key = jax.random.fold_in(jax.random.key(config.seed), 5)
        found = solve(setup.params, key, prompts([[begin]] * config.stories))
        with replacing(file) as path, path.open("wb") as opened:
            np.savez(
                opened,
                tokens=found.tokens[:, 0],
                lengths=found.lengths[:, 0],
                ended=found.ended[:, 0],
            )
    with np.load(file) as loaded:
        return OwnStories(*(loaded[name] for name in OwnStories._fields))


def split(stories: OwnStories) -> tuple[OwnStories, OwnStories]:
    """Those to learn from, and those that are kept back."""
    back = np.arange(len(stories.lengths)) % KEPT_BACK == 0
    return OwnStories(*(leaf[~back] for leaf in stories)), OwnStories(
        *(leaf[back] for leaf in stories)
    )


def texts(setup: Setup, stories: OwnStories) -> list[list[int]]:
    """Each behind the begin token."""
    begin = [] if setup.problem.begin is None else [setup.problem.begin]
    return [
        begin + row[:length].tolist()
        for row, length in zip(stories.tokens, stories.lengths, strict=True)
    ]


class Relabelled:
    """The stories, and those that end well behind words that their beginnings have."""

    def __init__(self, setup: Setup, stories: OwnStories, never: np.ndarray) -> None:
        self._setup, self._never = setup, never
        self._rows = texts(setup, stories)
        decode, begin = setup.tokenizer.decode, int(setup.problem.begin is not None)
        room = setup.config.learned - setup.problem.prompt_length(1)
        found = [words_in(decode(row[begin : begin + room])) for row in self._rows]
        well = [
            ended and ends_well(decode(row[begin:-1]))
            for row, ended in zip(self._rows, stories.ended, strict=True)
        ]
        self._words = [
            sorted(WORDS & words) if good else [] for words, good in zip(found, well, strict=True)
        ]
        self.count = sum(len(words) >= COUNT for words in self._words)
        self._often = collections.Counter(word for words in found for word in words)

    def __call__(self, key: jax.Array) -> ev.Examples:
        """The texts, with other words for each key. Rare words are as likely as common ones."""
        setup, config = self._setup, self._setup.config
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        begin = int(setup.problem.begin is not None)
        rows, prompt, weights = [], [], []
        for row, words in zip(self._rows, self._words, strict=True):
            rows.append(row)
            prompt.append(begin)
            weights.append((1 - config.asked) / len(self._rows))
            if len(words) < COUNT:
                continue
            chance = np.array([1 / self._often[word] for word in words])
            chosen = rng.choice(words, COUNT, replace=False, p=chance / chance.sum())
            header = encode_part(setup.tokenizer, question(list(map(str, chosen))))
            asked = row[:begin] + header
            if not np.isin(ev.fingerprints(prompts([asked])), self._never)[0]:
                rows.append(asked + row[begin:])
                prompt.append(len(asked))
                weights.append(config.asked / self.count)
        tokens = np.zeros((len(rows), config.learned), np.int32)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = row[: config.learned]
        lengths = np.minimum([len(row) for row in rows], config.learned)
        return ev.Examples(
            tokens,
            np.array(prompt, np.int32),
            lengths.astype(np.int32),
            np.array(weights, np.float32),
        )
