"""Lists of classes in splits."""

import pytest

from metajax.data._splits import disjoint


def test_the_classes_of_each_split_in_their_order():
    assert disjoint({"train": "b a", "test": "d c"}) == {"train": ("b", "a"), "test": ("d", "c")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train": "cat dog", "test": "owl dog"}, "class dog is listed in train and again in test"),
        ({"train": "cat cat", "test": "owl"}, "class cat is listed in train and again in train"),
    ],
)
def test_a_class_that_is_listed_twice(names, message):
    with pytest.raises(ValueError, match=message):
        disjoint(names)
