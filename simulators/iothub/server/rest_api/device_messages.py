"""Messages of devices over HTTPS: telemetry, and cloud-to-device messages received, completed, rejected, abandoned.

Source: https://learn.microsoft.com/rest/api/iothub/device.
"""

import re
from urllib.parse import quote, unquote

from aiohttp import web

from simulators.iothub.core.cloud_to_device import CloudMessage, Delivery
from simulators.iothub.core.hub import MESSAGE_BYTES_MAX
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.locking_queue import LOCK_S
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.device_access import device_of
from simulators.iothub.server.rest_api.routing import Route
from simulators.iothub.server.switchboard import Switchboard

LOCK_S_MAX = 300
_APPLICATION = "iothub-app-"
# System properties of an event by their header, and of a message to a device.
_EVENT_HEADERS = {
    "iothub-messageid": "messageId",
    "iothub-correlationid": "correlationId",
    "iothub-userid": "userId",
    "iothub-to": "to",
    "iothub-expiry": "expiryTimeUtc",
    "iothub-contenttype": "contentType",
    "iothub-contentencoding": "contentEncoding",
    "iothub-creationtimeutc": "creationTimeUtc",
    "iothub-outputname": "outputName",
    "iothub-interface-id": "interfaceId",
}
# What a header field may hold as it is (RFC 9110 section 5.5), and what its name may be.
_FIELD_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?|")
_NAME_CHARACTERS = "!#$&'*+^`|"


async def send_event(switchboard: Switchboard, request: web.Request) -> web.Response:
    identity_id = device_of(switchboard, request)
    body = await _body_of(request)
    system = {
        name: value for header, name in _EVENT_HEADERS.items() if (value := request.headers.get(header)) is not None
    }
    # Bodies are posted as JSON by habit of the HTTP library too, so only its own header says what a message holds.
    properties = {
        unquote(header[len(_APPLICATION) :]): value
        for header, value in request.headers.items()
        if header.lower().startswith(_APPLICATION)
    }
    switchboard.hub.accept_event(identity_id, system, properties, body, switchboard.now())
    return web.Response(status=204)


async def receive_message(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = device_of(switchboard, request).device_id
    lock_s = _read_lock(request.headers.get("iothub-messagelocktimeout"))
    now = switchboard.now()
    delivery = switchboard.hub.cloud_to_device.receive(device_id, now, lock_s=lock_s)
    if delivery is None:
        return web.Response(status=204)
    message = delivery.item
    return web.Response(body=message.body, headers={**_system_headers(delivery), **_application_headers(message)})


async def complete_or_reject(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = device_of(switchboard, request).device_id
    queue = switchboard.hub.cloud_to_device
    settle = queue.reject if "reject" in request.query else queue.complete
    settle(device_id, _lock_token_of(request), switchboard.now())
    return web.Response(status=204)


async def abandon(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = device_of(switchboard, request).device_id
    switchboard.hub.cloud_to_device.abandon(device_id, _lock_token_of(request), switchboard.now())
    switchboard.hub.offer_messages(device_id, switchboard.now())
    return web.Response(status=204)


async def _body_of(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MESSAGE_BYTES_MAX:
            raise ServiceError(Fault.MessageTooLarge, f"the body is more than {MESSAGE_BYTES_MAX} bytes")
    return bytes(body)


def _read_lock(text: str | None) -> float:
    if not text:
        return LOCK_S
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LOCK_S_MAX):
        raise ServiceError(
            Fault.ArgumentInvalid, f"IotHub-MessageLockTimeout is {text!r}; 1 to {LOCK_S_MAX} seconds are allowed"
        )
    return float(text)


def _lock_token_of(request: web.Request) -> str:
    return request.match_info["lock"].strip('"')


def _system_headers(delivery: Delivery) -> dict[str, str]:
    message = delivery.item
    values = {
        "ETag": f'"{delivery.lock_token}"',
        "Content-Type": message.content_type or "application/octet-stream",
        "ContentType": message.content_type,
        "ContentEncoding": message.content_encoding,
        "iothub-messageid": message.message_id,
        "iothub-correlationid": message.correlation_id,
        "iothub-userid": message.user_id,
        "iothub-to": message.to,
        "iothub-ack": message.ack,
        "iothub-expiry": wire_time(delivery.expires_at),
        "iothub-enqueuedtime": wire_time(delivery.enqueued_at),
        # Deliveries before this one, as in AMQP.
        "iothub-deliverycount": str(delivery.delivery_count - 1),
        "iothub-sequencenumber": str(delivery.sequence),
    }
    return {name: _field_value(value) for name, value in values.items() if value}


def _application_headers(message: CloudMessage) -> dict[str, str]:
    return {
        f"{_APPLICATION}{quote(key, safe=_NAME_CHARACTERS)}": _field_value(value)
        for key, value in message.properties.items()
    }


def _field_value(text: str) -> str:
    """A text as it is where a header can hold it, else percent-encoded."""
    return text if _FIELD_VALUE.fullmatch(text) else quote(text, safe=" ")


_DEVICE = "/devices/{device}"
_MODULE = "/devices/{device}/modules/{module}"

ROUTES = (
    Route("POST", f"{_DEVICE}/messages/events", None, send_event),
    Route("POST", f"{_MODULE}/messages/events", None, send_event),
    *(
        route
        # The vendor's own SDKs spell it in both ways.
        for path in (f"{_DEVICE}/messages/deviceBound", f"{_DEVICE}/messages/devicebound")
        for route in (
            Route("GET", path, None, receive_message),
            Route("DELETE", f"{path}/{{lock}}", None, complete_or_reject),
            Route("POST", f"{path}/{{lock}}/abandon", None, abandon),
        )
    ),
)
