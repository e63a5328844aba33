"""Telemetry for the cloud side, as a stream of JSON lines; the simulator's own, until there is an AMQP endpoint."""

import logging

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.json_text import dump_json
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.routing import Route
from simulators.iothub.server.switchboard import Switchboard

HEARTBEAT_S = 5.0
BATCH_EVENTS = 500

logger = logging.getLogger(__name__)


async def stream_events(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
    """Answer ``?from=N&follow=true``: events after sequence N, one JSON object a line, in order.

    A follower gets an empty line when nothing happened for some seconds. Where the log no longer holds N + 1, the
    stream starts with the oldest event there is, and the gap shows in the sequence.
    """
    after, is_following = _read_position(request.query.get("from", "0")), _read_follow(request.query.get("follow"))
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        await _write_events(switchboard, response, after, is_following=is_following)
        await response.write_eof()
    except ConnectionResetError:
        # A follower goes whenever it likes; it comes back with the position it got to.
        logger.debug("the follower of telemetry at %s has gone", request.remote)
    return response


async def _write_events(
    switchboard: Switchboard, response: web.StreamResponse, after: int, *, is_following: bool
) -> None:
    while True:
        events = switchboard.hub.events.read(after, BATCH_EVENTS)
        if events:
            await response.write(b"".join(dump_json(event.document()) + b"\n" for event in events))
            after = events[-1].sequence
        elif not is_following or switchboard.is_stopping:
            break
        elif not await switchboard.events_bell.wait(HEARTBEAT_S):
            await response.write(b"\n")


def _read_position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ServiceError(Fault.ArgumentInvalid, f"from is {text!r}; it is a sequence number, 0 for the start")
    return int(text)


def _read_follow(text: str | None) -> bool:
    if text not in (None, "true", "false"):
        raise ServiceError(Fault.ArgumentInvalid, f"follow is {text!r}; true and false exist")
    return text == "true"


ROUTES = (Route("GET", "/telemetry/events", Right.SERVICE_CONNECT, stream_events),)
