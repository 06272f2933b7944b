"""Rejection sampling beside a loop by hand."""

import jax
import numpy as np
import optax
import pytest
from toys import COPY, completions_of

from metajax import evolve as ev

PARAMS = {"table": 0.3 * np.asarray(jax.random.normal(jax.random.key(0), (14, 14)))}
REWARDS = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0.5, 1, -1], [1, 1, 1, 1]], float)


def apply(params, tokens, **_):
    return params["table"][tokens]


def data_of():
    """Four tasks; of the first, samples 0 and 3 are equal; the last isn't trusted."""
    tasks = COPY.draw(jax.random.key(0), [2, 2, 3, 3])
    answers = [
        [[4, 13], [5, 6, 13], [7, 13], [4, 13]],
        [[4, 13], [5, 13], [6, 13], [7, 13]],
        [[4, 5, 13], [6, 13], [4, 5, 13], [8, 13]],
        [[4, 13], [5, 13], [6, 13], [7, 13]],
    ]
    completions = completions_of(answers)
    verdict = ev.Verdict(REWARDS.argmax(axis=1), np.array([1, 0, 0.5, 0]), np.ones(4), REWARDS)
    rollouts = ev.Rollouts(tasks, completions, verdict)
    real = ev.real_examples(COPY, jax.random.key(1), [1, 2], 12)
    return ev.TrainingData(real, (), ev.labelled_examples(rollouts), rollouts)


def by_hand(data):
    """All different right answers, each with its prompt."""
    tasks, (tokens, _, lengths, _), verdict = data.rollouts
    texts, prompts, weights = [], [], []
    for task in range(len(tokens)):
        seen = set()
        for sample in range(tokens.shape[1]):
            answer = tuple(tokens[task, sample, : lengths[task, sample]].tolist())
            if REWARDS[task, sample] > 0 and verdict.weight[task] > 0 and answer not in seen:
                seen.add(answer)
                prompt = tasks.prompts[task][-tasks.lengths[task] :].tolist()
                texts.append([*prompt, *answer])
                prompts.append(len(prompt))
                weights.append(verdict.weight[task])
    width = max(map(len, texts))
    rows = np.array([text + [0] * (width - len(text)) for text in texts], np.int32)
    lengths = np.array([len(text) for text in texts])
    return ev.Examples(rows, np.array(prompts), lengths, np.array(weights, np.float32))


def fine_tune():
    return ev.fine_tune(
        apply, optax.adam(1e-2), steps=3, mixture=lambda kept: np.append(np.zeros(len(kept)), 1.0),
        rows=4, row_length=20, micro_batches=2, pool=32, start="base",
    )  # fmt: skip


def test_two_rounds_are_a_loop_by_hand_that_starts_from_the_base():
    data, plain = data_of(), fine_tune()
    assert len(by_hand(data).tokens) == 4
    update = ev.rejection_sampling(plain)
    state, *_ = update.update(update.init(PARAMS, jax.random.key(0)), data, jax.random.key(1), 1.0)
    state, metrics, tokens = update.update(state, data, jax.random.key(2), 1.0)
    # The second round's key is what the first left; the parameters are the base's again.
    expected = plain.init(PARAMS, jax.random.key(0))
    data = data._replace(new=by_hand(data))
    expected, *_ = plain.update(expected, data, jax.random.key(1), 1.0)
    again = plain.init(PARAMS, jax.random.key(0))._replace(step=expected.step, key=expected.key)
    expected, history, count = plain.update(again, data, jax.random.key(2), 1.0)
    np.testing.assert_array_equal(state.params["table"], expected.params["table"])
    np.testing.assert_array_equal(metrics["loss"], history["loss"])
    assert tokens == count


def test_where_one_answer_is_right_it_is_the_label():
    seen = []
    keep = lambda state, data, key, scale: seen.append(data.new)
    update = ev.rejection_sampling(ev.Update("keeps", lambda params, key: None, keep))
    data = data_of()
    verdict = data.rollouts.verdict._replace(rewards=None)
    data = data._replace(rollouts=data.rollouts._replace(verdict=verdict))
    update.update(None, data, None, 1.0)
    rows = seen[0].weights > 0
    kept = data.new.weights > 0
    np.testing.assert_array_equal(seen[0].tokens[rows], data.new.tokens[kept])
    np.testing.assert_array_equal(seen[0].weights[rows], data.new.weights[kept])


def test_texts_that_the_buffer_has_no_room_for_and_a_missing_round():
    seen = []
    keep = lambda state, data, key, scale: seen.append(data.new)
    update = ev.rejection_sampling(ev.Update("keeps", lambda params, key: None, keep))
    data = data_of()
    longest = int(by_hand(data).lengths.max())
    short = data._replace(new=data.new._replace(tokens=data.new.tokens[:, : longest - 1]))
    update.update(None, short, None, 1.0)
    kept = seen[0].weights > 0
    assert kept.any()
    assert seen[0].lengths[kept].max() < longest
    with pytest.raises(ValueError, match="rejection_sampling learns from a round's completions"):
        update.update(None, ev.real_only(data.real), None, 1.0)
