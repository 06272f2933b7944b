"""A checker that is wrong in one round."""

from experiments.evolution.wrong_checker import wrong_once


def test_three_in_ten_verdicts_are_turned_round_in_one_round_alone():
    right = lambda question, answer: float(answer.startswith("1"))
    check, round_is = wrong_once(right, seed=0)
    asked = [(f"{question} + 1 =", str(answer)) for question in range(40) for answer in range(50)]
    for number in (1, 2, 3, 2):
        completions = object()
        assert round_is(number, completions) is completions
        found = [check(*each) for each in asked]
        share = sum(a != right(*each) for a, each in zip(found, asked, strict=True)) / len(asked)
        assert (0.27 < share < 0.33) if number == 2 else share == 0
        assert found == [check(*each) for each in asked], "the same each time"
    other, round_is_other = wrong_once(right, seed=1)
    round_is_other(2, completions)
    assert [other(*each) for each in asked] != [check(*each) for each in asked]
