"""Libraries that only a part of metajax needs."""

import importlib
from typing import Any


def import_extra(module: str, *, extra: str) -> Any:
    """Imports a library of one of metajax's extras.

    Raises:
        ImportError: it isn't installed; the message names the extra that brings it.

    Example:
        >>> import_extra("json", extra="lm").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        raise ImportError(
            f"{library} is needed and can't be imported ({error}). Install it with "
            f"pip install 'metajax[{extra}]'."
        ) from error
