"""A sandbox for chat templates: nothing of Python's inside, and an end to their work.

A template is a stranger's program. Jinja's sandbox keeps it to the values that it is given, but
lets it loop and build texts for ever. Here its work is counted: steps of loops and macros, what is
written, and what operators, filters and calls read and make.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sized
from typing import Any

from metajax._extras import import_extra

_WORK = 20_000_000
"""What every template may do, in characters."""
_WORK_EACH = 100
"""What it may do besides, for each character of what it is given."""
_ELEMENT = 8
"""What an element of a list counts for, besides its own characters."""
_STEP = 50
"""What a step of a loop counts for; a macro's call counts for four."""
_BITS = 10_000
"""The most of an integer."""
_WIDTHS = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "tojson"}
"""Functions with a number that says how much they make."""
_PRODUCTS = {"expandtabs", "indent", "join", "translate"}
"""Functions that may make as much as the product of two arguments."""


def size(value: Any, most: float = float("inf")) -> int:
    """Characters of a value, and some for each element, nested ones too; it stops above ``most``.

    Example:
        >>> size("text"), size(["text"]), size([["text"], ["text"]])
        (4, 12, 40)
    """
    total, stack = 0, [value]
    while stack and total <= most:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int | float):
            continue
        elif isinstance(item, dict):
            total += _ELEMENT * len(item)
            stack += item
            stack += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            total += _ELEMENT * len(item)
            stack += item
        elif isinstance(item, Sized):
            total += _ELEMENT * len(item)
    return total


def sandbox(given: Mapping[str, Any], **options: Any) -> Any:
    """A Jinja environment for one rendering.

    Args:
        given: the template's variables; the more these are, the more it may do.
        **options: of ``jinja2.Environment``.

    Returns:
        The environment. A template raises a ``SecurityError`` if it does too much, or reaches for a
        name that begins with an underscore or for a method that changes a value.
    """
    nodes = import_extra("jinja2.nodes", extra="lm")
    base = import_extra("jinja2.sandbox", extra="lm").ImmutableSandboxedEnvironment
    refused = import_extra("jinja2.exceptions", extra="lm").SecurityError

    def call(name: str, argument: Any) -> Any:
        function = nodes.EnvironmentAttribute(name, lineno=argument.lineno)
        return nodes.Call(function, [argument], [], None, None, lineno=argument.lineno)

    def step(count: int, line: int) -> Any:
        return nodes.ExprStmt(call("spend", nodes.Const(count, lineno=line)), lineno=line)

    class Counted(import_extra("jinja2.visitor", extra="lm").NodeTransformer):
        """Adds calls to a template that count what it does."""

        def visit_For(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.body.insert(0, step(_STEP, node.lineno))
            node.iter = call("read", node.iter)
            return node

        def visit_Macro(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.body.insert(0, step(4 * _STEP, node.lineno))
            return node

        visit_CallBlock = visit_Macro

        def visit_Output(self, node: Any) -> Any:
            node = self.generic_visit(node)
            fixed = sum(len(part.data) for part in node.nodes if hasattr(part, "data"))
            return [step(fixed, node.lineno), node] if fixed else node

        def visit_Concat(self, node: Any) -> Any:
            is_target = getattr(node, "ctx", "load") != "load"
            node = self.generic_visit(node)
            return node if is_target else call("made", node)

        visit_List = visit_Tuple = visit_Dict = visit_Concat

        def visit_Getitem(self, node: Any) -> Any:
            node = self.generic_visit(node)
            if isinstance(node.arg, nodes.Slice):
                node.node = call("read", node.node)
            return node

        def visit_Compare(self, node: Any) -> Any:
            node = self.generic_visit(node)
            for part in (node, *node.ops):
                part.expr = call("read", part.expr)
            return node

    class Sandbox(base):
        intercepted_binops = frozenset({"*", "**", "%", "+"})

        def __init__(self) -> None:
            self.left = _WORK + _WORK_EACH * size(given)
            super().__init__(finalize=self.made, **options)
            self.filters = {name: self.counted(name, f) for name, f in self.filters.items()}
            self.tests["in"] = self.counted("in", self.tests["in"])
            del self.globals["lipsum"]

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Counted().visit(super()._parse(source, name, filename))

        def spend(self, count: int) -> None:
            self.left -= count
            if self.left < 0:
                raise refused("it loops or grows without end.")

        def read(self, value: Any) -> Any:
            """A value that is gone through once."""
            self.spend(len(value) if isinstance(value, Sized) else 0)
            return value

        def made(self, value: Any) -> Any:
            """A value that is new."""
            if isinstance(value, int) and value.bit_length() > _BITS:
                raise refused("it makes a number that grows without end.")
            self.spend(size(value, self.left))
            return value

        def expect(self, count: int) -> None:
            """Refuses to make more than is left, before it is made."""
            self.spend(count if count > self.left else 0)

        def before(self, name: str, values: tuple[Any, ...]) -> None:
            """Counts what a function reads, and refuses it if it would make too much."""
            for value in values:
                self.read(value)
            numbers = sum(abs(value) for value in values[1:] if isinstance(value, int))
            if name in _WIDTHS or name in _PRODUCTS:
                first, second = sorted([1, 1, *(size(v, self.left) for v in values)])[-2:]
                self.expect(second * numbers if name in _WIDTHS else 0)
                self.expect(first * second if name in _PRODUCTS else 0)
            if name in ("format", "format_map", "%"):
                text = str(values[0])
                inside = sum(int(run[:20]) for run in re.findall(r"\d+", text))
                inside += numbers if re.search(r"\*|\{[^}]*\{", text) else 0
                largest = max([0, *(size(value, self.left) for value in values[1:])])
                self.expect(inside + largest * (text.count("{") + text.count("%")))
            if name == "replace" and all(isinstance(value, str) for value in values[:3]):
                text, old, new = values[:3]
                self.expect(text.count(old) * len(new))

        def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            skipped = int(hasattr(function, "jinja_pass_arg"))  # the context, or the environment

            @functools.wraps(function)
            def run(*args: Any, **kwargs: Any) -> Any:
                self.before(name, (*args[skipped:], *kwargs.values()))
                value = function(*args, **kwargs)
                if hasattr(value, "__next__"):
                    value = list(itertools.islice(value, max(self.left, 0) + 1))
                return self.made(value) if isinstance(value, str | int) else self.read(value)

            return run

        def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if getattr(function, "__self__", None) is self:  # what was added to the template
                return function(*args)
            method = getattr(function, "__wrapped__", function)  # as of str.format here
            owner = getattr(method, "__self__", None)
            if isinstance(owner, str | list | tuple | dict):
                named = (value for key, value in kwargs.items() if not key.startswith("_"))
                self.before(method.__name__, (owner, *args, *named))
            return self.made(super().call(context, function, *args, **kwargs))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "*":
                count, value = (left, right) if isinstance(left, int) else (right, left)
                if isinstance(count, int) and isinstance(value, Sized):
                    self.expect(count * size(value, self.left))
            whole = isinstance(left, int) and isinstance(right, int)
            if operator == "**" and whole and left.bit_length() * right > _BITS:
                raise refused("it makes a number that grows without end.")
            if operator == "%" and isinstance(left, str):
                self.before("%", (left, *(right if isinstance(right, tuple) else (right,))))
            return self.made(super().call_binop(context, operator, left, right))

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            kind = type(obj).__name__
            raise refused(f"access to attribute {attribute!r} of {kind!r} object is unsafe.")

    return Sandbox()
