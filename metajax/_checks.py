"""Checks of arguments and shapes; their errors name the argument and its value."""

import math
import operator
import os
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from metajax.errors import ArgumentError, ArgumentTypeError
from metajax.types import MaskedBatch

_SHOWN = 200  # characters of a value in a message


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
        raise ArgumentError(f"{name} must be {kind}, got {shown(value)}.{suffix}") from None
    if number < minimum:
        raise ArgumentError(f"{name} must be at least {minimum}, got {number}.{suffix}")
    return number


def positive_float(name: str, value: Any) -> float:
    """Returns ``value`` as a float, or raises an ArgumentError that names it."""
    value = _float(name, value, "a positive number")
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"{name} must be a positive finite number, got {value!r}.")
    return value


def non_negative_float(name: str, value: Any) -> float:
    """The same, where 0 is accepted too."""
    value = _float(name, value, "a number of at least 0")
    if not (math.isfinite(value) and value >= 0):
        raise ArgumentError(f"{name} must be at least 0 and finite, got {value!r}.")
    return value


def between(name: str, value: Any, low: float, high: float, *, ends: str = "[]") -> float:
    """The same, where ``value`` must lie between two bounds, of which ``"(]"`` excludes the first,
    ``"[)"`` the second and ``"()"`` both.

    Example:
        >>> between("share", 1, 0, 1, ends="(]")
        1.0
    """
    number = _float(name, value, f"a number from {low} to {high}")
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):
        wanted = {
            "[]": f"be in [{low}, {high}]",
            "()": f"lie between {low} and {high}",
            "[)": f"be at least {low} and below {high}",
            "(]": f"be above {low} and at most {high}",
        }[ends]
        raise ArgumentError(f"{name} must {wanted}, got {value!r}.")
    return number


def _float(name: str, value: Any, kind: str) -> float:
    # float() would take a bool for a number, and read a text.
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ArgumentError(f"{name} must be {kind}, got {shown(value)}.")


def shown(value: Any) -> str:
    """A value as a message shows it: its representation, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def instance(name: str, value: Any, kind: Any, wanted: str) -> Any:
    """Returns ``value`` if it is of a type, or raises an ArgumentTypeError that names it."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(f"{name} must be {wanted}, got {_what(value)}.")
    return value


def path_of(name: str, value: Any) -> Path:
    """A path, with ``~`` resolved, or an ArgumentTypeError that names it."""
    instance(name, value, str | os.PathLike, "a path")
    try:
        path = Path(value)
        if "\0" not in str(path):
            return path.expanduser()
    except (TypeError, RuntimeError):  # a path of bytes, a home folder that isn't known
        pass
    raise ArgumentError(f"{name} must be a path, got {value!r}.")


def key(name: str, value: Any) -> Any:
    """The same, for one random key, typed or of the older form (uint32 words)."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None:
        typed = jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
        if typed or (dtype == np.uint32 and shape in ((2,), (4,))):
            return value
    raise ArgumentTypeError(
        f"{name} must be one random key such as jax.random.key(0), got {_what(value)}."
    )


def arrays(name: str, tree: Any, *, some: bool = False) -> Any:
    """Returns a PyTree whose leaves are arrays or numbers, or raises an ArgumentTypeError.

    With ``some`` it must have a leaf.
    """
    leaves = jax.tree.leaves(tree)
    if not all(map(is_array, leaves)):
        named, _ = jax.tree_util.tree_flatten_with_path(tree)
        path, leaf = next((path, leaf) for path, leaf in named if not is_array(leaf))
        place = f" at {jax.tree_util.keystr(path, simple=True, separator='/')!r}" if path else ""
        raise ArgumentTypeError(
            f"{name} must hold arrays or numbers alone, got {_what(leaf)}{place}."
        )
    if some and not leaves:
        raise ArgumentError(f"{name} must hold at least one array, got {shown(tree)}.")
    return tree


def leading_axis(name: str, tree: Any, axis: str) -> int:
    """The length, at least 1, of the leading axis that all leaves share, or an ArgumentError."""
    leaves = jax.tree.leaves(arrays(name, tree, some=True))
    lengths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ArgumentError(f"{name} must share one leading {axis} axis, got leaves of {shapes}.")
    return positive_int(f"the number of {axis}s of {name}", lengths.pop())


def is_array(leaf: Any) -> bool:
    """Whether JAX takes it for an array: one of its own or NumPy's, a number, or a shape."""
    if isinstance(leaf, bool | int | float | complex | np.bool_ | np.number):
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return False
    try:
        return jnp.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).kind not in "OSUMm"
    except TypeError:  # another library's dtype
        return False


