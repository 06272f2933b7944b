"""How many examples are tried, what is done to valid files, and what must hold of every example.

In CI a few examples are tried, always the same. ``METAJAX_FUZZ_EXAMPLES=5000`` tries so many, new
ones each time; one that fails is printed with what reproduces it.
"""

import contextlib
import os
import resource
import time
import warnings

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import metajax

MORE = os.environ.get("METAJAX_FUZZ_EXAMPLES")


def examples(count):
    """The settings of a test that tries ``count`` examples in CI."""
    return settings(
        max_examples=int(MORE) if MORE else count,
        derandomize=not MORE,
        print_blob=bool(MORE),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, content):
    """A valid file, cut short, with changed, removed, added or repeated bytes; or random bytes."""
    data = bytearray(content)
    places = st.integers(0, len(data) - 1)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(places) % max(len(data), 1)
        match draw(st.sampled_from(["cut", "flip", "flip", "number", "remove", "add", "random"])):
            case "cut":
                del data[place:]
            case "flip" if data:
                data[place] ^= draw(st.integers(1, 255))
            case "number":
                value = draw(st.sampled_from([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1]))
                width = draw(st.sampled_from([1, 2, 4, 8]))
                order = draw(st.sampled_from(["big", "little"]))
                data[place : place + width] = (value % 2 ** (8 * width)).to_bytes(width, order)
            case "remove":
                del data[place : place + draw(st.integers(1, 64))]
            case "add":
                data[place:place] = draw(st.binary(min_size=1, max_size=64))
            case "random":
                data = bytearray(draw(st.binary(max_size=256)))
    return bytes(data)


NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
"""What JSON, as Python reads it, can hold."""


@st.composite
def changed(draw, content):
    """An object of which up to three fields, inner ones too, are gone or hold something else."""
    content = _copied(content)
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            name = draw(st.sampled_from(sorted(place) or [""]))
            inner = place.get(name)
            if not (isinstance(inner, dict) and inner and draw(st.booleans())):
                break
            place = inner
        if draw(st.booleans()) and draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = draw(VALUES)
    return content


def _copied(content):
    return {k: _copied(v) if isinstance(v, dict) else v for k, v in content.items()}


def listing(folder):
    """Every path below a folder and its size."""
    return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in folder.rglob("*")}


SECONDS, BYTES = 5, 1 << 30
"""What reading one file may take."""


@contextlib.contextmanager
def contained(folder):
    """What happens inside ends well or in a MetajaxError, soon, without much memory, and changes no
    file below the folder."""
    before, started, memory = listing(folder), time.monotonic(), most_memory()
    with warnings.catch_warnings():
        # A damaged file may make Pillow or NumPy warn before it is refused, or read after all.
        warnings.simplefilter("ignore")
        with contextlib.suppress(metajax.MetajaxError):
            yield
    assert listing(folder) == before
    assert time.monotonic() - started < SECONDS
    assert most_memory() - memory < BYTES


def most_memory():
    """The most bytes that this process has had; it doesn't fall again."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
