"""Checkpoints read into Flax parameters: Hugging Face folders, written too, and GGUF files."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax._extras import import_extra
from metajax.errors import ArgumentError
from metajax.files import replacing, write_atomically
from metajax.lm import _beside, _gguf, _hf_config, _hf_tensors
from metajax.lm._folder import (
    CheckpointError,
    JsonFile,
    Kind,
    checkpoint_errors,
    open_tensors,
    read_tensor,
    resolve,
)
from metajax.models import Transformer, TransformerConfig, unstack_layers
from metajax.types import Params

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_pretrained(
    folder: str | Path, *, dtype: Any = None, scan: bool = True, remat: bool = False
) -> tuple[Transformer, Params]:
    """A model and its parameters from a Hugging Face folder, or from a GGUF file.

    A folder has a config.json, and a model.safetensors or several with their index. Quantised
    tensors of a GGUF file become floats. Tensors are read one at a time: at most one copy of the
    parameters and one tensor are in memory.

    ``generate`` stops at the end tokens that config.json and generation_config.json name.

    Args:
        folder: the folder; or a hub's id such as ``"Qwen/Qwen3-0.6B"``, which is downloaded; or a
            file whose name ends in .gguf.
        dtype: of parameters and computation; if None what config.json says, float32 for GGUF. To
            train, take float32 or bfloat16: in float16 the square of a small gradient is zero,
            by which Adam divides.
        scan: whether the blocks are stacked; see ``TransformerConfig``.
        remat: whether the backward pass computes blocks again; see there.

    Returns:
        ``(model, params)``: ``model.apply({"params": params}, tokens)`` gives logits.

    Raises:
        CheckpointError: the folder isn't there and can't be downloaded; config.json, or a GGUF
            file's metadata, lacks a field or asks for what isn't supported; a file is damaged;
            tensors are missing, unexpected or of another shape, aren't floats of 16 bits or more,
            or don't fit into this machine's memory.
        ArgumentError: ``dtype`` isn't a floating-point dtype of 16 bits or more, or it is float64
            where JAX has that switched off.
        ImportError: safetensors, or gguf for such a file, isn't installed.

    Example:
        >>> import jax, tempfile
        >>> config = TransformerConfig.llama(vocab_size=16, width=8, n_layers=2, n_heads=2)
        >>> init = jax.jit(Transformer(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(folder, config, params)
        ...     model, loaded = load_pretrained(folder)
        >>> model.config == config, bool((loaded["norm"]["scale"] == 1).all())
        (True, True)
    """
    path = _checks.path_of("folder", folder)
    if path.suffix.lower() == ".gguf":
        file = _gguf.GGUFFile(path)
        config, read = file.config(), functools.partial(_read_gguf, file)
    else:
        path = resolve(folder)
        config = _hf_config.from_hf(JsonFile.read(path / "config.json"))
        stops = _beside.all_stop_tokens(path, config.vocab_size)
        config = dataclasses.replace(config, stop_tokens=stops, source=str(path.resolve()))
        read = functools.partial(_read_params, path)
    dtype = config.dtype if dtype is None else _checks.float_dtype("dtype", dtype)
    if dtype.itemsize > jnp.result_type(float).itemsize:  # JAX would take float32
        raise ArgumentError(
            f"dtype must have at most 32 bits unless jax_enable_x64 is set, got {dtype}."
        )
    config = dataclasses.replace(config, dtype=dtype, scan=scan, remat=remat)
    params = read(config)
    return Transformer(config), params if scan else unstack_layers(params)


def _read_gguf(file: _gguf.GGUFFile, config: TransformerConfig) -> Params:
    """A file's parameters in ``config.dtype``, with stacked blocks."""
    tensors = _tensors(file.path, "its metadata", config, file.stored, _gguf.NAMES)
    return _on_device(_stacked(tensors, config, file.read))


def _read_params(folder: Path, config: TransformerConfig) -> Params:
    """A folder's parameters in ``config.dtype``, with stacked blocks."""
    with ExitStack() as stack:
        stored = _stored(folder, stack, config)
        repeated = stored.pop("lm_head.weight", None) if config.tied else None
        tensors = _tensors(folder, "config.json", config, set(stored))
        flat = _stacked(tensors, config, lambda name, shape: read_tensor(*stored[name], shape))
        if repeated is not None:
            embedding = flat["embed/embedding"]
            head = read_tensor(*repeated, embedding.shape)
            if not np.array_equal(head.astype(config.dtype), embedding):
                raise CheckpointError(
                    f"{repeated.file}: lm_head.weight differs from the embedding, to which "
                    "config.json's tie_word_embeddings ties it."
                )
    return _on_device(flat)


def _stacked(
    tensors: list[_hf_tensors.Tensor],
    config: TransformerConfig,
    read: Callable[[str, tuple[int, ...]], np.ndarray],
) -> dict[str, np.ndarray]:
    """Parameters by their path, from tensors that ``read`` gives by name and shape."""
    flat: dict[str, np.ndarray] = {}
    for tensor in tensors:
        value = read(tensor.name, tensor.shape)
        if tensor.transposed:
            value = value.T
        start = 0
        for path, shape in tensor.parts:
            part = value[..., start : start + shape[-1]]
            start += shape[-1]
            if tensor.layer is None:
                flat[path] = np.asarray(part, config.dtype)
            else:
                path = f"blocks/{path}"
                if path not in flat:
                    flat[path] = np.empty((config.n_layers, *shape), config.dtype)
                flat[path][tensor.layer] = part
    return flat


def _on_device(flat: dict[str, np.ndarray]) -> Params:
    # One at a time, so that no second copy of all is there.
    on_device = {path: jnp.asarray(flat.pop(path)) for path in list(flat)}
    return flax.traverse_util.unflatten_dict(on_device, sep="/")


class _Stored(NamedTuple):
    """Where a tensor is."""

    file: Path
    opened: Any
    name: str


def _stored(folder: Path, stack: ExitStack, config: TransformerConfig) -> dict[str, _Stored]:
    """All tensors of a folder by their canonical name."""
    found: dict[str, _Stored] = {}
    weight_map = _weight_map(folder)
    for file in [folder / name for name in sorted(set(weight_map.values()))] or [folder / _WEIGHTS]:
        opened = stack.enter_context(open_tensors(file))
        for name in opened.keys():  # noqa: SIM118, it isn't a dict
            canonical = _hf_tensors.canonical(name, config)
            if canonical is None or weight_map.get(name, file.name) != file.name:
                continue
            if canonical in found:
                other = found[canonical]
                raise CheckpointError(
                    f"{file}: {name} is there twice, also as {other.name} in {other.file.name}."
                )
            found[canonical] = _Stored(file, opened, name)
    return found


def _weight_map(folder: Path) -> Mapping[str, str]:
    """The file of each tensor; empty where there is a single one."""
    if (folder / _INDEX).exists():
        return JsonFile.read(folder / _INDEX).need("weight_map", _WEIGHT_MAP)
    if not (folder / _WEIGHTS).exists():
        raise CheckpointError(f"{folder} holds neither {_WEIGHTS} nor {_INDEX}.")
    return {}


def _names_files(value: Any) -> bool:
    """Whether a weight map is of names of files in its folder."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and Path(name).name == name for name in value.values())
    )


_WEIGHT_MAP = Kind("an object from tensors to names of files beside it", _names_files)


def _tensors(
    where: Path,
    asking: str,
    config: TransformerConfig,
    stored: set[str],
    names: _hf_tensors.Names | None = None,
) -> list[_hf_tensors.Tensor]:
    """The tensors to read; a CheckpointError unless they are those that are stored, and fit into
    this machine's memory."""
    if config.n_layers > len(stored):  # before so many names are made
        raise CheckpointError(
            f"{where}: {asking} asks for {config.n_layers} blocks, but there are only "
            f"{len(stored)} tensors."
        )
    try:
        tensors = _hf_tensors.tensors(config, names)
    except (OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{where}: {asking} asks for sizes that no array can have: {error}"
        ) from error
    wanted = {tensor.name for tensor in tensors}
    differences = {"missing": sorted(wanted - stored), "unexpected": sorted(stored - wanted)}
    listed = [
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in differences.items()
        if names
    ]
    if listed:
        raise CheckpointError(f"{where}: the tensors don't fit {asking}; {'; '.join(listed)}.")
    needed = sum(_size(tensor, config.dtype.itemsize) for tensor in tensors)
    with checkpoint_errors():
        _checks.fits(f"{where}: its parameters in {config.dtype}", needed)
    return tensors


def save_pretrained(
    folder: str | Path,
    config: TransformerConfig,
    params: Params,
    *,
    dtype: Any = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that ``load_pretrained`` and transformers 4 and 5 read.

    Each file is written beside its place and then moved there, config.json last. Other files in the
    folder, such as a tokenizer's, stay.

    Args:
        folder: made if need be.
        config: the model's.
        params: its parameters, with blocks stacked or not.
        dtype: of the stored tensors; that of the embedding if None.
        shard_bytes: the most bytes of one safetensors file, unless a single tensor has more.

    Raises:
        CheckpointError: no Hugging Face architecture has this configuration's parts, or a
            parameter is missing or of another shape.
        ImportError: safetensors isn't installed.

    Example: see ``load_pretrained``.
    """
    save_file = import_extra("safetensors.numpy", extra="lm").save_file
    shard_bytes = _checks.positive_int("shard_bytes", shard_bytes)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    if dtype is None:
        dtype = jnp.result_type(_leaf(flat, "embed/embedding"))
    dtype = _checks.float_dtype("dtype", dtype)
    fields = _hf_config.to_hf(config, dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(_hf_tensors.tensors(config), dtype.itemsize, shard_bytes)
    files = [
        _WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    weight_map: dict[str, str] = {}
    for file, shard in zip(files, shards, strict=True):
        weight_map |= {tensor.name: file for tensor in shard}
        with replacing(folder / file) as temporary:
            content = {tensor.name: _gather(tensor, flat, dtype) for tensor in shard}
            save_file(content, temporary, metadata={"format": "pt"})
    if len(shards) == 1:
        (folder / _INDEX).unlink(missing_ok=True)
    else:
        total = sum(_size(tensor, dtype.itemsize) for shard in shards for tensor in shard)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(folder / _INDEX, json.dumps(content, indent=2) + "\n")
    fields |= _beside.write_again(folder, config)
    write_atomically(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    for stale in folder.glob("model*.safetensors"):  # of an earlier save with other shards
        if stale.name not in files:
            stale.unlink()


def _size(tensor: _hf_tensors.Tensor, itemsize: int) -> int:
    return math.prod(tensor.shape) * itemsize


def _shards(
    tensors: list[_hf_tensors.Tensor], itemsize: int, shard_bytes: int
) -> list[list[_hf_tensors.Tensor]]:
    """The tensors of each file, in order."""
    shards: list[list[_hf_tensors.Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        size = _size(tensor, itemsize)
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    return shards


def _gather(tensor: _hf_tensors.Tensor, flat: Mapping[str, Any], dtype: Any) -> np.ndarray:
    """A tensor as it is stored, from parameters by their path."""
    parts = []
    for path, shape in tensor.parts:
        if tensor.layer is None:
            part = _leaf(flat, path)
        elif f"blocks/{path}" in flat:
            part = _leaf(flat, f"blocks/{path}")[tensor.layer]
        else:
            part = _leaf(flat, f"block_{tensor.layer}/{path}")
        if part.shape != shape:
            raise CheckpointError(
                f"params: {path} has shape {part.shape}, config asks for {shape}."
            )
        parts.append(np.asarray(part, dtype))
    value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(value.T if tensor.transposed else value)


def _leaf(flat: Mapping[str, Any], path: str) -> Any:
    if path not in flat:
        raise CheckpointError(f"params: {path} is missing.")
    return flat[path]
