"""Faults on demand: routes of the simulator's own, and what becomes of requests that a fault strikes."""

import asyncio

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.faults import Point, error_of
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard

# The simulator's own routes are out of reach of faults: they are how one gets rid of them.
_OWN = ("/simulator/", "/telemetry/")


async def endure(switchboard: Switchboard, request: web.Request) -> None:
    """Let the faults strike that are planted for a request that comes.

    Raises:
        ServiceError: the request is refused.
    """
    if not switchboard.hub.faults.planted or request.path.startswith(_OWN):
        return
    fault = switchboard.hub.faults.strike(Point.REQUEST, _named_in(request), switchboard.now())
    if fault is not None and fault.kind == "slow":
        await asyncio.sleep(fault.value)
    elif fault is not None:
        raise error_of(fault)


def spoil(switchboard: Switchboard, request: web.Request, response: web.StreamResponse) -> None:
    """Let the faults strike that are planted for a request that has been carried out.

    Raises:
        ServiceError: what the caller gets in place of the answer.
    """
    # A stream or a websocket has had its answer.
    if not switchboard.hub.faults.planted or request.path.startswith(_OWN) or response.prepared:
        return
    if fault := switchboard.hub.faults.strike(Point.RESPONSE, _named_in(request), switchboard.now()):
        raise error_of(fault)


def _named_in(request: web.Request) -> IdentityId | None:
    """The device or module that a request is about."""
    device_id = request.match_info.get("device")
    return IdentityId(device_id, request.match_info.get("module", "")) if device_id else None


async def list_faults(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer({"value": switchboard.hub.faults.documents(switchboard.now())})


async def plant_fault(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(switchboard.plant_fault(await body_of(request)), 201)


async def clear_faults(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer({"cleared": switchboard.hub.faults.clear()})


async def clear_fault(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer({"cleared": switchboard.hub.faults.clear(request.match_info["fault"])})


ROUTES = (
    Route("GET", "/simulator/faults", Right.SERVICE_CONNECT, list_faults),
    Route("POST", "/simulator/faults", Right.SERVICE_CONNECT, plant_fault),
    Route("DELETE", "/simulator/faults", Right.SERVICE_CONNECT, clear_faults),
    Route("DELETE", "/simulator/faults/{fault}", Right.SERVICE_CONNECT, clear_fault),
)
