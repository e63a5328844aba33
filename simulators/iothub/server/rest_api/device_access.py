"""Who a device is that calls over HTTPS: every route for devices and modules asks here."""

from aiohttp import web

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.routing import identity_id_of
from simulators.iothub.server.switchboard import Switchboard


def device_of(switchboard: Switchboard, request: web.Request) -> IdentityId:
    """The device or module that the path names, once it has proven to be it.

    Raises:
        ServiceError: it is unknown, disabled, or its credential is not good.
    """
    identity_id = identity_id_of(request)
    authenticate(switchboard, request, identity_id)
    return identity_id


def authenticate(switchboard: Switchboard, request: web.Request, identity_id: IdentityId) -> None:
    """Check that a request comes from this device or module; raises ServiceError."""
    hub = switchboard.hub
    identity = hub.registry.get(identity_id)
    if not hub.registry.is_enabled(identity_id):
        raise ServiceError(Fault.IotHubUnauthorizedAccess, f"device {identity_id.device_id} is disabled")
    credential = request.headers.get("Authorization", "")
    hub.gatekeeper.check_device(credential, identity.sas_keys, identity_id.path, switchboard.now())
