"""The scoring endpoint: ``GET /healthz``, ``/readyz``, ``/metadata`` and ``POST /score``, as a bare ASGI application.

One thread asks the model, since not every engine takes two callers; a few requests may wait for it, and the rest are
told to come again.
"""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from device_agent.adapters.bare_http import (
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    answer_json,
    headers_of,
    read_body,
)
from device_agent.adapters.listening import Listener, listen_on_port
from device_agent.core.payload import read_npz
from device_agent.errors import AgentError, InferenceError, UnreadableReadingError
from edge_module.scoring import Scored, Scorer

NPZ = "application/x-npz"
# What a large picture takes as JSON, with room to spare.
BODY_BYTES_MAX = 64 * 1024 * 1024
# Requests that wait for the model beside the one it answers. The 2017 service had the same number.
WAITING_MAX = 10
GOODBYE_S = 3
_ZIP_MAGIC = b"PK\x03\x04"

_log = logging.getLogger("edge_module")


@dataclass(frozen=True, slots=True)
class Bounds:
    body_bytes_max: int = BODY_BYTES_MAX
    waiting_max: int = WAITING_MAX


class ScoringApp:
    """The application. `start` loads the model while the server answers already; until then it is alive, not ready."""

    def __init__(self, load: Callable[[], Scorer], bounds: Bounds | None = None) -> None:
        self._load = load
        self._bounds = bounds or Bounds()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._scorer: Scorer | None = None
        self._metadata: dict[str, Any] = {}
        self._in_flight = 0
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/healthz": ("GET", self._health),
            "/readyz": ("GET", self._ready),
            "/metadata": ("GET", self._describe),
            "/score": ("POST", self._score),
        }

    async def start(self) -> None:
        """Load the model; raises what `load` raises."""
        loop = asyncio.get_running_loop()
        scorer = await loop.run_in_executor(self._worker, self._load)
        self._metadata = scorer.metadata()
        self._scorer = scorer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._handler(scope)(scope, receive, send)
        except RefusedError as refused:
            await answer_json(send, refused.status, {"error": refused.text}, refused.headers)

    def _handler(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        route = self._routes.get(scope["path"])
        if route is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND, f"There is no {scope['path']}; there are {', '.join(self._routes)}."
            )
        method, handler = route
        if scope["method"] not in ((method, "HEAD") if method == "GET" else (method,)):
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{scope['path']} takes {method}.", allow=method)
        return handler

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  one form for all
        await answer_json(send, HTTPStatus.OK, {"status": "alive"})

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self._ready_scorer()
        await answer_json(send, HTTPStatus.OK, {"status": "ready"})

    async def _describe(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self._ready_scorer()
        await answer_json(send, HTTPStatus.OK, self._metadata)

    async def _score(self, scope: Scope, receive: Receive, send: Send) -> None:
        scorer = self._ready_scorer()
        headers = headers_of(scope)
        if self._in_flight > self._bounds.waiting_max:
            # Said before the body is read: it is not wanted now.
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, f"{self._bounds.waiting_max} requests wait already.", retry_after="1"
            )
        self._in_flight += 1
        try:
            body = await read_body(headers, receive, self._bounds.body_bytes_max, "A request")
            scored = await self._scored(scorer, body)
            encoded, kind = _encoded(scored, headers)
        finally:
            self._in_flight -= 1
        timing = {"content-type": kind, "server-timing": f"run;dur={scored.duration_ms:.4f}"}
        await answer(send, HTTPStatus.OK, encoded, timing)

    async def _scored(self, scorer: Scorer, body: bytes) -> Scored:
        loop = asyncio.get_running_loop()
        try:
            if body.startswith(_ZIP_MAGIC):
                tensors = read_npz(body, self._bounds.body_bytes_max)
                return await loop.run_in_executor(self._worker, scorer.score_tensors, tensors)
            return await loop.run_in_executor(self._worker, scorer.score_text, body)
        except UnreadableReadingError as err:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"This is no request: {err.message}.") from err
        except InferenceError as err:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{err.message[:1].upper()}{err.message[1:]}.") from err
        except AgentError as err:
            raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, err.message) from err
        except Exception as err:
            _log.exception("A request tripped.")
            raise RefusedError(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"The request tripped: {type(err).__name__}; the log has more."
            ) from err

    def _ready_scorer(self) -> Scorer:
        if self._scorer is None:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The model is being loaded.", retry_after="1")
        return self._scorer


def _encoded(scored: Scored, headers: dict[str, str]) -> tuple[bytes, str]:
    """The body and its media type; raises RefusedError for what neither JSON nor NumPy can say."""
    try:
        if NPZ in headers.get("accept", ""):
            file = io.BytesIO()
            np.savez(file, **{f"output.{name}": _plain(array) for name, array in scored.tensors.items()})  # type: ignore[arg-type]
            return file.getvalue(), NPZ
        return msgspec.json.encode(scored.result, enc_hook=_json_value) + b"\n", "application/json"
    except (TypeError, ValueError) as err:
        raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, f"The answer cannot be written down: {err}.") from err


def _plain(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if array.dtype.kind == "O":
        if not all(isinstance(value, str) for value in array.flat):
            raise TypeError("it holds Python objects, which no .npz file carries")
        return array.astype(str)
    return array


def _json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def serve_scoring(load: Callable[[], Scorer], port: int, bounds: Bounds | None = None) -> None:
    """Serve on every address of the container until SIGTERM; raises what `load` raises, once the server is down.

    Raises:
        ConfigurationError: the port is taken.
    """
    # On every address: the container's network decides who reaches it.
    listener = listen_on_port(f"0.0.0.0:{port}", has_token=True)
    try:
        asyncio.run(_serve(ScoringApp(load, bounds), listener))
    finally:
        listener.close()


async def _serve(app: ScoringApp, listener: Listener) -> None:
    import uvicorn

    configuration = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        proxy_headers=False,
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GOODBYE_S,
    )
    server = uvicorn.Server(configuration)
    serving = asyncio.create_task(server.serve(sockets=[listener.duplicate()]))
    loading = asyncio.create_task(app.start())
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        # Told to stop before there was anything to serve.
        loading.cancel()
    elif loading.exception() is not None:
        server.should_exit = True
    else:
        _log.info("Ready for requests on port %d.", listener.port)
    await serving
    if not loading.cancelled() and loading.done():
        loading.result()
