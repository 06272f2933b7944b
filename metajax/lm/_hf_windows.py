"""The sliding windows of Hugging Face's config.json, of transformers 4 and 5."""

from typing import Any

from metajax.lm._folder import FLAG, INTEGER, LIST, CheckpointError, JsonFile
from metajax.models import TransformerConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 10_000


def read(file: JsonFile, architecture: str, n_layers: int, longest: int) -> tuple[int, ...]:
    """How many tokens each layer sees, 0 for all; empty where no layer has a window.

    A window that hides nothing of the ``longest`` text isn't one, but in Gemma 3, whose layers with
    a window have other rotary positions too.

    Raises:
        CheckpointError: a window isn't positive, or layers are of another kind or number.

    Example:
        >>> fields = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
        >>> read(JsonFile(fields, "config.json"), "qwen2", 3, 16)
        (0, 8, 8)
    """
    window = _window(file, architecture)
    if window is not None and window < 1:
        raise file.unsupported("sliding_window", window, "a positive number is")
    # Mistral has one kind of layer, whatever its file says.
    types = None if architecture == "mistral" else file.get("layer_types", LIST)
    size = 0
    if window is not None and (window < longest or architecture == "gemma3_text"):
        size = window
    if types is None:
        if not size and architecture == "gemma3_text":  # whose pattern asks for one
            raise file.unsupported("sliding_window", window, "a positive number is")
        if not size:
            return ()
        if n_layers > _MOST_LAYERS:
            raise file.unsupported("num_hidden_layers", n_layers, f"{_MOST_LAYERS} or fewer are")
        return tuple(size * _is_local(file, architecture, layer) for layer in range(n_layers))
    for kind in types:
        if kind != _FULL and (kind != _SLIDING or window is None):
            also = "" if window is None else f" or {_SLIDING!r}"
            raise file.unsupported("layer_types", kind, f"{_FULL!r}{also} is")
    if len(types) != n_layers:
        raise CheckpointError(
            f"{file.name}: layer_types must name num_hidden_layers={n_layers} layers, got "
            f"{len(types)}."
        )
    return tuple(size if kind == _SLIDING else 0 for kind in types) if size else ()


def _window(file: JsonFile, architecture: str) -> int | None:
    if architecture == "llama":  # which has none; what else its file means isn't known
        file.one_of("use_sliding_window", (False,), False)
        return file.one_of("sliding_window", (None,))
    if architecture.startswith("qwen") and not file.get("use_sliding_window", FLAG, False):
        return None
    # null means none; where the field is missing, transformers takes a default.
    default = None if "sliding_window" in file.fields else 4096
    return file.get("sliding_window", INTEGER, default)


def _is_local(file: JsonFile, architecture: str, layer: int) -> bool:
    """Whether a layer has the window, where ``layer_types`` is missing."""
    if architecture == "mistral":
        return True
    if architecture == "gemma3_text":
        pattern = file.get("_sliding_window_pattern", INTEGER, 6)
        pattern = file.get("sliding_window_pattern", INTEGER, pattern)
        if pattern < 1:
            raise file.unsupported("sliding_window_pattern", pattern, "a positive number is")
        return (layer + 1) % pattern != 0
    return layer >= file.get("max_window_layers", INTEGER, 28)


def fields(config: TransformerConfig, architecture: str) -> dict[str, Any]:
    """The fields that ``read`` reads.

    Example:
        >>> sizes = dict(vocab_size=8, width=8, n_layers=2, n_heads=2)
        >>> fields(TransformerConfig.llama(**sizes, windows=(4,)), "mistral")
        {'sliding_window': 4}
    """
    window = max(config.windows, default=None)
    if architecture == "mistral":
        return {"sliding_window": window}
    windows = config.windows or (0,) * config.n_layers
    types = [_SLIDING if window else _FULL for window in windows]
    # The pattern, and the first layer with a window, are for version 4 before it had layer_types.
    if architecture == "gemma3_text":
        return {
            "sliding_window": window or config.max_length,
            "sliding_window_pattern": [*types, _FULL].index(_FULL) + 1,
            "layer_types": types,
        }
    if window is None:
        return {}
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": types.index(_SLIDING),
        "layer_types": types,
    }
