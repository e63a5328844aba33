"""Requests and answers of a bare ASGI application: a body within bounds of size and time, answers in JSON."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

# A body that does not arrive in this time is given up.
BODY_TIMEOUT_S = 10.0

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """The request is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by their names in small letters."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(
    headers: Mapping[str, str], receive: Receive, size_bytes_max: int, what: str, timeout_s: float = BODY_TIMEOUT_S
) -> bytes:
    """The body; raises RefusedError where it is too large, too slow or cut short. `what` names it: ``A reading``."""
    too_large = RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{what} has at most {size_bytes_max:,} bytes.", connection="close"
    )
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > size_bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(HTTPStatus.BAD_REQUEST, "The body ended too early.")
                body += message.get("body", b"")
                if len(body) > size_bytes_max:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError as err:
        raise RefusedError(
            HTTPStatus.REQUEST_TIMEOUT, f"The body did not arrive in {timeout_s:g} s.", connection="close"
        ) from err


async def answer_json(send: Send, status: HTTPStatus, document: Any, headers: Mapping[str, str] | None = None) -> None:
    await answer(send, status, msgspec.json.encode(document) + b"\n", {"content-type": "application/json"}, headers)


async def answer(send: Send, status: HTTPStatus, body: bytes, *headers: Mapping[str, str] | None) -> None:
    """Send a whole answer. Underscores in the names of headers stand for hyphens."""
    lines = {"content-length": str(len(body))}
    for more in headers:
        lines.update(more or {})
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": encoded})
    await send({"type": "http.response.body", "body": body})
