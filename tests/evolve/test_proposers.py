"""Who poses tasks, and what may not be learned from."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import COPY

import metajax
from experiments.evolution.strings.tasks import digits
from metajax import evolve as ev
from metajax import lm
from metajax.evolve.proposers import _spread
from metajax.models import Transformer, TransformerConfig


def tiny(problem):
    config = TransformerConfig.nope(
        vocab_size=problem.vocab_size, width=16, n_layers=1, n_heads=2, max_length=64, scan=False
    )
    model = Transformer(config)
    return model, metajax.from_linen(model, jax.random.key(0), jnp.zeros((1, 2), int))[0]


def test_fingerprints_tell_prompts_apart_whatever_their_padding():
    tasks = COPY.draw(jax.random.key(0), [6] * 500)
    marks = ev.fingerprints(tasks)
    assert len(np.unique(marks)) == len(np.unique(np.asarray(tasks.prompts), axis=0)) == 500
    wide = tasks._replace(prompts=np.pad(tasks.prompts, ((0, 0), (5, 0)), constant_values=9))
    np.testing.assert_array_equal(ev.fingerprints(wide), marks)


def test_what_was_proposed_before_or_is_held_out_is_not_valid():
    tasks = COPY.draw(jax.random.key(0), [1] * 40)
    once = ev.without_duplicates(tasks)
    digits_of = np.asarray(tasks.prompts)[:, -2]
    assert sorted(digits_of[once.valid]) == sorted(set(digits_of))
    held_out = ev.fingerprints(jax.tree.map(lambda leaf: leaf[digits_of == 3], tasks))
    left = ev.without_duplicates(tasks, held_out)
    assert 3 not in digits_of[left.valid]
    assert left.valid.sum() == once.valid.sum() - 1
    # What isn't a task doesn't stand in the way of the same text that is one.
    first = tasks._replace(valid=np.arange(40) > 20)
    assert ev.without_duplicates(first).valid.sum() == len(set(digits_of[21:]))


def test_levels_are_spread_evenly_from_the_hardest_on():
    assert _spread(ev.Levels(3, 3), 3).tolist() == [3, 3, 3]
    assert np.bincount(_spread(ev.Levels(2, 5), 100))[2:].tolist() == [25] * 4
    with pytest.raises(ValueError, match="levels must be from 1 on"):
        _spread(ev.Levels(4, 3), 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("copy", None),
        pytest.param("addition", metajax.task_mesh(2), marks=pytest.mark.slow),
    ],
    ids=["one", "shared"],
)
def test_the_model_writes_prompts_of_the_levels_asked_for(name, mesh):
    problem = digits(name)
    model, params = tiny(problem)
    propose = ev.model_proposer(model, problem, count=7, chunk=4, mesh=mesh)
    tasks = propose(params, jax.random.key(1), ev.Levels(2, 4))
    assert tasks.levels.tolist() == [4, 3, 2, 4, 3, 2, 4]
    valid, levels = problem.read(tasks.prompts, tasks.lengths)
    assert np.asarray(valid).all(), "the mask forces what a task is, even on an untrained model"
    np.testing.assert_array_equal(levels, tasks.levels)
    np.testing.assert_array_equal(tasks.valid, ev.without_duplicates(tasks).valid)
    again = propose(params, jax.random.key(1), ev.Levels(2, 4))
    np.testing.assert_array_equal(tasks.prompts, again.prompts)


def test_the_program_proposes_as_many_whatever_the_levels():
    propose = ev.program_proposer(COPY, count=5)
    for levels in (ev.Levels(2, 2), ev.Levels(2, 4)):
        assert propose(None, jax.random.key(0), levels).prompts.shape == (5, 8)


def test_curricula():
    sure = lambda level: 0.95 if level <= 12 else 0.4
    assert ev.one_harder(9).next(ev.Levels(9, 9), sure) == (10, 10)
    assert ev.accelerated(9).next(ev.Levels(9, 9), sure) == (10, 12)
    assert ev.accelerated(9, most=2).next(ev.Levels(9, 9), sure) == (10, 11)
    assert ev.accelerated(9).next(ev.Levels(10, 12), sure) == (13, 13)
    for build in (ev.one_harder, ev.accelerated):  # what isn't mastered is met again
        assert build(9).next(ev.Levels(12, 13), sure) == (12, 13)
        assert build(9, mastered=0.3).next(ev.Levels(12, 13), sure)[0] == 14
    with pytest.raises(ValueError, match=r"at_least must be in \[0, 1\], got 1\.5"):
        ev.accelerated(9, at_least=1.5)
    with pytest.raises(ValueError, match="first must be at least 1, got 0"):
        ev.one_harder(0)


def few_shot(params_of, *, levels=(1, 2), count=64, **options):
    """Proposals of an untrained model behind a line that it reads, and what that line was."""
    tokenizer = lm.CharTokenizer.of("01=.", specials=("_",))
    read = lambda text: len(text) - 1 if re.fullmatch("[01]+=", text) else None
    problem = ev.text_problem(
        tokenizer,
        name="copy",
        write=lambda rng, level: "".join(map(str, rng.integers(0, 2, level))) + "=",
        answer=lambda prompt: prompt[:-1],
        read=read,
        longest=lambda level: (level + 1, level),
        begin=0,
        end=1,
    )
    shown = []

    def examples(rng, levels):
        prompts = [problem.show(row) for row in problem.draw(jax.random.key(1), [1, 2]).prompts]
        shown.append(int(rng.integers(1000)))
        text = "".join(f"{prompt[1:]}{prompt[1:-1]}." for prompt in prompts)
        return [0, *tokenizer.encode(text)]

    model, params = tiny(problem)
    propose = ev.few_shot_proposer(
        model, problem, tokenizer, examples=examples, read=read, count=count, chunk=16,
        **options,
    )  # fmt: skip
    return problem, propose(params_of(params), jax.random.key(2), ev.Levels(*levels)), shown


def test_what_follows_worked_examples_becomes_tasks():
    problem, tasks, shown = few_shot(lambda params: params)
    assert len(shown) == 4 == len(set(shown))  # a set of examples a chunk
    assert tasks.prompts.shape == (64, problem.prompt_length(2))
    texts = [problem.show(row) for row in tasks.prompts[tasks.valid]]
    assert 2 <= len(texts) == len(set(texts)) <= 6  # two of one digit, four of two
    assert all(text[0] == "_" and text[-1] == "=" for text in texts)
    assert [len(text) - 2 for text in texts] == tasks.levels[tasks.valid].tolist()
    # The same prompts as the program would write, so that duplicates and held-out ones are found.
    known = ev.fingerprints(problem.draw(jax.random.key(3), [1] * 40 + [2] * 40))
    assert np.isin(ev.fingerprints(tasks)[tasks.valid], known).all()


def test_a_model_writes_again_until_there_are_enough_tasks():
    _, once, _ = few_shot(lambda params: params, count=16)
    _, often, shown = few_shot(lambda params: params, count=16, attempts=8)
    assert once.valid.sum() < often.valid.sum() <= 6  # all that there are
    assert len(shown) == 8
    assert len(often.valid) == 16
    _, enough, shown = few_shot(lambda params: params, count=2, attempts=100)
    assert enough.valid.all()
    assert len(shown) < 100


def test_a_level_that_was_not_asked_for_is_no_task():
    _, tasks, _ = few_shot(lambda params: params, levels=(2, 2))
    assert tasks.valid.any()
    assert set(tasks.levels[tasks.valid].tolist()) == {2}


def test_a_model_that_writes_no_prompt_proposes_nothing():
    def silent(params):
        return params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}

    # Of equal logits a low temperature makes no choice: every token is as likely.
    _, tasks, _ = few_shot(silent, levels=(5, 5), count=16)
    assert tasks.prompts.shape[0] == 16
    assert not tasks.valid[tasks.levels != 5].any()
