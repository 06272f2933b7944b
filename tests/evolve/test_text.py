"""Text tasks: tokens of any tokenizer against plain Python on strings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax import evolve as ev
from metajax import lm
from metajax.lm.tokenizers import HFTokenizer
from metajax.models import Transformer, TransformerConfig

CHARACTERS = lm.CharTokenizer.of("0123456789+= ", specials=("<", ">"))
BEGIN, END = 0, 1
SUM = re.compile(r"(0|[1-9]\d*) \+ (0|[1-9]\d*) =")


def write(rng, level):
    first, second = rng.integers(10 ** (level - 1), 10**level, 2)
    return f"{first} + {second} ="


def answer(prompt):
    return f" {sum(map(int, prompt[:-2].split(' + ')))}"


def read(text):
    found = SUM.fullmatch(text)
    return len(found[1]) if found and len(found[1]) == len(found[2]) else None


def sums(tokenizer=CHARACTERS, **options):
    defaults = {
        "name": "sums", "write": write, "answer": answer, "read": read, "end": END,
        "longest": lambda level: (2 * level + 5, level + 2),
    }  # fmt: skip
    return ev.text_problem(tokenizer, **defaults | options)


@pytest.fixture(scope="module")
def subwords():
    """Byte-level subwords of up to three characters; its number 0 is a piece of text."""
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=80, initial_alphabet=[], show_progress=False, max_token_length=3
    )
    rng = np.random.default_rng(0)
    texts = [write(rng, level) for level in (1, 2, 3) for _ in range(200)]
    backend.train_from_iterator([text + answer(text) for text in texts], trainer)
    backend.add_special_tokens(["</s>"])
    return HFTokenizer(backend, {"eos_token": "</s>"}, {})


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_prompts_and_answers_are_those_of_the_functions(begin):
    problem = sums(begin=begin)
    levels = np.array([3, 1, 2, 3, 1] * 8)
    tasks = problem.draw(jax.random.key(0), levels)
    first = 0 if begin is None else 1
    assert tasks.prompts.shape == (40, problem.prompt_length(3)) == (40, 11 + first)
    np.testing.assert_array_equal(tasks.lengths, 2 * levels + 5 + first)
    np.testing.assert_array_equal(tasks.levels, levels)
    answers = problem.answer(tasks)
    assert answers.tokens.shape == (40, problem.answer_length(3)) == (40, 6)
    for prompt, length, level, own, count in zip(*tasks[:3], *answers, strict=True):
        row = prompt[-length:].tolist()
        assert not prompt[:-length].any(), "padded on the left"
        assert row[:first] == [BEGIN][:first]
        text = CHARACTERS.decode(row[first:])
        assert read(text) == level
        assert own[:count].tolist() == [*CHARACTERS.encode(answer(text)), END]
        assert not own[count:].any()
        assert problem.show([*prompt, *own]) == f"{'<' * first}{text}{answer(text)}>"
    again, other = (problem.draw(jax.random.key(seed), levels) for seed in (0, 1))
    np.testing.assert_array_equal(tasks.prompts, again.prompts)
    assert (tasks.prompts != other.prompts).any()


@pytest.mark.parametrize("begin", [None, BEGIN])
def test_what_is_drawn_is_read_back_and_what_is_changed_is_not(begin):
    problem = sums(begin=begin)
    tasks = problem.draw(jax.random.key(1), [3, 2, 1])
    wide = np.pad(tasks.prompts, ((0, 0), (4, 0)), constant_values=7)
    for prompts in (tasks.prompts, wide):
        valid, levels = problem.read(prompts, tasks.lengths)
        assert valid.all()
        assert levels.tolist() == [3, 2, 1]
    for lengths in (tasks.lengths - 1, 0 * tasks.lengths, -tasks.lengths, tasks.lengths + 99):
        assert not problem.read(tasks.prompts, lengths)[0].any()
    for column in (-1, -2, -3):  # "=", the space before it, a digit
        broken = np.array(tasks.prompts)
        broken[:, column] = CHARACTERS.encode("+")[0]
        valid, levels = problem.read(broken, tasks.lengths)
        assert not valid.any()
        assert not levels.any()
        answers = problem.answer(tasks._replace(prompts=broken))
        assert answers.lengths.tolist() == [1, 1, 1]
        assert answers.tokens[:, 0].tolist() == [END] * 3
        assert answers.tokens.shape[1] == problem.answer_length(3)


def test_subwords_are_those_of_prompt_and_answer_together(subwords):
    problem = sums(subwords, end=None, vocab_size=subwords.vocab_size + 5)
    tasks = problem.draw(jax.random.key(0), [3] * 40)
    assert len(set(tasks.lengths.tolist())) > 1, "texts of a level differ in length"
    answers = problem.answer(tasks)
    examples = ev.as_examples(tasks, answers, np.ones(40))
    for row, length, prompt in zip(*examples[:1], examples.lengths, examples.prompt, strict=True):
        text = subwords.decode(row[:prompt])
        whole = text + answer(text)
        assert row[:length].tolist() == [*subwords.encode(whole), subwords.eos_id]
        assert len(subwords.encode(whole)) < len(whole)
    # Other tokens for the same text aren't a task, nor those that the tokenizer hasn't.
    own = subwords.encode("12 + 34 =")
    apart = [subwords.token_id(character) for character in "12Ġ+Ġ34Ġ="]
    assert subwords.decode(apart) == "12 + 34 ="
    assert own != apart
    assert problem.read([own], [len(own)])[0].all()
    assert not problem.read([apart], [len(apart)])[0].any()
    beyond = [*own, problem.vocab_size - 1]
    assert not problem.read([beyond], [len(beyond)])[0].any()
    assert problem.show(beyond) == "12 + 34 ="


def test_a_begin_token_that_the_tokenizer_adds_comes_once(subwords):
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer.from_str(subwords.backend.to_str())
    backend.add_special_tokens(["<s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    adds = HFTokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, {})
    assert adds.encode("1") == [adds.bos_id, *subwords.encode("1"), adds.eos_id]
    problem = sums(adds, end=None)
    plain = sums(subwords, end=None, begin=adds.bos_id, vocab_size=adds.vocab_size)
    tasks, wanted = (each.draw(jax.random.key(0), [1, 2, 3]) for each in (problem, plain))
    assert tasks.prompts.tolist() == wanted.prompts.tolist()
    assert problem.read(tasks.prompts, tasks.lengths)[0].all()
    assert problem.answer(tasks).tokens.tolist() == plain.answer(wanted).tokens.tolist()


def test_an_answer_that_would_be_merged_with_its_prompt_has_its_own_tokens(subwords):
    problem = sums(
        subwords, end=None, write=lambda rng, level: "12", answer=lambda prompt: "0 +",
        read=lambda text: 1 if text == "12" else None, longest=lambda level: (2, 3),
    )  # fmt: skip
    assert subwords.encode("120 +")[: len(subwords.encode("12"))] != subwords.encode("12")
    tokens = problem.answer(problem.draw(jax.random.key(0), [1])).tokens[0].tolist()
    own = [*subwords.encode("0 +"), subwords.eos_id]
    assert tokens[: len(own)] == own


@pytest.mark.slow
def test_a_model_writes_prompts_and_its_answers_are_compared():
    problem = sums(begin=BEGIN)
    mask = problem.allowed(2)
    assert mask.shape == (9, CHARACTERS.vocab_size)
    allowed = ["".join(CHARACTERS.decode(np.flatnonzero(row))) for row in mask]
    number = ["123456789", "0123456789"]
    assert allowed == [*number, " ", "+", " ", *number, " ", "="]
    config = TransformerConfig.nope(
        vocab_size=problem.vocab_size, width=16, n_layers=1, n_heads=2, max_length=64, scan=False
    )
    model = Transformer(config)
    params, _ = metajax.from_linen(model, jax.random.key(0), jnp.zeros((1, 2), int))
    propose = ev.model_proposer(model, problem, count=5)
    tasks = propose(params, jax.random.key(1), ev.Levels(1, 2))
    assert tasks.valid.all()
    assert tasks.levels.tolist() == [2, 1, 2, 1, 2]
    solve = ev.model_solver(model, answer_length=problem.answer_length, end=problem.end)
    completions = solve(params, jax.random.key(2), tasks)
    verdict = ev.exact_match(problem.answer).verify(tasks, completions)
    texts = [problem.show(row) for row in tasks.prompts]
    answered = [problem.show([END, *row[0]])[1:] for row in completions.tokens]
    right = [answer(text[1:]) + ">" == own for text, own in zip(texts, answered, strict=True)]
    assert np.asarray(verdict.weight).tolist() == [float(own) for own in right]
    with pytest.raises(ValueError, match="'sums' must have a begin token"):
        ev.model_proposer(model, sums(), count=5)


def test_where_prompts_differ_in_length_any_token_may_stand_where_none_was_seen():
    problem = sums(begin=BEGIN, longest=lambda level: (2 * level + 7, level + 2))
    mask = problem.allowed(1)
    assert mask.shape == (9, CHARACTERS.vocab_size)
    assert mask[7:].all()
    assert "".join(CHARACTERS.decode(np.flatnonzero(mask[6]))) == "="


@pytest.mark.parametrize("begin", [None, 0, 2])
def test_padding_is_not_shown(begin):
    tokenizer = lm.CharTokenizer("ab", specials=("<",) if begin == 0 else ("<pad>", ">", "<"))
    problem = sums(tokenizer, begin=begin, end=tokenizer.encode("b")[0])
    a, b = tokenizer.encode("ab")
    prompt = ([] if begin is None else [begin]) + [a]
    mark = "" if begin is None else "<"
    assert problem.show([0, 0, *prompt, b, 0, 0]) == f"{mark}ab"
    assert problem.show([0, 0, *prompt]) == f"{mark}a"
    assert problem.show([0, 0]) == ("<" if begin == 0 else "")


def test_a_begin_token_may_be_the_end_token_too():
    problem = sums(begin=END)
    tasks = problem.draw(jax.random.key(0), [1])
    shown = problem.show([*tasks.prompts[0], *problem.answer(tasks).tokens[0]])
    assert re.fullmatch(r">\d \+ \d = \d+>", shown)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="end must be given: the tokenizer names no token"):
        sums(end=None)
    with pytest.raises(ValueError, match="end must be a token from 0 to 14, got 15"):
        sums(end=15)
    with pytest.raises(ValueError, match="begin must be a token from 0 to 14, got -1"):
        sums(begin=-1)
    with pytest.raises(ValueError, match="vocab_size must be at least the tokenizer's 15, got 9"):
        sums(vocab_size=9)
    with pytest.raises(ValueError, match="levels must be at least 1, got"):
        sums().draw(jax.random.key(0), [1, 0])
    with pytest.raises(ValueError, match="levels must be at least 1, got"):
        sums().draw(jax.random.key(0), [])


class Lossy(lm.CharTokenizer):
    """Keeps no spaces."""

    def decode(self, ids, *, skip_special_tokens=False):
        return super().decode(ids).replace(" ", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": lambda rng, level: "1 + 22 ="}, "got '1 . 22 =' for level 2, .* says None"),
        ({"write": lambda rng, level: "1 + 2 ="}, "got '1 . 2 =' for level 2, .* says 1"),
        ({"write": lambda rng, level: "a + b =", "read": len}, "says 7"),
        ({"write": lambda rng, level: "ab", "read": len}, "text has characters without a token"),
        ({"longest": lambda level: (8, 9)}, r"longest\(2\) .* a prompt has at most 8 tokens"),
        ({"longest": lambda level: (9, 2)}, r"longest\(2\) .* an answer has at most 2 tokens"),
        ({"answer": lambda prompt: "1 =", "end": 14}, "must not have the end token .* '1 ='"),
        (
            {"read": lambda text: 0 if text == "0 + 0 =" else 2},
            "level of at least 1, or None, got 0",
        ),
    ],
)
def test_functions_that_contradict_each_other_are_named(options, message):
    problem = sums(**options)
    zero = np.array([CHARACTERS.encode("0 + 0 =")])
    with pytest.raises(ValueError, match=message):
        problem.answer(problem.draw(jax.random.key(0), [2])) and problem.read(zero, [7])


def test_a_tokenizer_that_does_not_keep_prompts_is_named():
    tokenizer = Lossy(CHARACTERS.characters, CHARACTERS.specials)
    with pytest.raises(ValueError, match=r"reads back as '\d\+\d='"):
        sums(tokenizer).draw(jax.random.key(0), [1])
