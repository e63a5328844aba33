"""Device and module configurations, edge deployments, and manifests for one device."""

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.configuration_documents import complaints_about
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, count_of
from simulators.iothub.server.switchboard import Switchboard

LISTED_MAX = 200


async def get_configuration(switchboard: Switchboard, request: web.Request) -> web.Response:
    return _shown(switchboard, request.match_info["configuration"])


async def list_configurations(switchboard: Switchboard, request: web.Request) -> web.Response:
    top = count_of(request.query.get("top"), "top", LISTED_MAX, LISTED_MAX)
    return answer(switchboard.hub.configurations.documents(top))


async def put_configuration(switchboard: Switchboard, request: web.Request) -> web.Response:
    name, if_match = request.match_info["configuration"], request.headers.get("If-Match")
    is_new = switchboard.hub.configurations.put(name, await body_of(request), if_match, switchboard.now())
    switchboard.start_work()
    return _shown(switchboard, name, 201 if is_new else 200)


async def delete_configuration(switchboard: Switchboard, request: web.Request) -> web.Response:
    switchboard.hub.configurations.delete(request.match_info["configuration"], request.headers.get("If-Match"))
    switchboard.start_work()
    return web.Response(status=204)


async def judge_queries(_switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(complaints_about(await body_of(request)))


async def apply_content(switchboard: Switchboard, request: web.Request) -> web.Response:
    switchboard.hub.fleet.apply_content(request.match_info["device"], await body_of(request), switchboard.now())
    return web.Response(status=204)


def _shown(switchboard: Switchboard, name: str, status: int = 200) -> web.Response:
    document = switchboard.hub.configurations.document(name)
    return answer(document, status, headers={"ETag": f'"{document["etag"]}"'})


_CONFIGURATION = "/configurations/{configuration}"

ROUTES = (
    Route("GET", "/configurations", Right.REGISTRY_READ, list_configurations),
    Route("POST", "/configurations/testQueries", Right.REGISTRY_READ, judge_queries),
    Route("GET", _CONFIGURATION, Right.REGISTRY_READ, get_configuration),
    Route("PUT", _CONFIGURATION, Right.REGISTRY_WRITE, put_configuration),
    Route("DELETE", _CONFIGURATION, Right.REGISTRY_WRITE, delete_configuration),
    Route("POST", "/devices/{device}/applyConfigurationContent", Right.REGISTRY_WRITE, apply_content),
)
