"""Readings that programs on the same machine push, over HTTP on a port or a unix socket."""

import asyncio
import contextlib
import hmac
import logging
import secrets
import threading
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

from device_agent.adapters.bare_http import (
    BODY_TIMEOUT_S,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer_json,
    headers_of,
    read_body,
)
from device_agent.adapters.listening import Listener
from device_agent.adapters.reading_queue import ReadingQueue
from device_agent.config.settings import SensorSettings
from device_agent.core.payload import TensorRules, read_payload
from device_agent.errors import UnreadableReadingError
from device_agent.ports import Reading, ReadingAnswer, SourceFacts

PATH = "/readings"
# Requests in flight as connections close down; the process ends without them.
GOODBYE_S = 3
# Connections beyond the readings that may wait: probes, and senders that are about to be told to wait.
SPARE_CONNECTIONS = 64
RESTART_WAIT_S = 1.0

_log = logging.getLogger(__name__)


class _PushReceipt:
    """What a waiting request hears, on the server's own event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: asyncio.Future[bool] = loop.create_future()
        self.answers: Sequence[ReadingAnswer] = ()

    def answered(self, answers: Sequence[ReadingAnswer]) -> None:
        self.answers = answers

    def stored(self) -> None:
        self._settle(True)

    def give_up(self) -> None:
        """The agent stops, and nobody took the reading."""
        self._settle(False)

    async def is_stored(self) -> bool:
        return await self._done

    def _settle(self, is_stored: bool) -> None:
        def settle() -> None:
            if not self._done.done():
                self._done.set_result(is_stored)

        # The loop is closed where the server ended first; nobody waits then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)


class PushSource:
    """Satisfies `ports.Source`. A push is answered when its answers are in the outbox, so what was answered is kept.

    Nothing is dropped: where no more can wait the sender is told so, and keeps what it has.
    """

    paces_itself = True

    def __init__(self, kind: str, listener: Listener, settings: SensorSettings) -> None:
        self._kind = kind
        self._listener = listener
        self._settings = settings
        self._rules = TensorRules(settings.tensors, settings.dtype)
        self._queue = ReadingQueue(settings.queue_max, "refuse")
        self._name = secrets.token_hex(3)
        self._received = 0
        self._failed = 0
        self._problem = ""
        self._server: Any = None
        self._is_closing = threading.Event()
        threading.Thread(target=self._serve, name="push", daemon=True).start()

    def next_reading(self) -> Reading:
        return self._queue.take()

    def seek(self, position: int) -> None:
        """What is pushed has no positions: who pushes knows what was answered."""

    def facts(self) -> SourceFacts:
        return SourceFacts(self._kind, failed=self._failed, problem=self._problem)

    def close(self) -> None:
        """Take no more; requests whose readings were taken are answered as long as the process lives."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        for reading in self._queue.close():
            assert isinstance(reading.receipt, _PushReceipt)
            reading.receipt.give_up()
        if self._server is not None:
            self._server.should_exit = True
        self._listener.close()

    # In the server's thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        import uvicorn

        while not self._is_closing.is_set():
            config = uvicorn.Config(
                self._app,
                interface="asgi3",
                lifespan="off",
                proxy_headers=False,
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=self._settings.queue_max + SPARE_CONNECTIONS,
                timeout_graceful_shutdown=GOODBYE_S,
            )
            self._server = server = uvicorn.Server(config)
            server.should_exit = self._is_closing.is_set()
            try:
                asyncio.run(server.serve(sockets=[self._listener.duplicate()]))
            except (Exception, SystemExit) as err:  # noqa: BLE001  uvicorn exits where it cannot start
                self._problem = f"the HTTP server tripped: {err}"
                _log.warning("The HTTP server of the sensor tripped and is started anew: %s", err)
                self._is_closing.wait(RESTART_WAIT_S)
            else:
                self._problem = ""

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, document = await self._answer(scope, receive)
            headers: dict[str, str] = {}
        except RefusedError as refused:
            status, document, headers = refused.status, {"error": refused.text}, refused.headers
        await answer_json(send, status, document, headers)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[HTTPStatus, dict[str, Any]]:
        headers = headers_of(scope)
        self._check_sender(headers)
        path = unquote(scope["path"])
        if path == "/" and scope["method"] == "GET":
            return HTTPStatus.OK, {"waiting": len(self._queue), "waitingMax": self._settings.queue_max}
        if path != PATH and not path.startswith(f"{PATH}/"):
            raise RefusedError(HTTPStatus.NOT_FOUND, f"There is no {path}; readings are posted to {PATH}.")
        if scope["method"] != "POST":
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "Readings are posted.", allow="POST")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        body = await read_body(headers, receive, self._settings.payload_bytes_max, "A reading", BODY_TIMEOUT_S)
        return await self._push(body, path.removeprefix(PATH).strip("/"), query)

    def _check_sender(self, headers: dict[str, str]) -> None:
        token = self._settings.token
        if token:
            if not hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "The token is missing or wrong.", www_authenticate="Bearer")
        elif "origin" in headers:
            # A page in a browser on this machine can send requests here; a program says no origin.
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "Readings are not taken from web pages unless a token is configured."
            )

    async def _push(self, body: bytes, origin: str, query: dict[str, list[str]]) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            payload = read_payload(body, self._rules, self._settings.payload_bytes_max)
        except UnreadableReadingError as err:
            self._failed += 1
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"This is no reading: {err.message}.") from err
        self._received += 1
        identifier = query.get("id", [""])[0] or payload.id or f"{self._kind}-{self._name}-{self._received}"
        receipt = _PushReceipt(asyncio.get_running_loop())
        reading = Reading(identifier, payload.tensors, None, origin, receipt)
        if not self._queue.offer(reading):
            if self._is_closing.is_set():
                raise _stopping()
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, f"{len(self._queue)} readings wait already.", retry_after="1"
            )
        await self._until_stored(reading, receipt)
        models = [answer.model for answer in receipt.answers]
        if "wait" not in query or query["wait"][0] in ("0", "false"):
            return HTTPStatus.ACCEPTED, {"id": identifier, "models": models}
        return HTTPStatus.OK, {"id": identifier, "answers": [_wire(answer) for answer in receipt.answers]}

    async def _until_stored(self, reading: Reading, receipt: _PushReceipt) -> None:
        timeout_s = self._settings.answer_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                is_stored = await receipt.is_stored()
        except TimeoutError as err:
            if self._queue.withdraw(reading):
                text = f"No model took the reading in {timeout_s:g} s; it is not kept."
            else:
                text = f"The reading was taken, but is not on disk after {timeout_s:g} s; it may be kept all the same."
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, text, retry_after="5") from err
        if not is_stored:
            raise _stopping()


def _stopping() -> RefusedError:
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The agent stops; the reading is not kept.", retry_after="10")


def _wire(answer: ReadingAnswer) -> dict[str, Any]:
    return {
        "model": answer.model,
        "version": answer.version,
        "prediction": answer.prediction,
        "confidence": answer.confidence,
        "latencyMs": round(answer.latency_ms, 4),
        "values": dict(answer.values),
        "error": answer.error,
    }
