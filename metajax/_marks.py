"""Marks on functions, which say what else they take beside their ordinary arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Marked:
    function: Callable[..., Any]
    keyed: bool
    masked: bool
    at_places: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def has(function: Any, mark: str) -> bool:
    """Whether a function, or that of a ``functools.partial``, has a mark.

    Example:
        >>> has(functools.partial(marked(max, keyed=True), 1), "keyed")
        True
    """
    while isinstance(function, functools.partial):
        function = function.func
    return bool(getattr(function, mark, False))


def marked(
    function: Callable[..., Any],
    *,
    keyed: bool = False,
    masked: bool = False,
    at_places: bool = False,
) -> Callable[..., Any]:
    """The function with these marks and those that it had; without any, itself.

    Example:
        >>> marked(max) is max
        True
    """
    given = {"keyed": keyed, "masked": masked, "at_places": at_places}
    marks = {name: mark or has(function, name) for name, mark in given.items()}
    return _Marked(function, **marks) if any(marks.values()) else function


def like(function: Any, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper, with the marks of what it wraps.

    Example:
        >>> has(like(marked(max, masked=True), min), "masked")
        True
    """
    marks = ("keyed", "masked", "at_places")
    return marked(wrapper, **{name: has(function, name) for name in marks})
