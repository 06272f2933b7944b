"""What a model writes by itself, and questions put in front of it afterwards.

A story that hasn't the words that were asked for is right for those that it has (Andrychowicz et
al. 2017, "Hindsight Experience Replay", arXiv 1707.01495). So the model learns what a question
means from its own stories, of which few are right at first.
"""

import collections
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.evolution.pretrained.families.stories import (
    COUNT,
    WORDS,
    ends_well,
    question,
    words_in,
    words_of,
)
from experiments.evolution.stories.config import Setup, prompts
from metajax import evolve as ev
from metajax.files import open_to_read, replacing


def write(setup: Setup, file: Path) -> list[list[int]]:
    """The base model's stories behind the begin token, at temperature 1, so that they are its own
    distribution; read from a file that an earlier call has left. Nobody learns from them."""
    begin = setup.problem.first_token
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
        key = jax.random.fold_in(jax.random.key(config.seed), 5)
        found = solve(setup.params, key, prompts([[begin]] * config.stories))
        with replacing(file) as path, path.open("wb") as opened:
            np.savez(opened, tokens=found.tokens[:, 0], lengths=found.lengths[:, 0])
    with open_to_read(file) as opened, np.load(opened) as loaded:
        rows = zip(loaded["tokens"], loaded["lengths"], strict=True)
        return [[begin, *row[:length].tolist()] for row, length in rows]


def answers(
    setup: Setup,
    rollouts: ev.Rollouts,
    never: np.ndarray,
    fluent: Callable[[list[list[int]]], np.ndarray],
) -> ev.Examples:
    """Stories as texts to learn from: the right ones behind their questions, and the others that
    end well behind the question that they are an answer to.

    A right story counts once. Another one counts (k / 3)², where k of the words that were asked for
    are in it; the others are other nouns of its, rare ones as often as common ones.

    Args:
        setup: the tasks.
        rollouts: a round.
        never: fingerprints of questions that are never learned from.
        fluent: which of some stories are likely enough.
    """
    tasks, completions, verdict = rollouts
    decode, begin = setup.tokenizer.decode, int(setup.problem.begin is not None)
    tokens, lengths, ended = (
        np.asarray(getattr(completions, name)) for name in ("tokens", "lengths", "ended")
    )
    right = np.asarray(verdict.rewards) > 0
    found: list[tuple[list[int], list[int], list[str], frozenset[str]]] = []
    often: collections.Counter[str] = collections.Counter()
    rows = []
    for place in np.flatnonzero(np.asarray(tasks.valid)).tolist():
        prompt = np.asarray(tasks.prompts[place])[-int(tasks.lengths[place]) :].tolist()
        asked = words_of(decode(prompt[begin:]))
        for sample in range(lengths.shape[1]):
            story = tokens[place, sample, : lengths[place, sample]].tolist()
            if right[place, sample]:
                rows.append((prompt + story, len(prompt), 1.0))
            elif ended[place, sample] and ends_well(decode(story[:-1])):
                nouns = WORDS & words_in(decode(story))
                often.update(nouns)
                found.append((prompt[:begin], story, asked, nouns))
    rng = np.random.default_rng(len(found))
    likely = fluent([story for _, story, _, _ in found]) if found else ()
    for (first, story, asked, nouns), good in zip(found, likely, strict=True):
        kept = [word for word in asked if word in nouns]
        others = sorted(nouns.difference(asked))
        more = COUNT - len(kept)
        if not good or not kept or len(others) < more:
            continue
        if more:
            chance = np.array([1 / often[word] for word in others])
            kept += map(str, rng.choice(others, more, replace=False, p=chance / chance.sum()))
        prompt = first + ev.encode_part(setup.tokenizer, question(kept))
        if not np.isin(ev.fingerprints(prompts([prompt])), never)[0]:
            rows.append((prompt + story, len(prompt), ((COUNT - more) / COUNT) ** 2))
    return examples(setup, rows)


def examples(setup: Setup, rows: Sequence[tuple[list[int], int, float]]) -> ev.Examples:
    """The beginnings of texts, with the lengths of their questions and their weights."""
    most = setup.config.learned
    tokens = np.zeros((max(len(rows), 1), most), np.int32)
    for place, (row, _, _) in enumerate(rows):
        tokens[place, : min(len(row), most)] = row[:most]
    rows = rows or [([0], 1, 0.0)]
    return ev.Examples(
        tokens,
        np.array([prompt for _, prompt, _ in rows], np.int32),
        np.array([min(len(row), most) for row, _, _ in rows], np.int32),
        np.array([weight for _, _, weight in rows], np.float32),
    )
