"""Low-rank factors in the files of the ``peft`` library: adapter_model.safetensors and its config.

The tensors are named by the Hugging Face model's modules. torch's linear layer is ``[out, in]``, so
``lora_A`` is A transposed, ``[rank, in]``, and ``lora_B`` is B transposed, ``[out, rank]``.

GPT-2 has query, key and value in one matrix, so they share one adapter. Theirs are written as one
of the sum of their ranks, A stacked and B block-diagonal, which is the same update; the blocks'
ranks are noted in the file's metadata, so that reading gives the same three again. An adapter that
``peft`` made for this matrix is read as three with the same A, each with its part of B.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from metajax.files import replacing, write_atomically
from metajax.lm import hf_names, peft_config
from metajax.lm.hf_config import CheckpointError, architecture_of
from metajax.lm.lora import Factors
from metajax.models import TransformerConfig
from metajax.models.transformer import stack_layers

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_RANKS = "metajax_fused_ranks"


class _Module:
    """A Hugging Face module: its tensors' names, and path and sides of each matrix in it."""

    def __init__(self, matrix: hf_names.Tensor) -> None:
        self.name, self.layer = matrix.name.removesuffix(".weight"), matrix.layer
        self.tensors = [f"base_model.model.{self.name}.lora_{side}.weight" for side in "AB"]
        block = "" if matrix.layer is None else f"block_{matrix.layer}/"
        self.parts = [(block + path, *shape) for path, shape in matrix.parts]
        self.columns = _side_by_side([n_out for *_, n_out in self.parts])
        self.sides = self.parts[0][1], self.columns[-1].stop


def _modules(config: TransformerConfig) -> list[_Module]:
    return [_Module(t) for t in hf_names.tensors(config) if t.parts[0][0].endswith("/kernel")]


