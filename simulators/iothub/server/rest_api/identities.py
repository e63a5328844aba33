"""The identity registry: devices, modules and their numbers."""

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, count_of, identity_id_of, tagged_answer
from simulators.iothub.server.switchboard import Switchboard

DEVICES_LISTED_MAX = 1000


async def get_identity(switchboard: Switchboard, request: web.Request) -> web.Response:
    return tagged_answer(switchboard.hub.registry.get(identity_id_of(request)).document())


async def put_identity(switchboard: Switchboard, request: web.Request) -> web.Response:
    document = switchboard.hub.put_identity(
        identity_id_of(request), await body_of(request), request.headers.get("If-Match"), switchboard.now()
    )
    return tagged_answer(document)


async def delete_identity(switchboard: Switchboard, request: web.Request) -> web.Response:
    switchboard.hub.delete_identity(identity_id_of(request), request.headers.get("If-Match"), switchboard.now())
    return web.Response(status=204)


async def list_devices(switchboard: Switchboard, request: web.Request) -> web.Response:
    top = count_of(request.query.get("top"), "top", DEVICES_LISTED_MAX, DEVICES_LISTED_MAX)
    documents = [device.document() for device in switchboard.hub.registry.devices()]
    return answer(documents[:top])


async def list_modules(switchboard: Switchboard, request: web.Request) -> web.Response:
    modules = switchboard.hub.registry.modules_of(request.match_info["device"])
    return answer([module.document() for module in modules])


async def device_statistics(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer(switchboard.hub.registry.statistics())


async def service_statistics(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer(switchboard.hub.service_statistics())


_DEVICE = "/devices/{device}"
_MODULE = "/devices/{device}/modules/{module}"

ROUTES = (
    Route("GET", "/devices", Right.REGISTRY_READ, list_devices),
    Route("GET", _DEVICE, Right.REGISTRY_READ, get_identity),
    Route("PUT", _DEVICE, Right.REGISTRY_WRITE, put_identity),
    Route("DELETE", _DEVICE, Right.REGISTRY_WRITE, delete_identity),
    Route("GET", f"{_DEVICE}/modules", Right.REGISTRY_READ, list_modules),
    Route("GET", _MODULE, Right.REGISTRY_READ, get_identity),
    Route("PUT", _MODULE, Right.REGISTRY_WRITE, put_identity),
    Route("DELETE", _MODULE, Right.REGISTRY_WRITE, delete_identity),
    Route("GET", "/statistics/devices", Right.REGISTRY_READ, device_statistics),
    Route("GET", "/statistics/service", Right.SERVICE_CONNECT, service_statistics),
)
