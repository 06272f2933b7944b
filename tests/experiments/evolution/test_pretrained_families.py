"""Families of tasks in plain text: what is written is read, answered and checked."""

import numpy as np
import pytest

from experiments.evolution.pretrained.families import FAMILIES
from experiments.evolution.pretrained.families.arithmetic import in_words
from experiments.evolution.pretrained.families.rules import RULES


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_a_family_writes_it_reads_answers_and_checks(name):
    family, rng = FAMILIES[name](3), np.random.default_rng(0)
    assert list(family.levels) == [1, 2, 3]
    for level in family.levels:
        written = [family.write(rng, level) for _ in range(12)]
        assert len(set(written)) > 6
        for question in written:
            assert family.read(question) == level
            answer = family.answer(question)
            assert family.check(question, answer) == 1
            assert family.check(question, answer.strip()) == 1
            assert not family.check(question, answer + " 7")
            assert not family.check(question, "")
            longest = family.longest(level)
            assert len(question) <= longest[0]
            assert len(answer) <= longest[1]
            for other in (question + " ", " " + question, question.upper() + "?", answer):
                assert family.read(other) is None
        # No part of a question is one, so that it ends where it ends.
        assert all(family.read(question[:cut]) is None for cut in range(len(question)))
    assert FAMILIES[name](2).read(family.write(rng, 3)) is None


def test_sums_and_products_are_those_of_python():
    rng = np.random.default_rng(1)
    for name, sign in (("sums", "+"), ("products", "*")):
        family = FAMILIES[name](4)
        for level in (1, 2, 3, 4):
            first, second = family.write(rng, level)[:-2].split(f" {sign} ")
            question = f"{first} {sign} {second} ="
            result = eval(f"{first}{sign}{second}")
            assert family.answer(question) == f" {result}"
    for text in ("1 + 22=", "01 + 22 =", "1+2=", "a + b =", "1 * 2 =", ""):
        assert FAMILIES["sums"](3).read(text) is None
    assert FAMILIES["products"](3).read("12 * 12 =") is None  # the second one has a digit


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (118, "one hundred eighteen"),
        (1000, "one thousand"),
        (8991, "eight thousand nine hundred ninety-one"),
    ],
)
def test_numbers_are_spelt(number, words):
    assert in_words(number) == words


def test_sums_in_words_are_right():
    family = FAMILIES["sums-in-words"](3)
    assert family.answer("forty plus nine hundred sixty is") == " one thousand"
    assert family.read("forty plus nine hundred sixty is") == 3
    assert family.read("fourty plus two is") is None
    assert FAMILIES["products-in-words"](2).answer("twelve times nine is") == " one hundred eight"


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ("reverse", "d a b c"),
        ("sort", "a b c d"),
        ("first", "c"),
        ("last", "d"),
        ("drop first", "b a d"),
        ("drop last", "c b a"),
        ("swap ends", "d b a c"),
        ("repeat", "c b a d c b a d"),
    ],
)
def test_rules_are_what_they_say(rule, result):
    question = f"{rule}: c b a d ->"
    assert rule in RULES
    assert FAMILIES["rules"](3).answer(question) == f" {result}"
    assert FAMILIES["rules"](3).read(question) == 3
    assert FAMILIES["rules"](3).read(question.replace("c b", "C b")) is None


def test_programs_are_run_by_the_interpreter():
    family = FAMILIES["programs"](4)
    question = "reverse | add 3 | keep_even | sum : [ 1 2 8 ] ="
    assert family.read(question) == 4
    assert family.answer(question) == " 4"  # 8 2 1, 1 5 4, 4
    assert family.check(question, "4")
    for text in ("sum | reverse : [ 1 ] =", "reverse : [ 1 2 =", "reverse : [ 12 ] =", "reverse ="):
        assert family.read(text) is None
