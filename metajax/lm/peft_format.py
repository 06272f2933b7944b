"""Low-rank factors in the files of the ``peft`` library: adapter_model.safetensors and its config.

The tensors are named by the Hugging Face model's modules. torch's linear layer is ``[out, in]``, so
``lora_A`` is A transposed, ``[rank, in]``, and ``lora_B`` is B transposed, ``[out, rank]``.

GPT-2 has query, key and value in one matrix, so they share one adapter. Three adapters are written
as one whose rank is the sum of theirs, with A side by side and B block-diagonal, which is the same
update. The file's metadata has the ranks of the blocks, so that reading gives the same three again.
An adapter that ``peft`` made for this matrix is read as three with the same A, each with its part
of B.
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from metajax._extras import import_extra
from metajax.files import replacing, write_atomically
from metajax.lm import _hf_tensors, _peft_config
from metajax.lm._folder import CheckpointError, open_tensors, read_tensor
from metajax.lm._hf_config import architecture_of
from metajax.lm.lora import Factors, _check_fits, _flat_factors
from metajax.models import TransformerConfig, stack_layers, unstack_layers

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_ADAPTER_NAME = re.compile(r"(?<=\.lora_[AB])\.[^.]+(?=\.weight$)")
_RANKS = "metajax_fused_ranks"


class _Module:
    """A Hugging Face module: its tensors' names, and path and sides of each matrix in it."""

    def __init__(self, matrix: _hf_tensors.Tensor) -> None:
        self.name, self.layer = matrix.name.removesuffix(".weight"), matrix.layer
        self.tensors = [f"{_PREFIX}{self.name}.lora_{side}.weight" for side in "AB"]
        block = "" if matrix.layer is None else f"block_{matrix.layer}/"
        self.parts = [(block + path, *shape) for path, shape in matrix.parts]
        self.columns = _side_by_side([n_out for *_, n_out in self.parts])
        self.sides = self.parts[0][1], self.columns[-1].stop


def _modules(config: TransformerConfig) -> list[_Module]:
    tensors = _hf_tensors.tensors(config)
    return [_Module(tensor) for tensor in tensors if tensor.parts[0][0].endswith("/kernel")]


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
        CheckpointError: no Hugging Face architecture has this configuration's parts; there are no
            factors, or some at a path where the model has no matrix; GPT-2's query, key and value
            have different scales, or any two factors different dropouts.
        ArgumentError: factors don't fit their matrix.
        ImportError: safetensors isn't installed.

    Example: see ``load_adapters``.
    """
    save = import_extra("safetensors.numpy", extra="lm").save
    modules = _modules(config)
    flat: dict[str, Any] = {
        path: jax.tree.map(np.asarray, factors)
        for path, factors in _flat_factors(unstack_layers(lora)).items()
    }
    dropouts = {factors.dropout for factors in flat.values()}
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
    if len(dropouts) > 1:
        raise CheckpointError(f"lora has dropouts of {sorted(dropouts)}: a file has one for all.")
    fields = _peft_config.fields(
        sizes,
        [module.name for module in modules],
        base_model_name_or_path=base_model_name or None,
        lora_dropout=dropouts.pop(),
        fan_in_fan_out=architecture_of(config) == "gpt2",  # whose own layer is [in, out]
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({_RANKS: json.dumps(fused)} if fused else {})
    with replacing(folder / _WEIGHTS) as temporary:
        temporary.write_bytes(save(tensors, metadata))
    write_atomically(folder / _CONFIG, json.dumps(fields, indent=2) + "\n")


def _fuse(module: _Module, found: list[Any]) -> tuple[np.ndarray, np.ndarray, float, list[int]]:
    """A ``[in, ranks]``, B ``[ranks, outs]``, their scale, and each part's rank."""
    present = [factors for factors in found if factors is not None]
    scale = present[0].scale
    for (path, *sides), factors in zip(module.parts, found, strict=True):
        if factors is None:
            continue
        _check_fits(factors, tuple(sides), path)
        if factors.scale != scale:
            raise CheckpointError(
                f"lora: {path!r} has scale {factors.scale}, another than {scale}, which the rest "
                f"of {module.name} has: one matrix there has one scale."
            )
    ranks = [0 if factors is None else factors.rank for factors in found]
    dtype = np.result_type(*(factors.b for factors in present))
    b = np.zeros((sum(ranks), module.sides[1]), dtype)
    for rows, columns, factors in zip(_side_by_side(ranks), module.columns, found, strict=True):
        if factors is not None:
            b[rows, columns] = factors.b
    return np.concatenate([factors.a for factors in present], axis=1), b, scale, ranks


