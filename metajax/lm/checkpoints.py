"""Hugging Face checkpoint folders, read into Flax parameters and written from them."""

import dataclasses
import importlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from metajax import _checks
from metajax.files import replacing, write_atomically
from metajax.lm import hf_config, hf_names
from metajax.lm._json_file import read_object
from metajax.lm.hf_config import CheckpointError
from metajax.models import Transformer, TransformerConfig
from metajax.models.transformer import unstack_layers
from metajax.types import Params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_pretrained(
    folder: str | Path, *, dtype: Any = None, scan: bool = True, remat: bool = False
) -> tuple[Transformer, Params]:
    """A model and its parameters from a Hugging Face folder.

    The folder has a config.json, and a model.safetensors or several with their index. Tensors are
    read one at a time: at most one copy of the parameters and one tensor are in memory.

    Args:
        folder: the folder; or a hub's id such as ``"Qwen/Qwen3-0.6B"``, which huggingface_hub
            downloads if it is installed.
        dtype: of parameters and computation; what config.json says if None.
        scan: whether the blocks are stacked; see ``TransformerConfig``.
        remat: whether blocks are computed again in the backward pass; as there.

    Returns:
        ``(model, params)``: ``model.apply({"params": params}, tokens)`` gives logits.

    Raises:
        CheckpointError: the folder isn't there and can't be downloaded; config.json lacks a field
            or asks for what isn't supported; a file is damaged; tensors are missing, unexpected or
            of another shape.

    Example:
        >>> import jax, tempfile
        >>> config = TransformerConfig.llama(vocab_size=16, width=8, n_layers=2, n_heads=2)
        >>> params = Transformer(config).init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(folder, config, params)
        ...     model, loaded = load_pretrained(folder)
        >>> model.config == config, bool((loaded["norm"]["scale"] == 1).all())
        (True, True)
    """
    folder = resolve(folder)
    file = folder / "config.json"
    config = hf_config.from_hf(read_object(file), str(file))
    kind = config.dtype if dtype is None else _checks.float_dtype("dtype", dtype)
    config = dataclasses.replace(config, dtype=kind, scan=scan, remat=remat)
    params = _read_params(folder, dataclasses.replace(config, scan=True), kind)
    return Transformer(config), params if scan else unstack_layers(params)


def _read_params(folder: Path, config: TransformerConfig, dtype: Any) -> Params:
    with ExitStack() as stack:
        stored = _stored(folder, stack, config)
        if config.n_layers > len(stored):  # before so many names are made
            raise CheckpointError(
                f"{folder}: config.json asks for {config.n_layers} blocks, but there are only "
                f"{len(stored)} tensors."
            )
        wanted = {tensor.name: tensor for tensor in hf_names.tensors(config)}
        repeated = config.tied and "lm_head.weight" in stored
        _check_names(folder, set(wanted), set(stored) - ({"lm_head.weight"} if repeated else set()))
        flat: dict[str, np.ndarray] = {}
        for name, tensor in wanted.items():
            file, opened, own_name = stored[name]
            value = _tensor(file, opened, own_name, tensor.shape)
            if tensor.transposed:
                value = value.T
            start = 0
            for path, shape in tensor.parts:
                part = value[..., start : start + shape[-1]]
                start += shape[-1]
                if tensor.layer is None:
                    flat[path] = np.array(part, dtype)
                else:
                    path = f"blocks/{path}"
                    if path not in flat:
                        flat[path] = np.empty((config.n_layers, *shape), dtype)
                    flat[path][tensor.layer] = part
        if repeated:
            file, opened, own_name = stored["lm_head.weight"]
            embedding = flat["embed/embedding"]
            head = _tensor(file, opened, own_name, embedding.shape)
            if not np.array_equal(head.astype(dtype), embedding):
                raise CheckpointError(
                    f"{file}: lm_head.weight differs from the embedding, to which config.json's "
                    "tie_word_embeddings ties it."
                )
    # One at a time, so that no second copy of all is there.
    on_device = {path: jnp.asarray(flat.pop(path)) for path in list(flat)}
    return flax.traverse_util.unflatten_dict(on_device, sep="/")


def resolve(folder: str | Path) -> Path:
    """A folder as it is; a hub's id as the folder that huggingface_hub downloads it to.

    Raises:
        CheckpointError: it isn't there and can't be downloaded.
    """
    path = _checks.path_of("folder", folder)
    if path.is_dir():
        return path
    name = str(folder)
    use_folder = "Download its files on a machine that can, and pass their folder."
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"folder: {name} is no folder, and no hub id such as 'Qwen/Qwen3-0.6B'."
        )
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise CheckpointError(
            f"folder: {name} is no folder here. As a hub id it needs huggingface_hub "
            f"(pip install huggingface_hub). {use_folder}"
        ) from None
    try:
        return Path(
            hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
        )
    except Exception as error:  # whatever the hub's client and its transport raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"folder: {name} is no folder here, and downloading it from the hub failed "
            f"({type(error).__name__}: {first}). {use_folder}"
        ) from error


