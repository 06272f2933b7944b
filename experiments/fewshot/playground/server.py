"""The playground's server: the page's files, and one route that answers. It keeps no state."""

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from experiments.common import RunError
from experiments.fewshot.playground.models import LEAST, MOST, SIZE

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 1 << 16
"""The longest request; six images as JSON have at most 20 kB."""

Answer = Callable[[np.ndarray, int, np.ndarray], Mapping[str, Any]]
"""``answer(examples, count, query)``, as ``program.answer_of`` with parameters; uint8 images."""


def app_of(answer: Answer, description: Mapping[str, Any]) -> Starlette:
    """The server's application.

    Args:
        answer: the compiled program.
        description: what the page is told of the models.
    """

    async def models(request: Request) -> JSONResponse:
        del request
        return JSONResponse(description)

    async def answered(request: Request) -> JSONResponse:
        examples, query = read_request(await _body(request))
        padded = np.zeros((MOST, SIZE, SIZE), np.uint8)
        padded[: len(examples)] = examples
        found = await run_in_threadpool(answer, padded, len(examples), query)
        return JSONResponse(
            {name: np.asarray(rows)[:, : len(examples)].tolist() for name, rows in found.items()}
        )

    async def refused(request: Request, error: Any) -> JSONResponse:
        del request
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[
            Mount(
                "/api",
                routes=[Route("/models", models), Route("/answer", answered, methods=["POST"])],
            ),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        exception_handlers={HTTPException: refused},
    )


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"The request is too large: more than {MOST_BYTES} bytes.")
    return body


def read_request(body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The images of a request, ``{"examples": [image, ...], "query": image}``.

    Returns:
        uint8 ``[classes, 28, 28]`` and ``[28, 28]``.

    Raises:
        HTTPException: 400, with a sentence that says what is wrong.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The request is no JSON.") from None
    if not isinstance(content, dict) or set(content) != {"examples", "query"}:
        raise HTTPException(400, 'The request must be an object with "examples" and "query".')
    examples = content["examples"]
    if not isinstance(examples, list) or not LEAST <= len(examples) <= MOST:
        number = f"; got {len(examples)}" if isinstance(examples, list) else ""
        raise HTTPException(
            400, f"There must be {LEAST} to {MOST} classes, with one example each{number}."
        )
    images = [_image(f"The example of class {'ABCDE'[i]}", each) for i, each in enumerate(examples)]
    return np.stack(images), _image("The new drawing", content["query"])


def _image(name: str, values: Any) -> np.ndarray:
    if not isinstance(values, list) or len(values) != SIZE * SIZE:
        number = f"; got {len(values)} numbers" if isinstance(values, list) else ""
        raise HTTPException(400, f"{name} must be an image of {SIZE} × {SIZE} numbers{number}.")
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise HTTPException(400, f"{name} must have whole numbers from 0 to 255.")
    if not any(values):
        raise HTTPException(400, f"{name} is empty: draw something.")
    return np.array(values, np.uint8).reshape(SIZE, SIZE)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; ``port=0`` takes any free one.

    Raises:
        RunError: it can't be had.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise RunError(
            f"port: {host}:{port} can't be listened at ({error}). Name another with --port"
        ) from error


def serve(app: Starlette, listening: socket.socket) -> None:
    """Serves until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