def load_adapters(folder: str | Path, *, config: TransformerConfig) -> dict[str, Any]:
    """Factors from a folder that ``save_adapters``, or ``peft``'s ``save_pretrained``, wrote.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors. A copy of the head's own
            matrix, which ``peft`` writes beside an adapter of the head, is passed over.
        config: of the model that was adapted.

    Returns:
        Factors in the dtype in which they are stored, in the layout of ``config.scan``.

    Raises:
        CheckpointError: a file is missing or damaged; the config asks for what isn't supported;
            tensors are missing, unexpected or of another shape; or ``config.scan`` would stack
            layers that differ in what is adapted, rank or scale.
        ImportError: safetensors isn't installed.

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
    file = Path(folder) / _WEIGHTS
    adapter = _peft_config.AdapterConfig(Path(folder) / _CONFIG)
    with open_tensors(file) as opened:
        try:
            fused = _ranks(json.loads((opened.metadata() or {}).get(_RANKS, "{}")))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: its metadata can't be read: {error}.") from error
        names = {name: _full_name(name) for name in opened.keys()}  # noqa: SIM118
        stored = {full: read_tensor(file, opened, name) for name, full in names.items()}
    if len(stored) < len(names):
        raise CheckpointError(f"{file}: it holds several adapters; save each in a file of its own.")
    flat: dict[str, Factors] = {}
    for module in _modules(config):
        _pass_over(stored, file, module)
        if not (stored.keys() & module.tensors or adapter.targets(module.name, module.layer)):
            continue
        rank, scale = adapter.size(module.name)
        a, b = (side.T for side in _take(stored, file, module, rank))
        blocks = _blocks(b, module, fused)
        for (path, *_), rows, columns in zip(module.parts, blocks, module.columns, strict=True):
            sides = jnp.asarray(a[:, rows]), jnp.asarray(b[rows, columns])
            factors = Factors(*sides, scale, adapter.dropout)
            if factors.rank:
                flat[path] = factors
    if stored:
        raise CheckpointError(
            f"{file}: {min(stored)} is unexpected for this config. Adapters of matrices alone are "
            "read: not of embeddings, nor of a head that is tied to one, nor other weights."
        )
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


def _full_name(name: str) -> str:
    """A tensor's name as ``peft`` writes it, of one that a model's state dict may have."""
    return _PREFIX + _ADAPTER_NAME.sub("", name).removeprefix(_PREFIX)


def _pass_over(stored: dict[str, Any], file: Path, module: _Module) -> None:
    """Takes away the copy of the base weights that ``peft`` writes beside the head's adapter."""
    name = f"{_PREFIX}{module.name}.base_layer.weight"
    if module.name != "lm_head" or name not in stored:
        return
    if stored[name].shape != module.sides[::-1]:
        raise CheckpointError(
            f"{file}: {name} has shape {stored[name].shape}, the config asks for "
            f"{module.sides[::-1]}."
        )
    del stored[name]


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
    """The rows of B that belong to each part: its block's, or all where there are no blocks."""
    ranks = fused.get(module.name, [])
    if len(ranks) == len(module.parts) and sum(ranks) == b.shape[0]:
        blocks = _side_by_side(ranks)
        inside = sum(np.count_nonzero(b[at]) for at in zip(blocks, module.columns, strict=True))
        if inside == np.count_nonzero(b):
            return blocks
    return [slice(None)] * len(module.parts)


def _check_alike(flat: Mapping[str, Factors], file: Path, n_layers: int) -> None:
    for path, factors in flat.items():
        top, inner = path.split("/", 1)
        for layer in range(n_layers if top.startswith("block_") else 0):
            other = flat.get(f"block_{layer}/{inner}")
            if other is None or (other.rank, other.scale) != (factors.rank, factors.scale):
                raise CheckpointError(
                    f"{file}: {path!r} has rank {factors.rank} and scale {factors.scale}, unlike "
                    f"layer {layer}, so they can't be stacked; read them with config.scan=False."
                )
