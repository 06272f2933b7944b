"""Checks of static arguments, which fail at build, and of shapes, which fail at trace: with the
argument's name and value."""

import math
import operator
from typing import Any

from metajax.errors import ArgumentError


def positive_int(name: str, value: Any, *, remedy: str = "") -> int:
    """Returns ``value`` as an int, or raises an ArgumentError that names it."""
    return _int(name, value, "a positive integer", minimum=1, remedy=remedy)


def non_negative_int(name: str, value: Any) -> int:
    """The same, where 0 is accepted too."""
    return _int(name, value, "an integer of at least 0", minimum=0)


def at_least(name: str, value: Any, minimum: int) -> int:
    """The same, where ``value`` must be ``minimum`` or more."""
    return _int(name, value, f"an integer of at least {minimum}", minimum=minimum)


def _int(name: str, value: Any, kind: str, *, minimum: int, remedy: str = "") -> int:
    suffix = f" {remedy}" if remedy else ""
    if isinstance(value, bool):
        raise ArgumentError(f"{name} must be {kind}, got {value!r}.{suffix}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name} must be {kind}, got {value!r}.{suffix}") from None
    if number < minimum:
        raise ArgumentError(f"{name} must be at least {minimum}, got {number}.{suffix}")
    return number


def positive_float(name: str, value: Any) -> float:
    """Returns ``value`` as a float, or raises an ArgumentError that names it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be a positive number, got {value!r}.") from None
    if not (math.isfinite(number) and number > 0):
        raise ArgumentError(f"{name} must be a positive finite number, got {number!r}.")
    return number


def one_width(name: str, support: Any, query: Any) -> None:
    """Raises an ArgumentError if the features that ``name`` made of support and query aren't
    vectors ``[examples, d]`` of one width."""
    if support.ndim != 2 or query.ndim != 2 or support.shape[1] != query.shape[1]:
        raise ArgumentError(
            f"{name} must return features [examples, d] with one d for support and query, got "
            f"shapes {support.shape} and {query.shape}."
        )


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Returns ``value`` if it is one of ``choices``, or raises an ArgumentError that names it."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ArgumentError(f"{name} must be one of {listed}, got {value!r}.")
    return value
