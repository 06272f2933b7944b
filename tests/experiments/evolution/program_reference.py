"""The task language once more, in plain Python, as its documentation says it."""

import itertools

LONGEST, MOST = 8, 4


def _first_places(x):
    return [digit for place, digit in enumerate(x) if digit not in x[:place]]


def _swapped(x):
    x = list(x)
    for place in range(0, len(x) - 1, 2):
        x[place], x[place + 1] = x[place + 1], x[place]
    return x


# What takes a list, and gives a list or a digit. Digits and lists take the next ones.
LISTS = {
    "keep_even": lambda x, k: [d for d in x if d % 2 == 0],
    "keep_odd": lambda x, k: [d for d in x if d % 2 == 1],
    "keep_above": lambda x, k: [d for d in x if d > k],
    "keep_below": lambda x, k: [d for d in x if d < k],
    "without": lambda x, k: [d for d in x if d != k],
    "unique": lambda x, k: _first_places(x),
    "reverse": lambda x, k: x[::-1],
    "sort": lambda x, k: sorted(x),
    "rotate": lambda x, k: [x[(i + k) % len(x)] for i in range(len(x))],
    "take": lambda x, k: x[:k],
    "drop": lambda x, k: x[k:],
    "every": lambda x, k: x[::k],
    "swap": lambda x, k: _swapped(x),
    "mirror": lambda x, k: x + x[::-1],
    "push": lambda x, k: [k, *x],
    "append": lambda x, k: [*x, k],
    "sums": lambda x, k: [sum(x[: i + 1]) % 10 for i in range(len(x))],
    "differences": lambda x, k: [(b - a) % 10 for a, b in itertools.pairwise(x)],
    "maxima": lambda x, k: [max(x[: i + 1]) for i in range(len(x))],
    "fold": lambda x, k: [(a + b) % 10 for a, b in zip(x, x[::-1], strict=True)],
    "sum": lambda x, k: sum(x) % 10,
    "max": lambda x, k: max(x, default=0),
    "min": lambda x, k: min(x, default=0),
    "length": lambda x, k: len(x),
    "head": lambda x, k: x[0] if x else 0,
    "last": lambda x, k: x[-1] if x else 0,
    "count": lambda x, k: x.count(k),
}
EACH = {
    "add": lambda d, k: (d + k) % 10,
    "times": lambda d, k: d * k % 10,
    "complement": lambda d, k: 9 - d,
    "square": lambda d, k: d * d % 10,
    "halve": lambda d, k: d // 2,
    "modulo": lambda d, k: d % k,
}
DIGITS = {"repeat": lambda d, k: [d] * k, "range": lambda d, k: list(range(d))}
ARGUMENTS = {
    "add": range(1, 10),
    "times": range(2, 10),
    "modulo": range(2, 10),
    "keep_above": range(9),
    "keep_below": range(1, 10),
    "without": range(10),
    "rotate": range(1, 8),
    "take": range(1, 8),
    "drop": range(1, 8),
    "every": range(2, 5),
    "push": range(10),
    "append": range(10),
    "count": range(10),
    "repeat": range(2, 9),
}


def apply(name, k, value):
    """One operation on a list or an int; a TypeError where it doesn't take that."""
    if name in EACH:
        is_list = isinstance(value, list)
        return [EACH[name](d, k) for d in value] if is_list else EACH[name](value, k)
    own, kind = (LISTS, list) if name in LISTS else (DIGITS, int)
    if not isinstance(value, kind):
        raise TypeError(name)
    made = own[name](value, k)
    return made[:LONGEST] if isinstance(made, list) else made


def read(text):
    """Pairs of name and argument; a ValueError for what isn't a well-typed program."""
    steps = []
    for part in text.split(" | "):
        name, *rest = part.split(" ")
        if name not in {**LISTS, **EACH, **DIGITS} or bool(rest) != (name in ARGUMENTS):
            raise ValueError(part)
        if rest and (len(rest) > 1 or rest[0] not in map(str, ARGUMENTS[name])):
            raise ValueError(part)
        steps.append((name, int(rest[0]) if rest else None))
    if len(steps) > MOST:
        raise ValueError(text)
    value = []
    for name, k in steps:
        try:
            value = apply(name, k, value)
        except TypeError:
            raise ValueError(text) from None
    return steps


def run(text, value):
    """What a program's text makes of a list."""
    for name, k in read(text):
        value = apply(name, k, value)
    return value


def values(arrays):
    """Lists and ints from ``Values`` of NumPy arrays."""
    rows = zip(*map(list, arrays), strict=True)
    return [digits[:n].tolist() if is_list else int(digits[0]) for digits, n, is_list in rows]
