"""The ``peft`` library's adapter_config.json: which modules have an adapter, its rank and scale."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metajax import _checks
from metajax.errors import ArgumentError
from metajax.lm._json_file import read_object
from metajax.lm.hf_config import CheckpointError

# What changes the function that an adapter computes, or trains other tensors.
_REFUSED = (
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


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        re.compile(rf"(.*\.)?({value})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _names_modules(value: Any) -> bool:
    texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return texts or _is_pattern(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_pattern, value))


def _is_layers(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value)))


_MODULES = "a regular expression or a list of names"
_TABLE = "an object from regular expressions to numbers"
_KINDS = {
    "target_modules": (_names_modules, _MODULES),
    "exclude_modules": (_names_modules, _MODULES),
    "layers_to_transform": (_is_layers, "an integer or a list of them"),
    "rank_pattern": (_is_table, _TABLE),
    "alpha_pattern": (_is_table, _TABLE),
}


class AdapterConfig:
    """The content of one adapter_config.json.

    Raises:
        CheckpointError: it is missing or damaged, or asks for what isn't supported: another
            ``peft_type`` than LoRA, a variant that computes something else, such as ``use_dora``,
            biases or other modules that are trained too.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fields = read_object(file)
        self._must_be_one_of("peft_type", ("LORA",), None)
        self._must_be_one_of("bias", ("none",), "none")
        self._must_be_one_of("init_lora_weights", _INITIALISATIONS, True)
        for name, (is_right, kind) in _KINDS.items():
            value = self.fields.get(name)
            if value is not None and not is_right(value):
                raise CheckpointError(f"{file}: {name} must be {kind}, got {value!r}.")
        for name in _REFUSED:
            if self.fields.get(name):
                raise self._refuse(name)

    def _refuse(self, name: str, accepted: str = "") -> CheckpointError:
        value = self.fields.get(name)
        return CheckpointError(f"{self.file}: {name}={value!r} isn't supported{accepted}.")

    def _must_be_one_of(self, name: str, accepted: tuple[Any, ...], default: Any) -> None:
        if self.fields.get(name, default) not in accepted:
            raise self._refuse(name, f", {' or '.join(map(repr, accepted))} is")

    def targets(self, name: str, layer: int | None) -> bool:
        """Whether the config says that a module has an adapter."""
        layers = self.fields.get("layers_to_transform")
        if layers is not None and layer not in ([layers] if isinstance(layers, int) else layers):
            return False
        excluded = _named(self.fields.get("exclude_modules"), name)
        return _named(self.fields.get("target_modules"), name) and not excluded

    def size(self, name: str) -> tuple[int, float]:
        """A module's rank, and what its update is multiplied by.

        Source of ``use_rslora``: Kalajdzievski 2023 (arXiv 2312.03732), alpha / sqrt(rank).
        """
        rank = self._own("rank_pattern", "r", name)
        alpha = self._own("alpha_pattern", "lora_alpha", name)
        try:
            rank = _checks.positive_int(f"{self.file}: r", rank)
            alpha = _checks.positive_float(f"{self.file}: lora_alpha", alpha)
        except ArgumentError as error:
            raise CheckpointError(str(error)) from None
        return rank, alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _own(self, patterns: str, default: str, name: str) -> Any:
        for pattern, value in (self.fields.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        return self.fields.get(default, 8)


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
    alphas = {name: _alpha(*size) for name, size in sizes.items()}
    pairs = Counter((rank, alphas[name]) for name, (rank, _) in sizes.items())
    (rank, alpha), _ = pairs.most_common(1)[0]
    rest = [name for name in every if name not in sizes]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, (own, _) in sizes.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "target_modules": sorted({_ending(name, rest) for name in sizes}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **others,
    }


def _alpha(rank: int, scale: float) -> float:
    # A whole number where that gives the same scale: peft declares it as an integer.
    whole = round(scale * rank)
    return whole if whole / rank == scale else scale * rank


def _named(endings: Any, name: str) -> bool:
    # As peft has it: a string is a regular expression of the name, a list is of its endings.
    if isinstance(endings, str):
        return re.fullmatch(endings, name) is not None
    return any(f".{name}".endswith(f".{ending}") for ending in endings or ())


def _ending(name: str, rest: list[str]) -> str:
    """The shortest ending of a module's name, in whole words, that none of the rest has."""
    words = name.split(".")
    endings = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    return next(ending for ending in endings if not any(_named([ending], other) for other in rest))
