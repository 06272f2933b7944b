"""The study of knowledge with a tiny random model: every part, a resume, and the gate."""

import json

import jax
import numpy as np
import pytest

from experiments import common
from experiments.evolution.knowledge import config as parts
from experiments.evolution.knowledge import people, report, texts, train
from experiments.evolution.knowledge.config import Config
from experiments.evolution.knowledge.people import Question
from experiments.evolution.pretrained import config as pretrained
from metajax import lm
from metajax.errors import ArgumentError
from metajax.lm import lora

TINY = (
    "--people", "2", "--tokens", "900", "--length", "256", "--asked", "4", "--asked-bounds", "2",
    "--chunk", "4", "--rank", "2", "--held-back", "2",
)  # fmt: skip


def options(out, *more):
    return [*TINY, "--out", str(out), *more]


@pytest.fixture
def writes(monkeypatch):
    """A model that writes two questions of the program's, and a wrong one, about each passage. When
    it has learned it writes nothing."""
    written = []

    def write(setup, params, name, number):
        written.append((name, number))
        found = []
        for wording in range(len(people.WORDINGS)):
            lines = [
                [
                    *people.questions(person, people.QUESTIONS[wording])[:2],
                    Question(f"What does {person.name} fear?", person.facts["pet"]),
                ]
                for person in setup.people
            ]
            text = ["".join(f"{q.text} {q.answer}\n" for q in each) for each in lines]
            text = [""] * len(text) if name == "questions of round 2" else text
            found.append(
                [texts.parse(t, p, wording) for t, p in zip(text, setup.people, strict=True)]
            )
        return found

    monkeypatch.setattr(parts, "write_questions", write)
    return written


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    make = pretrained.random_checkpoint.make
    monkeypatch.setattr(
        pretrained.random_checkpoint,
        "make",
        lambda *args, **named: make(*args, **named, n_layers=1),
    )


def result_of(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_the_whole_study_and_a_resume_that_computes_nothing_again(
    tmp_path, capsys, monkeypatch, writes
):
    out = tmp_path / "run"
    train.main(options(out))
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "random weights: the scores mean nothing" in table
    assert writes == [
        ("questions of round 1", 1),
        ("questions of round 2", 2),
        ("questions of round 2 by the base", 2),
    ]
    assert result_of(out)["written"]["questions of round 2"]["kept"] == 0
    result = result_of(out)
    assert tuple(result["asked"]) == report.ASKED
    tokens = [each["tokens"] for each in result["asked"].values() if "tokens" in each]
    assert len(tokens) == 6
    assert max(tokens) <= 900 < min(tokens) + 2 * 257
    assert [len(each["right"]) for each in result["asked"].values()] == [2, *[4] * 6, 2]
    first = result["written"]["questions of round 1"]
    # The wrong question is the same in all wordings.
    assert (first["kept"], first["different"]) == (2 * 3 * 3, 2 * (2 * 3 + 1))
    assert first["answers_that_are_facts"] == 1
    assert set(result["gates"]) == {"gate of round 1", "gate of round 2"}
    assert (out / "knowledge.png").read_bytes().startswith(b"\x89PNG")
    assert people.people(1)[0].name in (out / "questions.txt").read_text()

    model, _ = lm.load_pretrained(out / "checkpoint")
    adapters = lm.load_adapters(out / "adapters" / "second-round", config=model.config)
    assert np.abs(adapters["blocks"]["mlp"]["up"]["kernel"].b).max() > 0

    (out / "parts" / "questions by a program.json").unlink()
    names = []
    monkeypatch.setattr(
        parts,
        "learn",
        lambda setup, start, sources, name, **options: (
            names.append(name) or parts.Learned(setup.factors, 1, 1, (0.0, 0.0))
        ),
    )
    train.main(options(out, "--resume"))
    assert names == ["questions by a program"]
    assert len(writes) == 3


@pytest.mark.slow
def test_a_model_that_writes_nothing_valid_is_told_of(tmp_path, capsys):
    train.main(options(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "next to no question with an answer of its passage" in printed
    assert set(result_of(tmp_path / "run")["asked"]) == {
        "no passage", "passage in the prompt", "passages", "questions by a program",
    }  # fmt: skip


@pytest.mark.slow
def test_factors_learn_a_line_that_comes_again_and_again(tmp_path):
    """The loss that is told is that of the answer's tokens, before an update."""
    config = Config(people=1, tokens=4000, rate=3e-2, length=64, rank=8, dtype="float32")
    run = common.Run("test", tmp_path, config)
    setup = parts.set_up(run, config)
    question = people.questions(setup.people[0], people.QUESTIONS[0])[0]
    line = setup.words.question(question)
    learned = parts.learn(setup, setup.factors, [[line]], "learning", seed=0)
    assert learned.loss[1] < learned.loss[0] - 0.1

    def loss(factors):
        tokens = np.array([setup.words.bos + line.tokens])
        logits = setup.model.apply({"params": lora.merge(setup.params, factors)}, tokens)[0, :-1]
        log_probs = jax.nn.log_softmax(logits)[np.arange(len(line.tokens)), line.tokens]
        return -float(log_probs[np.array(line.targets)].mean())

    # One line fits into a row, so all rows are alike. The losses told are means of a tenth.
    assert learned.loss[0] < loss(setup.factors) < learned.loss[0] + 0.2
    assert loss(learned.factors) == pytest.approx(learned.loss[1], abs=0.02)
    assert learned.tokens == learned.updates * (1 + len(line.tokens))


def test_the_gate_holds_questions_back_in_all_their_answers():
    asked = [Question(f"Who is {n // 2}?", str(n)) for n in range(40)]
    back, others = train.held_back(Config(held_back=3), asked)
    assert len(back) == len({each.text for each in back}) == 3
    assert {each.text for each in back}.isdisjoint(each.text for each in others)
    assert len(others) == 40 - 2 * 3
    assert all(int(each.answer) % 2 == 0 for each in back)
    assert len(train.held_back(Config(), asked)[0]) == 20 // 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"people": 300}, "people must be at most 262; got 300"),
        ({"question_share": 1.5}, r"question_share must be in \[0, 1\]"),
        ({"steps": 5}, "steps follow from tokens"),
        ({"held_back": 1}, "held_back must be at least 2"),
        ({"rate": 0.0}, "rate must be above zero"),
        ({"tokens": 0}, "tokens must be above zero"),
    ],
)
def test_a_wrong_option_is_named(wrong, words):
    with pytest.raises(ArgumentError, match=words):
        Config(**wrong)


def test_the_table_compares_question_by_question():
    asked = {
        "passages": {"right": [True, False, False, False], "tokens": 10},
        "own questions": {"right": [True, True, True, False], "tokens": 11},
    }
    for each in asked.values():
        each["begins"] = each["right"]
    text = "\n".join(report.table({"asked": asked, "written": {}, "gates": {}}))
    assert "| passages      | 10     | 4         | 25.0 ± 49.0" in text
    assert "own questions − passages" in text
    # Two of four differ: a mean of 0.5, and a standard deviation of sqrt(1/3).
    assert "50.0 ± 56.6" in text