def _stored(folder: Path, stack: ExitStack, config: TransformerConfig) -> dict[str, Any]:
    """By canonical name: the file, its opened form, and the name in it."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).exists():
        index = read_object(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise CheckpointError(f"{folder / INDEX}: the field 'weight_map' is missing.")
        if not all(isinstance(name, str) for name in index.values()):
            raise CheckpointError(f"{folder / INDEX}: weight_map must map names to files' names.")
        names = sorted(set(index.values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX} names files outside of its folder: {names}.")
    elif (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    else:
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}.")
    found: dict[str, Any] = {}
    for name in names:
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, which {INDEX} names.")
        try:
            opened = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or cut short: {error}.") from error
        for stored_name in opened.keys():  # noqa: SIM118, it isn't a dict
            known = hf_names.canonical(stored_name, config)
            if known is not None:
                found[known] = (file, opened, stored_name)
    return found


def _check_names(folder: Path, wanted: set[str], stored: set[str]) -> None:
    missing, unexpected = sorted(wanted - stored), sorted(stored - wanted)
    if missing or unexpected:
        listed = [
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise CheckpointError(f"{folder}: the tensors don't fit config.json; {'; '.join(listed)}.")


def _tensor(file: Path, opened: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    from safetensors import SafetensorError

    try:
        found = tuple(opened.get_slice(name).get_shape())
        if found == shape:
            return opened.get_tensor(name)
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{file}: {name} can't be read: {error}.") from error
    raise CheckpointError(f"{file}: {name} has shape {found}, config.json asks for {shape}.")


def save_pretrained(
    folder: str | Path,
    config: TransformerConfig,
    params: Params,
    *,
    dtype: Any = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that ``load_pretrained`` and transformers 4 and 5 read.

    Each file is written beside its place and then moved there, config.json last. What the folder
    holds besides, such as a tokenizer, stays.

    Args:
        folder: made if need be.
        config: the model's.
        params: its parameters, in the layout of ``config.scan``.
        dtype: of the stored tensors; the parameters' own if None.
        shard_bytes: the most bytes of one safetensors file, unless a single tensor has more.

    Raises:
        CheckpointError: no Hugging Face architecture has this configuration's parts, or a
            parameter is missing or of another shape.

    Example: see ``load_pretrained``.
    """
    from safetensors.numpy import save_file

    shard_bytes = _checks.positive_int("shard_bytes", shard_bytes)
    wanted = "a TransformerConfig"
    _checks.instance("config", config, TransformerConfig, wanted)
    try:
        own = params["embed"]["embedding"].dtype
    except (TypeError, KeyError, AttributeError):
        raise CheckpointError("params: embed/embedding is missing.") from None
    kind = own if dtype is None else _checks.float_dtype("dtype", dtype)
    fields = hf_config.to_hf(config, kind)
    flat, stacked = flax.traverse_util.flatten_dict(params, sep="/"), "blocks" in params
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[hf_names.Tensor]] = [[]]
    room = shard_bytes
    for tensor in hf_names.tensors(config):
        size = math.prod(tensor.shape) * kind.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    files = [
        WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for file, shard in zip(files, shards, strict=True):
        with replacing(folder / file) as temporary:
            content = {tensor.name: _gather(tensor, flat, stacked, kind) for tensor in shard}
            save_file(content, temporary, metadata={"format": "pt"})
    index = folder / INDEX
    if len(shards) == 1:
        index.unlink(missing_ok=True)
    else:
        weight_map = {
            t.name: file for file, shard in zip(files, shards, strict=True) for t in shard
        }
        total = sum(math.prod(t.shape) * kind.itemsize for shard in shards for t in shard)
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(index, json.dumps(content, indent=2) + "\n")
    write_atomically(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    for stale in folder.glob("model*.safetensors"):  # of an earlier save with other shards
        if stale.name not in files:
            stale.unlink()


def _gather(
    tensor: hf_names.Tensor, flat: Mapping[str, Any], stacked: bool, dtype: Any
) -> np.ndarray:
    """A tensor as it is stored, from parameters by their path."""
    parts = []
    for path, shape in tensor.parts:
        if tensor.layer is None:
            part = _leaf(flat, path)
        elif stacked:
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
