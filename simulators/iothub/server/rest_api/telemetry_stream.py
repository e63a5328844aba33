"""Events for the cloud side, as a stream of JSON lines; the simulator's own, until there is an AMQP endpoint."""

import asyncio
import logging

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.events import TELEMETRY
from simulators.iothub.core.hub_events import SOURCES
from simulators.iothub.core.json_text import dump_json
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard

HEARTBEAT_S = 5.0
BATCH_EVENTS = 500

logger = logging.getLogger(__name__)


async def stream_events(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
    """Answer ``?from=N&follow=true&source=S``: events after sequence N, one JSON object a line, in order.

    `source` is one of `iothub-message-source`, or ``*`` for all; without it only telemetry is shown.

    A follower gets an empty line when nothing happened for some seconds. Where the log no longer holds N + 1, the
    stream starts with the oldest event there is, and the gap shows in the sequence.
    """
    after, is_following = _read_position(request.query.get("from", "0")), _read_follow(request.query.get("follow"))
    sources = _read_source(request.query.get("source"))
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        await _write_events(switchboard, response, after, sources, is_following=is_following)
        await response.write_eof()
    except ConnectionResetError:
        # A follower goes whenever it likes; it comes back with the position it got to.
        logger.debug("the follower of telemetry at %s has gone", request.remote)
    return response


async def _write_events(
    switchboard: Switchboard,
    response: web.StreamResponse,
    after: int,
    sources: frozenset[str],
    *,
    is_following: bool,
) -> None:
    loop = asyncio.get_running_loop()
    said_at = loop.time()
    while True:
        events = switchboard.hub.events.read(after, BATCH_EVENTS)
        lines = [dump_json(event.document()) + b"\n" for event in events if event.source in sources]
        if events:
            after = events[-1].sequence
        elif not is_following or switchboard.is_stopping:
            break
        else:
            await switchboard.events_bell.wait(said_at + HEARTBEAT_S - loop.time())
        # Events of other sources wake a follower too; they are no sign of life to whoever reads it.
        if not lines and is_following and loop.time() >= said_at + HEARTBEAT_S:
            lines = [b"\n"]
        if lines:
            await response.write(b"".join(lines))
            said_at = loop.time()


def _read_position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ServiceError(Fault.ArgumentInvalid, f"from is {text!r}; it is a sequence number, 0 for the start")
    return int(text)


def _read_source(text: str | None) -> frozenset[str]:
    sources = (TELEMETRY, *SOURCES)
    if text == "*":
        return frozenset(sources)
    if text not in (None, *sources):
        raise ServiceError(Fault.ArgumentInvalid, f"source is {text!r}; * and {', '.join(sources)} exist")
    return frozenset({text or TELEMETRY})


async def show_sources(switchboard: Switchboard, _request: web.Request) -> web.Response:
    """Which events of its own the hub writes."""
    written = switchboard.hub.own_events.sources
    return answer({source: source in written for source in SOURCES})


async def choose_sources(switchboard: Switchboard, request: web.Request) -> web.Response:
    """Choose them: an object of sources and whether each is written; those left out stay as they are."""
    body = await body_of(request)
    if not isinstance(body, dict) or not all(
        source in SOURCES and isinstance(is_on, bool) for source, is_on in body.items()
    ):
        raise ServiceError(Fault.ArgumentInvalid, f"the body is an object of true and false for {', '.join(SOURCES)}")
    own_events = switchboard.hub.own_events
    chosen = {source: source in own_events.sources for source in SOURCES} | body
    own_events.sources = frozenset(source for source, is_on in chosen.items() if is_on)
    return await show_sources(switchboard, request)


def _read_follow(text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise ServiceError(Fault.ArgumentInvalid, f"follow is {text!r}; true and false exist")
    return text == "true"


ROUTES = (
    Route("GET", "/telemetry/events", Right.SERVICE_CONNECT, stream_events),
    Route("GET", "/simulator/event-sources", Right.SERVICE_CONNECT, show_sources),
    Route("PATCH", "/simulator/event-sources", Right.SERVICE_CONNECT, choose_sources),
)
