"""D_t: texts, mixtures and rows."""

import jax
import numpy as np
import pytest
from toys import COPY, solved

from metajax import evolve as ev


def round_of(level, count=30, weight=1.0, seed=0):
    tasks = COPY.draw(jax.random.key(seed), [level] * count)
    zeros = np.zeros(count, int)
    verdict = ev.Verdict(zeros, np.full(count, weight), np.ones(count))
    return ev.Rollouts(tasks, solved(COPY, tasks), verdict)


def test_a_rounds_examples_are_its_texts_with_the_verdicts_weights():
    made = round_of(4)
    made = made._replace(
        tasks=made.tasks._replace(valid=np.arange(30) != 3),
        verdict=made.verdict._replace(weight=np.linspace(0, 1, 30)),
    )
    examples = ev.labelled_examples(made)
    for row in range(30):
        text = COPY.show(examples.tokens[row])
        assert text[1:5] == text[6:10]
        assert text == f"<{text[1:5]}={text[1:5]}>"
    assert (examples.prompt == 6).all()
    assert (examples.lengths == 11).all()
    np.testing.assert_allclose(examples.weights, np.linspace(0, 1, 30) * (np.arange(30) != 3))


def test_the_published_shares_in_closed_form():
    shares = ev.published_mixture(10)
    np.testing.assert_allclose(shares([True]), [0.5, 0.5])
    np.testing.assert_allclose(shares([True, True, True]), [0.5 * 10 / 12, 0.5 / 12, 0.5 / 12, 0.5])
    np.testing.assert_allclose(shares([True, False]), [10 / 11, 1 / 11, 0])
    assert shares([False, False]).tolist() == [1, 0, 0]
    floored = ev.published_mixture(1, floor=0.4)([True] * 8)
    np.testing.assert_allclose(floored.sum(), 1)
    np.testing.assert_allclose(floored[0], 0.4)
    np.testing.assert_allclose(floored[-1] / floored[1], 0.5 / (0.5 / 8))
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\], got 2"):
        ev.published_mixture(1, floor=2)


def texts_of(rows):
    """The texts of packed rows, and their targets, as strings."""
    for tokens, segments, mask in zip(*rows[:3], strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            yield COPY.show(tokens[here]), "".join("x" if m else "." for m in mask[here])


def test_rows_hold_whole_texts_in_the_shares_asked_for():
    real = ev.real_examples(COPY, jax.random.key(5), [1, 2], 200)
    past, new = (
        ev.labelled_examples(round_of(5, weight=0.5)),
        ev.labelled_examples(round_of(6, seed=1)),
    )
    skipped = ev.labelled_examples(round_of(4, weight=0.0))
    data = ev.TrainingData(real, (past, skipped), new, None)
    rows = ev.pack_mixture(
        data, np.array([0.3, 0.2, 0.0, 0.5]), jax.random.key(0), rows=400, length=40,
        prompt_share=0.0,
    )  # fmt: skip
    assert rows.tokens.shape == rows.segment_ids.shape == rows.mask.shape == (400, 41)
    counts = dict.fromkeys(range(1, 7), 0)
    for text, mask in texts_of(rows):
        level = len(text) // 2 - 1
        counts[level] += 1
        assert text == f"<{text[1 : level + 1]}={text[1 : level + 1]}>"
        assert mask == "." * (level + 2) + "x" * (level + 1)
    total = sum(counts.values())
    assert counts[4] == 0
    np.testing.assert_allclose(
        [(counts[1] + counts[2]) / total, counts[5] / total, counts[6] / total],
        [0.3, 0.2, 0.5],
        atol=0.04,
    )
    assert (rows.segment_ids != 0).mean() > 0.85, "little of a row is padding"


def test_rows_depend_on_the_key_and_may_teach_prompts_too():
    real = ev.real_examples(COPY, jax.random.key(5), [3], 50)
    data = ev.TrainingData(real, (), real._replace(weights=0 * real.weights), None)
    make = lambda key, prompt_share: ev.pack_mixture(
        data,
        np.array([1.0, 0.0]),
        jax.random.key(key),
        rows=20,
        length=20,
        prompt_share=prompt_share,
    )
    first, again, other = make(0, 1.0), make(0, 1.0), make(1, 1.0)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert all(mask == "." + "x" * 8 for _, mask in texts_of(first))


def test_rows_in_context_are_whole_texts_one_behind_another():
    real = ev.real_examples(COPY, jax.random.key(5), [1, 2, 3], 50)
    make = lambda begin: ev.pack_mixture(
        ev.real_only(real),
        np.array([1.0, 0.0]),
        jax.random.key(0),
        rows=20,
        length=32,
        prompt_share=0.5,
        in_context=True,
        begin=begin,
    )
    several = learned = 0
    for text, mask in whole_rows(make(COPY.begin)):
        assert text.startswith("<")
        assert text.count("<") == 1, "one begin token a row"
        parts, place = text[1:-1].split(">"), 1
        several += len(parts) > 2
        for part in parts:
            first, second = part.split("=")
            assert first == second, "no text is cut"
            question, answer = len(first) + 1, len(second) + 1
            marks, place = mask[place : place + question + answer], place + question + answer
            assert marks in ("." * question + "x" * answer, "x" * (question + answer))
            learned += "." not in marks
    assert several > 10
    assert learned > 10
    assert all(text.count("<") == text.count(">") > 1 for text, _ in whole_rows(make(None)))


def whole_rows(rows):
    """The tokens of rows of one document, and their targets, as strings."""
    for tokens, segments, mask in zip(*rows[:3], strict=True):
        size = (segments == 1).sum()
        text = "".join("0123456789=?<>"[token] for token in tokens[:size])
        yield text, "".join("x" if m else "." for m in mask[:size])
