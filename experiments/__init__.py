"""Studies made with metajax, a folder each."""

import importlib.util

_missing = [
    name
    for name in ("matplotlib", "orbax", "tqdm", "tyro")
    if importlib.util.find_spec(name) is None
]
if _missing:
    raise ImportError(
        f"The experiments need {', '.join(_missing)}, which metajax alone doesn't bring. Install it"
        " with pip install 'metajax[experiments]'."
    )
