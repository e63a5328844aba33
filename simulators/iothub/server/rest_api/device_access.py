"""Who a device is that calls over HTTPS: every route for devices and modules asks here."""

from aiohttp import web

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.rest_api.routing import identity_id_of
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import CLIENT_CERTIFICATES


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
    credential = request.headers.get("Authorization", "")
    transport = request.transport
    # As over MQTT, a certificate counts only for a device that shows no token.
    shown = transport.get_extra_info(CLIENT_CERTIFICATES, ()) if transport and not credential else ()
    switchboard.hub.authenticate(identity_id, credential, shown, switchboard.now())
