"""JSON over HTTP: requests at the same time, and again where that may help."""

import contextlib
import http.client
import json
import socket
import threading
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from metajax import _checks
from metajax.errors import ArgumentError, ServerError

_CONNECT_SECONDS = 10
_LONGEST_PAUSE = 30.0
_SHOWN = 500
"""Characters of a server's message in an error."""


class Client:
    """A server's address, and how patient one is with it.

    A request is sent again after a connection error, a timeout and the status 408, 429 or 5xx,
    after pauses of 0.5, 1, 2 ... 30 seconds, or as many as the server's Retry-After says.

    Args:
        url: such as ``"http://localhost:8000"``; with ``/v1`` at its end or without.
        timeout: seconds without a byte of an answer.
        retries: how often a request is sent again.
        api_key: sent as a bearer token; nothing if None.

    Raises:
        ArgumentError: ``url`` isn't one, or a number is out of its bounds.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, api_key: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ArgumentError(f"url must be like 'http://localhost:8000', got {url!r}.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._host, self._port, self._secure = parts.hostname, parts.port, parts.scheme == "https"
        self._path = urllib.parse.urlsplit(self.url).path
        self._timeout = _checks.positive_float("timeout", timeout)
        self._retries = _checks.non_negative_int("retries", retries)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._read(path, self._send("GET", path, None, _Open()))

    def post(self, path: str, body: Any) -> str:
        """The text of an answer."""
        return self._send("POST", path, body, _Open())

    def post_all(self, path: str, bodies: Sequence[Any], workers: int) -> list[Any]:
        """The JSON of the answers to many requests, ``workers`` at a time.

        An error of one ends all, and so does Ctrl-C.
        """
        running = _Open()
        pool = ThreadPoolExecutor(workers)
        try:
            futures = [pool.submit(self._send, "POST", path, body, running) for body in bodies]
            for future in as_completed(futures):
                future.result()
            return [self._read(path, future.result()) for future in futures]
        except BaseException:
            running.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, path: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServerError(f"{self.url}{path} answered no JSON: {text[:_SHOWN]!r}.") from error

    def _send(self, method: str, path: str, body: Any, running: "_Open") -> str:
        content = None if body is None else json.dumps(body).encode()
        status, problem = None, ""
        for attempt in range(self._retries + 1):
            pause = min(0.5 * 2**attempt, _LONGEST_PAUSE)
            try:
                status, asked, text = self._once(method, path, content, running)
            except (OSError, http.client.HTTPException) as error:
                status, problem = None, f"{type(error).__name__}: {error}"
            else:
                if status < 400:
                    return text
                problem = f"status {status}: {text[:_SHOWN]}"
                if status < 500 and status not in (408, 429):
                    raise ServerError(
                        f"{self.url}{path} refused a request: {problem}", status=status
                    )
                with contextlib.suppress(TypeError, ValueError):  # none, or a date
                    pause = min(float(asked), _LONGEST_PAUSE)
            if attempt < self._retries and running.ended.wait(pause):
                break
        raise ServerError(
            f"{self.url}{path} gave no answer in {self._retries + 1} tries; the last: {problem}",
            status=status,
        )

    def _once(
        self, method: str, path: str, content: bytes | None, running: "_Open"
    ) -> tuple[int, Any, str]:
        """Status, Retry-After and text of an answer."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(_CONNECT_SECONDS, self._timeout))
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout)
            with running.holds(connection.sock):
                connection.request(method, self._path + path, content, self._headers)
                answer = connection.getresponse()
                text = answer.read().decode(errors="replace")
            return answer.status, answer.getheader("Retry-After"), text
        finally:
            connection.close()


class _Open:
    """The sockets of requests that belong together, so that all can be ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._lock, self._sockets = threading.Lock(), set[socket.socket]()

    @contextlib.contextmanager
    def holds(self, sock: socket.socket):
        with self._lock:
            if self.ended.is_set():
                raise OSError("ended")
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def end(self) -> None:
        """Wakes all that wait for an answer or for another try."""
        self.ended.set()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
