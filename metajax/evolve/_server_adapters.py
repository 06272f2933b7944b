"""Low-rank factors handed to a server, as a folder that the library ``peft`` reads."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metajax import lm, trees
from metajax.errors import ArgumentError, ServerError
from metajax.evolve._http import Client
from metajax.models import TransformerConfig

_PATHS = {
    "vllm": ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "sglang": ("/load_lora_adapter", "/unload_lora_adapter"),
}
_KEPT = 2
"""How many adapters a server has: the gate compares two models."""


def adapter_publisher(
    client: Client, server: str, root: Path, config: TransformerConfig, base: Callable[[], str]
) -> Callable[[Any], str]:
    """Builds ``publish(lora) -> model name``.

    Each adapter is a folder below ``root``, which the server reads under the same path, and is
    named by its content. The server keeps the two that were published last.

    Args:
        client: the server.
        server: its kind: ``"vllm"``, ``"sglang"`` or ``"transformers"``.
        root: the folder of all adapters.
        config: the model's.
        base: gives the server's name of the base model.
    """
    root, kept = root.resolve(), []

    def publish(lora: Any) -> str:
        name = f"metajax-{_digest(lora)}"
        if name in kept:
            kept.remove(name)
        else:
            lm.save_adapters(root / name, lora, config=config, base_model_name=_folder(config))
            if server == "transformers":
                _link_base(root / name, config)
            else:
                _load(client, _PATHS[server][0], name, root / name)
        kept.append(name)
        while len(kept) > _KEPT:
            oldest = kept.pop(0)
            if server != "transformers":  # which lets go of a model that it doesn't need
                client.post(_PATHS[server][1], {"lora_name": oldest})
            shutil.rmtree(root / oldest)
        if server == "transformers":
            return str(root / name)
        return name if server == "vllm" else f"{base()}:{name}"

    return publish


def _load(client: Client, path: str, name: str, folder: Path) -> None:
    try:
        client.post(path, {"lora_name": name, "lora_path": str(folder)})
    except ServerError as error:
        if error.status == 400 and "already" in str(error):  # by a run that this one goes on from
            return
        hint = ""
        if error.status == 404:
            hint = (
                " Does it allow adapters to be loaded? vLLM needs --enable-lora and"
                " VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang --enable-lora."
            )
        raise ServerError(f"{error}{hint}", status=error.status) from error


def _digest(lora: Any) -> str:
    """Of the factors' paths, scales and numbers."""
    found = hashlib.sha256(str(jax.tree.structure(lora)).encode())
    for path, leaf in zip(trees.leaf_paths(lora), jax.tree.leaves(lora), strict=True):
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _folder(config: TransformerConfig) -> str:
    """Where the base model was loaded from."""
    return config.source or ""


def _link_base(folder: Path, config: TransformerConfig) -> None:
    """Puts links to the base model's files beside an adapter: ``transformers serve`` loads both."""
    source = Path(_folder(config)).resolve()
    if config.source is None or not source.is_dir():
        raise ArgumentError(
            "adapters: transformers serve needs the base model's folder beside each adapter, but "
            f"the model's config.source is {config.source!r}; load_pretrained sets it."
        )
    for file in source.iterdir():
        with contextlib.suppress(FileExistsError):
            (folder / file.name).symlink_to(file)
