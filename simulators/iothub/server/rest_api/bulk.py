"""Many identities in one request."""

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.bulk import run_bulk
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard


async def update_registry(switchboard: Switchboard, request: web.Request) -> web.Response:
    result = run_bulk(switchboard.hub, await body_of(request), switchboard.now())
    if result.is_successful:
        return answer(result.document())
    # The SDK reads the result from a 400 too.
    return answer(result.document(), 400, headers={"iothub-errorcode": "BulkRegistryOperationFailure"})


ROUTES = (Route("POST", "/devices", Right.REGISTRY_WRITE, update_registry),)
