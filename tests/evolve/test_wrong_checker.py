"""A checker that is wrong in one round: the gate refuses that round, or the end is as good."""

import jax
import numpy as np
import optax
import pytest

from metajax import evolve as ev
from metajax import lm

LETTERS = "abcdefghij"
TOKENIZER = lm.CharTokenizer.of("0123456789" + LETTERS, specials=("<pad>", "."))
END = TOKENIZER.special(".")
LAST = ev.text_problem(
    TOKENIZER,
    name="a letter for the last digit",
    write=lambda rng, level: "".join(map(str, rng.integers(0, 10, level))),
    answer=lambda prompt: LETTERS[int(prompt[-1])],
    read=lambda text: len(text) if text.isdigit() else None,
    longest=lambda level: (level, 1),
    end=END,
)
VOCABULARY = LAST.vocab_size
ROUNDS = 5
WRONG_ROUND = 2
TEMPERATURE = 2.0


def apply(params, tokens, **_):
    """A bigram model: a letter for the last digit is all that it can learn."""
    return params["table"][tokens]


def beginner():
    """Knows the digits 0 to 5, and that an answer is a letter and the end."""
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    digits, letters = (
        [TOKENIZER.encode(each)[0] for each in text] for text in ("0123456789", LETTERS)
    )
    table[np.ix_(digits, letters)] = 8.0
    table[letters, END] = 12.0
    table[digits[:6], letters[:6]] += 6.0
    return {"table": table}


def solver(samples):
    """Samples, or the likeliest answer where one is asked for."""

    def solve(params, key, tasks):
        logits = np.asarray(apply(params, np.asarray(tasks.prompts)[:, -1]))
        noise = jax.random.gumbel(key, (len(logits), samples, VOCABULARY))
        first = (logits[:, None] + TEMPERATURE * np.asarray(noise) * (samples > 1)).argmax(axis=-1)
        tokens = np.stack([first, np.full_like(first, END)], axis=-1).astype(np.int32)
        count = np.full(first.shape, 2)
        return ev.Completions(tokens, np.zeros(tokens.shape, np.float32), count, count > 0)

    return solve


def outcome(share):
    """Accuracy after all rounds, and their reports; a share of one round's verdicts on samples is
    flipped."""
    checker, now = ev.exact_match(LAST.answer), []

    def verify(tasks, completions):
        verdict = checker.verify(tasks, completions)
        if now != [WRONG_ROUND]:
            return verdict
        now.clear()  # the gate's own answers are checked by another
        told = np.array(ev.is_correct(completions, LAST.answer(tasks)))
        told ^= np.random.default_rng(0).random(told.shape) < share
        return ev.Verdict(told.argmax(axis=1), told.any(axis=1).astype(float), told.mean(axis=1))

    def corrupt(number, completions):
        now[:] = [number]
        return completions

    known = lambda key: ev.real_examples(LAST, key, [1, 2], 100)
    config = ev.EvolveConfig(
        ev.program_proposer(LAST, count=100),
        solver(4),
        ev.Verifier("wrong in a round", verify, uses_oracle=True),
        ev.fine_tune(
            apply, optax.adam(0.1), steps=40, mixture=ev.published_mixture(2, 0.1), rows=8,
            row_length=32, micro_batches=1, pool=64,
        ),
        ev.non_inferior(solver(1), checker),
        ev.one_harder(3),
        real=lambda key: only_taught(known(key)),
        held_out=lambda levels: ev.held_out_tasks(
            LAST, jax.random.key(9), known=range(1, 3), frontier=range(3, levels.last + 1), each=200
        ),
        oracle=LAST.answer,
        corrupt=corrupt,
    )  # fmt: skip
    state = ev.init_state(
        config, beginner(), jax.random.key(0), rounds=ROUNDS, proposals=100, longest=16,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    outcomes = list(ev.evolve(config, state))
    params = outcomes[-1][0].train.params
    tasks = LAST.draw(jax.random.key(5), [4] * 500)
    answered = solver(1)(params, jax.random.key(6), tasks)
    right = float(np.mean(ev.is_correct(answered, LAST.answer(tasks))))
    return right, [report for _, report in outcomes]


def only_taught(examples):
    """Real data has the digits 0 to 5 as last ones: the others are learned from the checker."""
    last = examples.tokens[np.arange(len(examples.tokens)), examples.prompt - 1]
    taught = np.isin(last, [TOKENIZER.encode(digit)[0] for digit in "012345"])
    return examples._replace(weights=examples.weights * taught)


@pytest.mark.slow
def test_a_round_of_flipped_verdicts_costs_nothing_or_is_refused():
    clean, _ = outcome(0.0)
    assert clean > 0.98
    some, reports = outcome(0.3)
    assert 0.8 < reports[WRONG_ROUND - 1].label_accuracy < 0.95
    assert some > clean - 0.02, "accepted, and no harm"
    every, reports = outcome(1.0)
    assert reports[WRONG_ROUND - 1].label_accuracy == 0
    assert [report.accepted for report in reports] == [True, False, True, True, True]
    assert every > clean - 0.02, "refused, and made up for"
