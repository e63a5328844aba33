"""What the routes share: how one is declared, how a request is read, how an answer is written."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.json_text import dump_json, parse_json
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.switchboard import Switchboard

Handler = Callable[[Switchboard, web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """A route and the right that a caller's policy must grant; None where the handler itself asks who is calling."""

    method: str
    path: str
    right: Right | None
    handler: Handler


def identity_id_of(request: web.Request) -> IdentityId:
    return IdentityId(request.match_info["device"], request.match_info.get("module", ""))


async def body_of(request: web.Request) -> Any:
    return parse_json(await request.read(), "the body")


def count_of(text: str | None, what: str, default: int, most: int) -> int:
    """A number of items that a caller asks for; raises ServiceError ArgumentInvalid beyond 1 to `most`."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ServiceError(Fault.ArgumentInvalid, f"{what} is {text!r}; 1 to {most} are allowed")
    return int(text)


def answer(
    document: Any, status: int = 200, reason: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=dump_json(document),
        status=status,
        reason=reason,
        headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})},
    )


def tagged_answer(document: dict[str, Any]) -> web.Response:
    """An answer whose ETag header is that of the document."""
    return answer(document, headers={"ETag": f'"{document["etag"]}"'})
