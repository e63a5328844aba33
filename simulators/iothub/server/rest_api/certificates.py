"""Certificate authorities of the hub: routes of the simulator's own, since the service has them in Resource Manager.

The documents are those of Microsoft.Devices/IotHubs/certificates; a certificate counts as verified at once.
"""

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, tagged_answer
from simulators.iothub.server.switchboard import Switchboard


async def list_certificates(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer({"value": switchboard.hub.authorities.documents()})


async def get_certificate(switchboard: Switchboard, request: web.Request) -> web.Response:
    return tagged_answer(switchboard.hub.authorities.get(request.match_info["name"]))


async def put_certificate(switchboard: Switchboard, request: web.Request) -> web.Response:
    document = await body_of(request)
    return tagged_answer(switchboard.hub.authorities.put(request.match_info["name"], document, switchboard.now()))


async def delete_certificate(switchboard: Switchboard, request: web.Request) -> web.Response:
    switchboard.hub.authorities.delete(request.match_info["name"])
    return web.Response(status=204)


ROUTES = (
    Route("GET", "/certificates", Right.REGISTRY_READ, list_certificates),
    Route("GET", "/certificates/{name}", Right.REGISTRY_READ, get_certificate),
    Route("PUT", "/certificates/{name}", Right.REGISTRY_WRITE, put_certificate),
    Route("DELETE", "/certificates/{name}", Right.REGISTRY_WRITE, delete_certificate),
)
