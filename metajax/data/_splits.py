"""Published splits, as lists of classes by name."""

from collections.abc import Mapping
from typing import TypeVar

from metajax.errors import ArgumentError

Name = TypeVar("Name", bound=str)


def disjoint(names: Mapping[Name, str]) -> dict[Name, tuple[str, ...]]:
    """The classes of each split, from a text of their names.

    Raises:
        ArgumentError: if a class is listed twice, in one split or in two.

    Example:
        >>> disjoint({"train": "cat dog", "test": "owl"})
        {'train': ('cat', 'dog'), 'test': ('owl',)}
    """
    owner: dict[str, Name] = {}
    splits = {split: tuple(text.split()) for split, text in names.items()}
    for split, classes in splits.items():
        for name in classes:
            if name in owner:
                raise ArgumentError(
                    f"class {name} is listed in {owner[name]} and again in {split}."
                )
            owner[name] = split
    return splits