def _side_by_side(widths: list[int]) -> list[slice]:
    ends = [0, *itertools.accumulate(widths)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def save_adapters(
    folder: str | Path, lora: Any, *, config: TransformerConfig, base_model_name: str = ""
) -> None:
    """Writes factors as a folder that ``peft.PeftModel.from_pretrained`` reads, each file at once.

    Args:
        folder: made if need be.
        lora: factors of a ``Transformer``'s parameters, with layers stacked or not.
        config: the model's.
        base_model_name: the folder or hub's id of the base weights, for ``peft`` to find them.

    Raises:
        CheckpointError: a ValueError: no Hugging Face architecture has this configuration's parts,
            or the factors don't fit it: none at all, at a path where it has no matrix, of another
            shape, or of different scales for GPT-2's query, key and value.

    Example: see ``load_adapters``.
    """
    from safetensors.numpy import save

    flat, modules = _by_block(lora, config), _modules(config)
    tensors: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, float]] = {}
    fused: dict[str, list[int]] = {}
    for module in modules:
        found = [flat.pop(path, None) for path, *_ in module.parts]
        if all(factors is None for factors in found):
            continue
        a, b, scale, ranks = _fuse(module, found)
        for name, side in zip(module.tensors, (a, b), strict=True):
            tensors[name] = np.ascontiguousarray(side.T)
        sizes[module.name] = sum(ranks), scale
        if len(found) > 1:
            fused[module.name] = ranks
    if flat:
        raise CheckpointError(f"lora has {min(flat)!r}, where the model has no such matrix.")
    if not sizes:
        raise CheckpointError("lora has no factors to save.")
    fields = peft_config.fields(
        sizes,
        [module.name for module in modules],
        base_model_name_or_path=base_model_name or None,
        fan_in_fan_out=architecture_of(config) == "gpt2",  # whose own layer is [in, out]
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({_RANKS: json.dumps(fused)} if fused else {})
    with replacing(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(tensors, metadata))
    write_atomically(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def _by_block(lora: Any, config: TransformerConfig) -> dict[str, Factors]:
    flat: dict[str, Factors] = {}
    is_factors = lambda node: isinstance(node, Factors)
    for keys, factors in jax.tree.leaves_with_path(lora, is_leaf=is_factors):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not is_factors(factors):
            raise CheckpointError(f"lora has {type(factors).__name__} at {path!r}, not Factors.")
        own: Any = jax.tree.map(np.asarray, factors)
        if not path.startswith("blocks/"):
            flat[path] = own
            continue
        if {own.a.shape[0], own.b.shape[0]} != {config.n_layers}:
            raise CheckpointError(
                f"lora: the first axis of {path!r}, of shapes {own.a.shape} and {own.b.shape}, "
                f"must be of {config.n_layers} layers."
            )
        for layer in range(config.n_layers):
            one = Factors(own.a[layer], own.b[layer], own.scale)
            flat[path.replace("blocks", f"block_{layer}", 1)] = one
    return flat


def _fuse(module: _Module, found: list[Any]) -> tuple[np.ndarray, np.ndarray, float, list[int]]:
    """A ``[in, ranks]``, B ``[ranks, outs]``, their scale, and each part's rank."""
    present = [factors for factors in found if factors is not None]
    scale = present[0].scale
    for (path, *sides), factors in zip(module.parts, found, strict=True):
        if factors is None:
            continue
        a, b, rank = factors.a.shape, factors.b.shape, factors.rank
        if (a, b) != ((sides[0], rank), (rank, sides[1])):
            raise CheckpointError(
                f"lora: factors of shapes {a} and {b} don't fit {path!r} of shape {tuple(sides)}."
            )
        if factors.scale != scale:
            raise CheckpointError(
                f"lora: {path!r} has scale {factors.scale}, another than {scale}, which the rest "
                f"of {module.name} has: one matrix there has one scale."
            )
    ranks = [0 if factors is None else factors.rank for factors in found]
    b = np.zeros((sum(ranks), module.sides[1]), np.result_type(*(own.b for own in present)))
    for rows, columns, factors in zip(_side_by_side(ranks), module.columns, found, strict=True):
        if factors is not None:
            b[rows, columns] = factors.b
    return np.concatenate([factors.a for factors in present], axis=1), b, scale, ranks


def load_adapters(folder: str | Path, *, config: TransformerConfig) -> dict[str, Any]:
    """Factors from a folder that ``save_adapters``, or ``peft``'s ``save_pretrained``, wrote.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        config: of the model that was adapted.

    Returns:
        Factors in the dtype in which they are stored, in the layout of ``config.scan``.

    Raises:
        CheckpointError: a ValueError: a file is missing or damaged; the config asks for what isn't
            supported (see ``peft_config``); tensors are missing, unexpected or of another shape;
            or ``config.scan`` would stack layers that differ in what is adapted, rank or scale.

    Example:
        >>> import tempfile
        >>> from metajax.lm import lora
        >>> from metajax.models import Transformer
        >>> config = TransformerConfig.llama(vocab_size=16, width=8, n_layers=2, n_heads=2)
        >>> params = Transformer(config).init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
        >>> factors = lora.init(params, jax.random.key(1), rank=2, targets="query/kernel")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_adapters(folder, factors, config=config)
        ...     loaded = load_adapters(folder, config=config)
        >>> loaded["blocks"]["attention"]["query"]["kernel"].a.shape
        (2, 8, 2)
    """
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / WEIGHTS
    adapter = peft_config.AdapterConfig(Path(folder) / CONFIG)
    try:
        with safe_open(file, framework="numpy") as opened:
            fused = _ranks(json.loads((opened.metadata() or {}).get(_RANKS, "{}")))
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is missing or damaged: {error}.") from error
    flat: dict[str, Factors] = {}
    for module in _modules(config):
        if not (stored.keys() & module.tensors or adapter.targets(module.name, module.layer)):
            continue
        rank, scale = adapter.size(module.name)
        a, b = (side.T for side in _take(stored, file, module, rank))
        blocks = _blocks(b, module, fused)
        for (path, *_), rows, columns in zip(module.parts, blocks, module.columns, strict=True):
            factors = Factors(jnp.asarray(a[:, rows]), jnp.asarray(b[rows, columns]), scale)
            if factors.rank:
                flat[path] = factors
    if stored:
        raise CheckpointError(f"{file}: {min(stored)} is unexpected for this config.")
    if config.scan:
        _check_alike(flat, file, config.n_layers)
    lora = flax.traverse_util.unflatten_dict(flat, sep="/")
    return stack_layers(lora) if config.scan else lora


def _ranks(fused: Any) -> Mapping[str, list[int]]:
    """The ranks noted in a file's metadata; a ValueError where these are something else."""
    lists = isinstance(fused, dict) and all(isinstance(ranks, list) for ranks in fused.values())
    if not lists or any(type(rank) is not int or rank < 0 for r in fused.values() for rank in r):
        raise ValueError(f"its metadata has {_RANKS}={fused!r}, no object of lists of ranks")
    return fused


def _take(stored: dict[str, Any], file: Path, module: _Module, rank: int) -> list[np.ndarray]:
    shapes = ((rank, module.sides[0]), (module.sides[1], rank))
    for name, shape in zip(module.tensors, shapes, strict=True):
        if name not in stored:
            raise CheckpointError(f"{file}: {name} is missing.")
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{file}: {name} has shape {stored[name].shape}, the configs ask for {shape}."
            )
    return [stored.pop(name) for name in module.tensors]


def _blocks(b: np.ndarray, module: _Module, fused: Mapping[str, list[int]]) -> list[slice]:
    """The rows of B that belong to each part: its own block's, or all where there are no blocks."""
    ranks = fused.get(module.name, [])
    if len(ranks) == len(module.parts) and sum(ranks) == b.shape[0]:
        blocks = _side_by_side(ranks)
        inside = sum(np.count_nonzero(b[own]) for own in zip(blocks, module.columns, strict=True))
        if inside == np.count_nonzero(b):
            return blocks
    return [slice(None)] * len(module.parts)


def _check_alike(flat: Mapping[str, Factors], file: Path, n_layers: int) -> None:
    for path, own in flat.items():
        top, inner = path.split("/", 1)
        for layer in range(n_layers if top.startswith("block_") else 0):
            other = flat.get(f"block_{layer}/{inner}")
            if other is None or (other.rank, other.scale) != (own.rank, own.scale):
                raise CheckpointError(
                    f"{file}: {path!r} has rank {own.rank} and scale {own.scale}, unlike layer "
                    f"{layer}, so they can't be stacked; read them with config.scan=False."
                )
