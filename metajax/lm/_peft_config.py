"""The ``peft`` library's adapter_config.json: which modules have an adapter, its rank and scale."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metajax import _checks
from metajax._extras import import_extra
from metajax.errors import ArgumentError
from metajax.lm._folder import INTEGER, NUMBER, TEXT, TEXTS, CheckpointError, JsonFile, Kind

# What changes the function that an adapter computes, or trains other tensors.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# The others subtract the initial update from the base weights, so that factors alone don't do.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def _compiled(pattern: str) -> Any:
    """A pattern in RE2. Python's own engine goes back and tries again, for which a stranger's
    pattern could keep it busy for ever; RE2 doesn't, and has no look-around."""
    re2 = import_extra("re2", extra="lm")
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _matches(pattern: str, name: str) -> bool:
    """Whether a whole name matches."""
    return _compiled(pattern).fullmatch(name) is not None


def _ending_with(pattern: str) -> str:
    """The pattern of names that end with what a pattern matches."""
    return rf"(.*\.)?({pattern})"


def _is_pattern(value: Any) -> bool:
    if not TEXT.holds(value):
        return False
    try:
        _compiled(_ending_with(value))
    except (import_extra("re2", extra="lm").error, UnicodeError):
        return False
    return True


_MODULES = Kind(
    "a regular expression of RE2 or a list of names",
    lambda value: TEXTS.holds(value) or _is_pattern(value),
)
_PATTERNS = Kind(
    "an object from regular expressions of RE2 to numbers",
    lambda value: isinstance(value, dict) and all(map(_is_pattern, value)),
)
_LAYERS = Kind(
    "an integer or a list of them",
    lambda value: all(map(INTEGER.holds, value if isinstance(value, list) else [value])),
)


class AdapterConfig:
    """One adapter_config.json.

    Attributes:
        dropout: of the inputs of every adapter, in training.

    Raises:
        CheckpointError: it is missing or damaged, or asks for what isn't supported: another
            ``peft_type`` than LoRA, a variant that computes something else, such as ``use_dora``,
            biases or other modules that are trained too.
    """

    def __init__(self, path: Path) -> None:
        self._file = JsonFile.read(path)
        self._file.one_of("peft_type", ("LORA",))
        self._file.one_of("bias", ("none",), "none")
        self._file.one_of("init_lora_weights", _INITIALISATIONS, True)
        for field in _UNSUPPORTED:
            if self._file.fields.get(field):
                raise self._file.unsupported(field, self._file.fields[field])
        self._targets = self._file.get("target_modules", _MODULES)
        self._excluded = self._file.get("exclude_modules", _MODULES)
        layers = self._file.get("layers_to_transform", _LAYERS)
        self._layers = [layers] if isinstance(layers, int) else layers
        self._patterns = {
            field: self._file.get(field, _PATTERNS, {})
            for field in ("rank_pattern", "alpha_pattern")
        }
        dropout = self._file.get("lora_dropout", NUMBER, 0.0)
        try:
            name = f"{self._file.name}: lora_dropout"
            self.dropout = _checks.between(name, dropout, 0, 1, ends="[)")
        except ArgumentError as error:
            raise CheckpointError(str(error)) from None

    def targets(self, module: str, layer: int | None) -> bool:
        """Whether the config says that a module has an adapter."""
        if _named(self._excluded, module):
            return False
        if str(self._targets).lower() == "all-linear":
            return module != "lm_head"
        by_ending = isinstance(self._targets, list) and module not in self._targets
        if by_ending and self._layers and layer not in self._layers:
            return False
        return _named(self._targets, module)

    def size(self, module: str) -> tuple[int, float]:
        """A module's rank, and what its update is multiplied by.

        Source of ``use_rslora``: Kalajdzievski 2023 (arXiv 2312.03732), alpha / sqrt(rank).
        """
        rank = self._first_match("rank_pattern", module, self._file.get("r", NUMBER, 8))
        alpha = self._first_match("alpha_pattern", module, self._file.get("lora_alpha", NUMBER, 8))
        try:
            rank = _checks.positive_int(f"{self._file.name}: r", rank)
            alpha = _checks.positive_float(f"{self._file.name}: lora_alpha", alpha)
        except ArgumentError as error:
            raise CheckpointError(str(error)) from None
        return rank, alpha / (math.sqrt(rank) if self._file.fields.get("use_rslora") else rank)

    def _first_match(self, field: str, module: str, default: Any) -> Any:
        for pattern, value in self._patterns[field].items():
            if _matches(_ending_with(pattern), module):
                return value
        return default


def fields(
    sizes: Mapping[str, tuple[int, float]], every: Iterable[str], **others: Any
) -> dict[str, Any]:
    """The content of an adapter_config.json.

    Args:
        sizes: rank and scale of each module with an adapter.
        every: the names of all modules that could have one.
        **others: further fields.

    Example:
        >>> written = fields({"0.up": (2, 1.0), "1.up": (4, 1.0)}, ["0.up", "1.up", "0.down"])
        >>> written["target_modules"], written["r"], written["rank_pattern"]
        (['up'], 2, {'1.up': 4})
    """
    ranks = {module: rank for module, (rank, _) in sizes.items()}
    alphas = {module: _alpha(*size) for module, size in sizes.items()}
    pairs = Counter((ranks[module], alphas[module]) for module in sizes)
    (rank, alpha), _ = pairs.most_common(1)[0]
    rest = [module for module in every if module not in sizes]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted({_ending(module, rest) for module in sizes}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **others,
    }


def _alpha(rank: int, scale: float) -> float:
    # A whole number where that gives the same scale: peft declares it as an integer.
    whole = round(scale * rank)
    return whole if whole / rank == scale else scale * rank


def _named(endings: Any, module: str) -> bool:
    # As peft has it: a string is a regular expression of the name, a list is of its endings.
    if isinstance(endings, str):
        return _matches(endings, module)
    return any(f".{module}".endswith(f".{ending}") for ending in endings or ())


def _ending(module: str, rest: list[str]) -> str:
    """The shortest ending of a module's name, in whole words, that none of the rest has."""
    words = module.split(".")
    endings = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    return next(ending for ending in endings if not any(_named([ending], other) for other in rest))