def numbers(name: str, value: Any, wanted: str) -> np.ndarray:
    """``value`` as a NumPy array, or an ArgumentError where its rows differ in length."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"{name} must be {wanted}, got {shown(value)}: {error}.") from error


def levels(name: str, value: Any) -> np.ndarray:
    """Levels of difficulty ``[n]``, integers from 1 on, or an ArgumentError that names them."""
    found = numbers(name, value, "integers [n]")
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ArgumentError(f"{name} must be integers [n], got {shown(value)}.")
    if not found.size or found.min() < 1:
        raise ArgumentError(f"{name} must be at least 1, got {shown(value)}.")
    return found


def float_dtype(name: str, value: Any) -> Any:
    """A floating-point dtype of 16 bits or more, or an ArgumentError that names it."""
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise ArgumentError(f"{name} must be a dtype, got {shown(value)}.") from None
    # Narrower ones need scales, which nothing here has.
    if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
        raise ArgumentError(
            f"{name} must be a floating-point dtype of 16 bits or more, got {dtype}."
        )
    return dtype


def _what(value: Any) -> str:
    """What a value is, for a message: type and value, or dtype and shape."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {shown(value)}"


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
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ArgumentError(f"{name} must be one of {listed}, got {shown(value)}.")
    return value


def one_shape(support_inputs: Any, query_inputs: Any) -> None:
    """Raises an ArgumentError unless the examples of both sets have one shape.

    Example:
        >>> one_shape(jnp.zeros((5, 28, 28)), jnp.zeros((75, 28, 28)))
    """
    if support_inputs.shape[1:] != query_inputs.shape[1:]:
        raise ArgumentError(
            "support and query inputs must have examples of one shape, got "
            f"{support_inputs.shape} and {query_inputs.shape}."
        )


def value_and_aux(output: Any, *, name: str) -> tuple[jax.Array, Any]:
    """Splits a loss's result, ``loss`` or ``(loss, aux)``; the loss must be a float scalar."""
    value, aux = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not is_array(value):
        raise ArgumentTypeError(
            f"{name} must return a scalar, or a pair (scalar, aux), got {type(value).__name__}."
        )
    value = jnp.asarray(value)
    if value.shape != ():
        raise ArgumentError(
            f"{name} must return a scalar, got shape {value.shape}; average over the examples."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ArgumentError(f"{name} must return a real floating-point scalar, got {value.dtype}.")
    return value, aux


def known_labels(batch: Any, *, ndim: int = 1) -> np.ma.MaskedArray | None:
    """Class indices ``[..., examples]`` whose values are known, without padding; None where the
    batch has none, or they are being traced.

    Example:
        >>> known_labels((jnp.ones((2, 3)), jnp.array([0, 4]))).max()
        np.int32(4)
    """
    if isinstance(batch, MaskedBatch):
        targets, mask = batch.targets, batch.mask
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        targets, mask = batch[1], None
    else:
        return None
    if not jax.tree_util.all_leaves([targets]):
        return None  # a pair of something else
    for array in (targets, mask):
        if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
            return None
    if jnp.ndim(targets) != ndim or not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        return None
    labels = np.asarray(targets)
    padding = False if mask is None else ~np.asarray(mask).astype(bool)
    return np.ma.masked_array(labels, padding) if labels.size else None


def fits(what: str, size: int) -> None:
    """Raises an ArgumentError if so many bytes are more than this machine's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # the system doesn't tell
        return
    if size > memory:
        raise ArgumentError(
            f"{what} would take {size / 2**30:.1f} GiB, more than this machine's memory of "
            f"{memory / 2**30:.1f} GiB."
        )
