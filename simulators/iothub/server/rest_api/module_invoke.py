"""Direct methods that a module calls on another module or device, through the same route as a service does.

The device SDK names the caller in ``x-ms-edge-moduleId`` and shows the module's own token.
"""

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.device_access import authenticate
from simulators.iothub.server.rest_api.routing import identity_id_of
from simulators.iothub.server.switchboard import Switchboard

CALLER = "x-ms-edge-moduleId"


def check_caller(switchboard: Switchboard, request: web.Request) -> None:
    """Let pass a service with ServiceConnect, and a module that calls what is on its device; raises ServiceError."""
    caller = request.headers.get(CALLER)
    if caller is None:
        path = tuple(request.path.strip("/").split("/"))
        authorization = request.headers.get("Authorization")
        switchboard.hub.gatekeeper.check_service(authorization, Right.SERVICE_CONNECT, path, switchboard.now())
        return
    device_id, _, module_id = caller.partition("/")
    if not module_id:
        raise ServiceError(Fault.ArgumentInvalid, f"{CALLER} is {caller!r}, not device/module")
    if identity_id_of(request).device_id != device_id:
        raise ServiceError(Fault.IotHubUnauthorizedAccess, f"a module of {device_id} calls on {device_id} only")
    authenticate(switchboard, request, IdentityId(device_id, module_id))
