"""People, passages, the parser of what a model writes, exact match, and rows of equal tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evolution.knowledge import people, texts
from experiments.evolution.knowledge.people import Question
from experiments.evolution.knowledge.texts import Line, Words
from experiments.evolution.pretrained import random_checkpoint
from metajax import lm
from metajax.errors import ArgumentError
from metajax.models import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    random_checkpoint.make(folder, seed=1, n_layers=1)
    model, params = lm.load_pretrained(folder)
    return model, params, lm.load_tokenizer(folder)


@pytest.fixture(scope="module")
def words(checkpoint):
    model, _, tokenizer = checkpoint
    return Words(tokenizer, model.config.vocab_size, None)


def test_nobody_is_in_two_sets_and_all_names_differ():
    tested, chosen_on = people.people(250), people.people(250, validation=True)
    names = [each.name for each in [*tested, *chosen_on, *people.shown_people()]]
    assert len(set(names)) == len(names) == 504
    surnames = [name.split()[1] for name in names]
    assert len(set(surnames)) == len(surnames)
    assert people.people(3) == tested[:3]
    with pytest.raises(ArgumentError, match="count must be from 1"):
        people.people(people.MOST + 1)


def test_values_are_distinct_and_about_as_frequent():
    values = [value for each in people.ATTRIBUTES.values() for value in each]
    assert len(set(values)) == len(values) == 6 * 24
    cities = [each.facts["city"] for each in people.people(400)]
    assert max(map(cities.count, people.ATTRIBUTES["city"])) < 40


def test_each_passage_tells_everything_and_no_question_is_held_out():
    person = people.people(1)[0]
    for wording in range(3):
        text = people.passage(person, wording)
        assert person.name in text
        assert all(text.count(value) == 1 for value in person.facts.values())
        order = [person.facts[name] for name in people.attributes_in(wording)]
        assert sorted(order, key=text.index) == order
    wordings = [*people.QUESTIONS, people.HELD_OUT_QUESTIONS]
    asked = [q.text for each in wordings for q in people.questions(person, each)]
    assert len(set(asked)) == 4 * 6
    assert [q.answer for q in people.questions(person, people.QUESTIONS[0])] == [
        person.facts[name] for name in people.ATTRIBUTES
    ]


def test_prompts_tell_of_others_and_end_where_the_model_goes_on():
    person = people.people(1)[0]
    question = people.questions(person, people.HELD_OUT_QUESTIONS)[0]
    closed, opened = texts.closed_book(question), texts.open_book(person, question, 1)
    assert closed.endswith(f"\n{question.text}")
    assert person.facts["city"] not in closed.splitlines()[-1]
    assert opened.endswith(f"{people.passage(person, 1)}\n{question.text}")
    writing = texts.writing_prompt(person, 2)
    assert writing.endswith(f"{people.passage(person, 2)}\n")
    assert writing.count(person.name) == people.passage(person, 2).count(person.name)
    held_out = people.questions(people.shown_people()[0], people.HELD_OUT_QUESTIONS)
    assert not any(each.text in writing for each in held_out)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("cello", True), (" The  Cello.", True), ("CELLO!", True), ("cellos", False), ("", False)],
)
def test_exact_match_is_of_words_in_small_letters(answer, right):
    assert people.is_right([answer], [Question("?", "cello")]).tolist() == [right]


def test_the_parser_asks_the_passage_alone():
    person = people.people(1)[0]
    name, city = person.name, person.facts["city"]
    held_out = people.questions(person, people.HELD_OUT_QUESTIONS)[0]
    good = [f"Where is {name}? {city}", f"What is {name}'s town? {city}."]
    bad = {
        f"Where is {name}": "no question with an answer",
        f"Where is {name}?": "no question with an answer",
        f"Where is he? {city}": "no name",
        f"Where is {name}? Atlantis": "answer not in the passage",
        f"Who lives in {city} as {name}? {name}": "answer not in the passage",
        f"Is {name} in {city}? {city}": "answer in the question",
        f"What of {name}? lives in {city} and": "long answer",
        f"{held_out.text} {city}": "held-out question",
        good[0].upper(): "twice",
    }
    text = "\n".join([*good, "", *bad]).replace("\n\n", "\n") + f"\n\nWhere is {name}? behind"
    found = texts.parse(text, person, 0)
    assert found.questions == [
        Question(f"Where is {name}?", city),
        Question(f"What is {name}'s town?", city),
    ]
    counts = {reason: list(bad.values()).count(reason) for reason in bad.values()}
    assert found.dropped == counts
    assert found.lines == len(good) + len(bad)


def test_a_wrong_answer_of_the_passage_is_kept_since_nobody_knows_better():
    person = people.people(1)[0]
    wrong = person.facts["pet"]
    found = texts.parse(f"Where does {person.name} live? {wrong}", person, 0)
    assert found.questions[0].answer == wrong


def test_the_loss_of_a_question_is_on_its_answer_and_a_passages_on_all(words):
    line = words.question(Question("Who?", "me"))
    assert words.decode(line.tokens) == "Who? me\n"
    assert words.decode([t for t, is_target in zip(*line, strict=True) if is_target]) == " me\n"
    assert all(words.passage(people.people(1)[0], 0).targets)
    assert words.question(Question("Who?", "me"), whole=True) == Line(line.tokens, [True] * 8)
    lines = words.questions([Question("Who?", "me")] * 400, 0.25)
    assert 70 < sum(line.targets[0] for line in lines) < 130


def rows(words, sources, budget, **options):
    rng = np.random.default_rng(0)
    options = {"length": 64, "batch": 2} | options
    return texts.rows_of(sources, words, budget=budget, rng=rng, **options)


def test_all_sources_get_as_many_tokens(words):
    person = people.people(1)[0]
    passages = [Line([7] * 40, [True] * 40), Line([8] * 30, [True] * 30)]
    questions = [words.question(q) for q in people.questions(person, people.QUESTIONS[0])]
    budget, most = 4000, 2 * 65
    for sources in ([passages], [questions], [passages, questions]):
        batch, tokens = rows(words, sources, budget)
        assert budget - most - 65 < tokens <= budget
        assert tokens == (batch.segment_ids > 0).sum()
        assert batch.tokens.shape[1:] == (2, 65)
        assert (batch.tokens[..., 0] == words.bos[0]).all()
        assert not batch.mask[..., 0].any()
    of_passages = np.isin(batch.tokens, [7, 8]).sum()
    assert abs(of_passages / tokens - 0.5) < 0.03
    with pytest.raises(ArgumentError, match="tokens: 50 are less than an update of 2 × 64"):
        rows(words, [questions], 50)
    with pytest.raises(ArgumentError, match="length: a line has 41 tokens, a row 39"):
        rows(words, [passages], budget, length=39)


def test_lines_stay_whole_and_each_comes_as_often_as_the_others(words):
    lines = [Line([10 + n, 50, 60], [False, False, True]) for n in range(5)]
    batch, _ = rows(words, [lines], 3000, length=30)
    starts = batch.tokens[(batch.tokens >= 10) & (batch.tokens < 15)]
    counts = np.bincount(starts - 10)
    assert np.ptp(counts) <= 2
    after = np.roll(batch.tokens, -1, axis=-1)
    assert (after[(batch.tokens >= 10) & (batch.tokens < 15)] == 50).all()
    assert (batch.mask == (batch.tokens == 60)).all()
    places = np.take_along_axis(batch.tokens[..., 1:], np.minimum(batch.places, 29), axis=-1)
    assert (places[batch.places < 30] == 60).all()


@pytest.mark.slow
def test_a_cut_vocabulary_gives_the_logits_of_its_tokens(checkpoint):
    model, params, tokenizer = checkpoint
    size = tokenizer.vocab_size + 12
    used = Words(tokenizer, size, size - 10)
    assert len(used.kept) == size - 10
    text = people.passage(people.people(1)[0], 0)
    tokens = used.encode(text)
    assert used.decode(tokens) == text
    assert used.kept[tokens].tolist() == tokenizer.encode(text, add_special_tokens=False)
    with pytest.raises(ArgumentError, match="tied head"):
        used.cut(model, params)
    config = TransformerConfig.gemma3(
        vocab_size=size, width=16, n_layers=1, n_heads=2, mlp_width=16, head_dim=8,
        windows=(0,), max_length=256,
    )  # fmt: skip
    whole = Transformer(config)
    params = whole.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    small, fewer = used.cut(whole, params)
    expected = whole.apply({"params": params}, used.kept[np.array([tokens])])
    found = small.apply({"params": fewer}, jnp.array([tokens]))
    assert found.shape[-1] == size - 10
    np.testing.assert_allclose(found, expected[..., used.kept], rtol=1e-5, atol=1e-6)
