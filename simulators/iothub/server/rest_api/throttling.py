"""What a tier does to requests: they wait for their turn or are refused; and how much of it is used up."""

import asyncio

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.throttles import METHOD_METER_BYTES, Operation, Throttles, meters
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard

_DEVICE, _MODULE = "/devices/{device}", "/devices/{device}/modules/{module}"
_TWINS = ("/twins/{device}", "/twins/{device}/modules/{module}")
_DIGITAL = "/digitaltwins/{device}"
_BOUND = (f"{_DEVICE}/messages/deviceBound", f"{_DEVICE}/messages/devicebound")

# Under which limit a request falls, by method and route; others are free.
OPERATIONS: dict[tuple[str, str], Operation] = {
    **{
        (method, path): Operation.REGISTRY
        for path in (_DEVICE, _MODULE)
        for method in ("GET", "PUT", "DELETE")
    },
    ("GET", "/devices"): Operation.REGISTRY,
    ("POST", "/devices"): Operation.REGISTRY,
    ("GET", f"{_DEVICE}/modules"): Operation.REGISTRY,
    ("POST", "/devices/query"): Operation.QUERY,
    **{("GET", path): Operation.TWIN_READ for path in _TWINS},
    **{(method, path): Operation.TWIN_UPDATE for path in _TWINS for method in ("PATCH", "PUT")},
    ("GET", _DIGITAL): Operation.TWIN_READ,
    ("PATCH", _DIGITAL): Operation.TWIN_UPDATE,
    **{("POST", f"{path}/methods"): Operation.METHOD for path in _TWINS},
    ("POST", f"{_DIGITAL}/commands/{{command}}"): Operation.METHOD,
    ("POST", f"{_DIGITAL}/components/{{component}}/commands/{{command}}"): Operation.METHOD,
    ("POST", f"{_DEVICE}/messages/events"): Operation.EVENT,
    ("POST", f"{_MODULE}/messages/events"): Operation.EVENT,
    **{("GET", path): Operation.RECEIVE for path in _BOUND},
    ("POST", f"/simulator{_DEVICE}/messages"): Operation.MESSAGE,
    ("POST", f"{_DEVICE}/files"): Operation.UPLOAD,
    ("GET", "/jobs/v2/query"): Operation.JOB,
    ("PUT", "/jobs/v2/{job}"): Operation.JOB,
    ("GET", "/jobs/v2/{job}"): Operation.JOB,
    ("POST", "/jobs/v2/{job}/cancel"): Operation.JOB,
    **{
        (method, "/configurations/{configuration}"): Operation.CONFIGURATION
        for method in ("GET", "PUT", "DELETE")
    },
    ("GET", "/configurations"): Operation.CONFIGURATION,
    ("POST", f"{_DEVICE}/applyConfigurationContent"): Operation.CONFIGURATION,
}  # fmt: skip
# What counts as messages of the day.
_METERED = frozenset((Operation.EVENT, Operation.MESSAGE, Operation.METHOD, Operation.TWIN_READ, Operation.TWIN_UPDATE))


def operation_of(route: Route) -> Operation | None:
    return OPERATIONS.get((route.method, route.path))


async def wait_for_turn(throttles: Throttles, operation: Operation, request: web.Request, now: float) -> None:
    """Let a request wait for as long as its limit wants.

    Raises:
        ServiceError: ThrottlingException or IotHubQuotaExceeded.
    """
    size_bytes = request.content_length or 0
    wait_s = throttles.admit(operation, now, await _cost(operation, request, size_bytes))
    if operation in _METERED:
        throttles.meter(size_bytes, now)
    if wait_s:
        await asyncio.sleep(wait_s)


async def _cost(operation: Operation, request: web.Request, size_bytes: int) -> int:
    if operation is Operation.METHOD:
        return meters(size_bytes, METHOD_METER_BYTES)
    if operation is Operation.REGISTRY and request.method == "POST":
        # Each device of a list counts.
        devices = await body_of(request)
        return max(1, len(devices)) if isinstance(devices, list) else 1
    return 1


async def show_throttles(switchboard: Switchboard, _request: web.Request) -> web.Response:
    throttles = switchboard.hub.throttles
    return answer(throttles.document(switchboard.now()) if throttles else {"tier": None})


ROUTES = (Route("GET", "/simulator/throttles", Right.SERVICE_CONNECT, show_throttles),)
