"""The page without a server: both models' adaptation as one ONNX file, which the browser runs."""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from experiments.common import RunError
from experiments.common.disk import writing
from experiments.fewshot.playground.models import MOST, SIZE, Name, Trained
from experiments.fewshot.playground.plain import in_plain_operations
from experiments.fewshot.playground.program import answer_of
from metajax.files import read_text, write_atomically

PAGE = Path(__file__).parent / "page"
INPUTS = ("examples", "count", "query")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web that the page needs."""


def onnx_of(models: Mapping[Name, Trained]) -> Any:
    """``program.answer_of`` of trained models as an ONNX model.

    Its inputs are ``examples`` and ``query`` (float32, 0 to 255) and ``count`` (int32); its outputs
    have the models' names.
    """
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)  # its own examples lack libraries
    import jax2onnx  # slow, and needed here alone  # pyright: ignore[reportMissingImports]

    answer = answer_of({name: each.learner for name, each in models.items()})
    params = {name: each.params for name, each in models.items()}
    shapes = [
        jax.ShapeDtypeStruct((MOST, SIZE, SIZE), np.float32),
        jax.ShapeDtypeStruct((), np.int32),
        jax.ShapeDtypeStruct((SIZE, SIZE), np.float32),
    ]
    traced = jax.make_jaxpr(lambda *inputs: answer(params, *inputs))(*shapes)
    # Once more, since jax2onnx changes functions of jax.numpy that metajax calls when it traces.
    plain = jax.make_jaxpr(in_plain_operations(traced))(*shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it asks for float64 and does without
        model = jax2onnx.to_onnx(
            core.jaxpr_as_fun(plain),
            inputs=shapes,
            model_name="playground",
            input_names=list(INPUTS),
            output_names=sorted(models),  # as JAX orders a dict
        )
    _drop_unused(model.graph)
    return model


def _drop_unused(graph: Any) -> None:
    """Leaves out the constants of a loop's body that nothing uses: jax2onnx 0.17 keeps them."""
    for body in (each.g for node in graph.node for each in node.attribute if each.HasField("g")):
        used = {name for node in body.node for name in node.input}
        used |= {output.name for output in body.output}
        kept = [each for each in body.initializer if each.name in used]
        del body.initializer[:]
        body.initializer.extend(kept)


def write(
    folder: Path, models: Mapping[Name, Trained], description: Mapping[str, Any], runtime: Path
) -> None:
    """Writes the page, the models and onnxruntime-web into a folder that any server can serve.

    Args:
        folder: where to; files in it are replaced.
        models: the trained models.
        description: what the page is told of them.
        runtime: onnxruntime-web's folder ``dist``.

    Raises:
        RunError: a file of the runtime is missing, or the folder can't be written.
    """
    missing = [name for name in RUNTIME if not (runtime / name).is_file()]
    if missing:
        raise RunError(f"runtime: {runtime} has no {missing[0]}; make playground-static gets it")
    model = onnx_of(models).SerializeToString()
    page = read_text(PAGE / "index.html").replace("./server.js", "./browser.js")
    with writing(folder):
        (folder / "runtime").mkdir(parents=True, exist_ok=True)
        for file in PAGE.iterdir():
            if file.name not in ("index.html", "server.js"):
                shutil.copyfile(file, folder / file.name)
        for name in RUNTIME:
            shutil.copyfile(runtime / name, folder / "runtime" / name)
        write_atomically(folder / "index.html", page)
        write_atomically(folder / "models.json", json.dumps(description))
        (folder / "model.onnx").write_bytes(model)
