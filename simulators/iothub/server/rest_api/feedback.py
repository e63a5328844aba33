"""Service routes about messages to devices: feedback, file notifications, purging; and the simulator's own for sending.

Sending is AMQP only at the service; ``/simulator/…`` is for people and tests without it.
"""

import base64
import binascii
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.feedback import ServiceQueue
from simulators.iothub.core.instants import wire_time
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, identity_id_of
from simulators.iothub.server.switchboard import Switchboard


def _queue(switchboard: Switchboard, request: web.Request) -> ServiceQueue:
    is_feedback = request.match_info["queue"].lower() == "feedback"
    return switchboard.hub.feedback if is_feedback else switchboard.hub.file_notifications


async def receive(switchboard: Switchboard, request: web.Request) -> web.Response:
    batch = _queue(switchboard, request).receive(switchboard.now())
    if batch is None:
        return web.Response(status=204)
    return web.Response(
        body=batch.body,
        headers={
            "Content-Type": batch.content_type,
            "ETag": f'"{batch.lock_token}"',
            "iothub-enqueuedtime": wire_time(batch.enqueued_at),
            "iothub-userid": batch.user_id,
        },
    )


async def complete(switchboard: Switchboard, request: web.Request) -> web.Response:
    _queue(switchboard, request).complete(request.match_info["lock"].strip('"'))
    return web.Response(status=204)


async def abandon(switchboard: Switchboard, request: web.Request) -> web.Response:
    _queue(switchboard, request).abandon(request.match_info["lock"].strip('"'))
    return web.Response(status=204)


async def purge(switchboard: Switchboard, request: web.Request) -> web.Response:
    hub, device_id = switchboard.hub, request.match_info["device"]
    hub.registry.get(identity_id_of(request))
    purged = hub.cloud_to_device.purge(device_id, switchboard.now())
    return answer({"totalMessagesPurged": purged, "deviceId": device_id, "moduleId": None})


async def send_message(switchboard: Switchboard, request: web.Request) -> web.Response:
    message = _read_message(await body_of(request))
    message_id = switchboard.hub.send_to_device(request.match_info["device"], message, switchboard.now())
    return answer({"messageId": message_id}, status=201)


async def send_input(switchboard: Switchboard, request: web.Request) -> web.Response:
    message = _read_message(await body_of(request))
    switchboard.hub.send_to_input(identity_id_of(request), request.match_info["input"], message)
    return web.Response(status=204)


def _read_message(document: Any) -> CloudMessage:
    """A message as JSON: camel-case names, its body in base64."""
    if not isinstance(document, dict):
        raise ServiceError(Fault.ArgumentInvalid, "the body is not a message document")
    texts = {
        key: document.get(key)
        for key in ("messageId", "correlationId", "userId", "contentType", "contentEncoding", "expiryTimeUtc", "ack")
    }
    for key, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ServiceError(Fault.ArgumentInvalid, f"{key} is not a text")
    properties = document.get("properties") or {}
    if not isinstance(properties, dict) or not all(isinstance(value, str) for value in properties.values()):
        raise ServiceError(Fault.ArgumentInvalid, "properties is not an object of texts")
    return CloudMessage(
        message_id=texts["messageId"] or "",
        correlation_id=texts["correlationId"],
        user_id=texts["userId"],
        content_type=texts["contentType"],
        content_encoding=texts["contentEncoding"],
        expires_at=_read_instant(texts["expiryTimeUtc"]),
        ack=texts["ack"] or "none",
        properties=properties,
        body=_read_body(document.get("body", "")),
    )


def _read_body(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"body is not base64: {err}") from err


def _read_instant(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"expiryTimeUtc is not a time: {err}") from err


_QUEUE = "/messages/{bound:service[Bb]ound}/{queue:feedback|file[Nn]otifications}"

ROUTES = (
    Route("GET", _QUEUE, Right.SERVICE_CONNECT, receive),
    Route("DELETE", _QUEUE + "/{lock}", Right.SERVICE_CONNECT, complete),
    Route("POST", _QUEUE + "/{lock}/abandon", Right.SERVICE_CONNECT, abandon),
    Route("DELETE", "/devices/{device}/commands", Right.SERVICE_CONNECT, purge),
    Route("POST", "/simulator/devices/{device}/messages", Right.SERVICE_CONNECT, send_message),
    Route("POST", "/simulator/devices/{device}/modules/{module}/inputs/{input}", Right.SERVICE_CONNECT, send_input),
)
