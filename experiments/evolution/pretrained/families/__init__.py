"""Families of tasks in plain text, whose answers a program checks."""

from collections.abc import Callable
from typing import Literal

from experiments.evolution.pretrained.families.arithmetic import arithmetic
from experiments.evolution.pretrained.families.family import Family
from experiments.evolution.pretrained.families.programs import program_outputs
from experiments.evolution.pretrained.families.rules import string_rules

FamilyName = Literal["sums", "products", "sums-in-words", "products-in-words", "rules", "programs"]
FAMILIES: dict[str, Callable[[int], Family]] = {
    "sums": lambda levels: arithmetic("sums", words=False, levels=levels),
    "products": lambda levels: arithmetic("products", words=False, levels=levels),
    "sums-in-words": lambda levels: arithmetic("sums", words=True, levels=levels),
    "products-in-words": lambda levels: arithmetic("products", words=True, levels=levels),
    "rules": string_rules,
    "programs": program_outputs,
}
"""Families by name, made for a number of levels."""

__all__ = ["FAMILIES", "Family", "FamilyName"]
