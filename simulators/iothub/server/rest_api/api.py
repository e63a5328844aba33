"""The service's HTTPS API, as azure-iot-hub calls it (api-version 2021-04-12; any is accepted)."""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from simulators.iothub.core.instants import wire_time
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server import mqtt_websocket
from simulators.iothub.server.amqp import websocket as amqp_websocket
from simulators.iothub.server.entropy import SystemEntropy
from simulators.iothub.server.rest_api import (
    blobs,
    bulk,
    certificates,
    configurations,
    device_messages,
    digital_twins,
    faults,
    feedback,
    identities,
    jobs,
    provisioning,
    telemetry_stream,
    throttling,
    twins,
    uploads,
)
from simulators.iothub.server.rest_api.routing import Route, answer
from simulators.iothub.server.switchboard import Switchboard

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 1024 * 1024

ROUTES = (
    *identities.ROUTES,
    *bulk.ROUTES,
    *configurations.ROUTES,
    *jobs.ROUTES,
    *digital_twins.ROUTES,
    *twins.ROUTES,
    *telemetry_stream.ROUTES,
    *device_messages.ROUTES,
    *feedback.ROUTES,
    *amqp_websocket.ROUTES,
    *uploads.ROUTES,
    *blobs.ROUTES,
    *certificates.ROUTES,
    *mqtt_websocket.ROUTES,
    *provisioning.ROUTES,
    *faults.ROUTES,
    *throttling.ROUTES,
)


class RestApi:
    """Lets requests in, hands them to their handlers, carries out what follows, and words what is refused."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._entropy = SystemEntropy()

    def application(self) -> web.Application:
        """The routes behind one middleware that authorizes and words errors."""
        application = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES_MAX)
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._authorized(route))
        return application

    def _authorized(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        operation = throttling.operation_of(route)

        async def handle(request: web.Request) -> web.StreamResponse:
            if route.right is not None:
                path = tuple(request.path.strip("/").split("/"))
                authorization = request.headers.get("Authorization")
                self._switchboard.hub.gatekeeper.check_service(
                    authorization, route.right, path, self._switchboard.now()
                )
            try:
                if operation and (throttles := self._switchboard.hub.throttles):
                    await throttling.wait_for_turn(throttles, operation, request, self._switchboard.now())
                await faults.endure(self._switchboard, request)
                response = await route.handler(self._switchboard, request)
                faults.spoil(self._switchboard, request, response)
                return response
            finally:
                self._switchboard.settle()
                if self._switchboard.storage_error:
                    raise ServiceError(Fault.ServerError, str(self._switchboard.storage_error))

        return handle

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except ServiceError as err:
            return self._refusal(err)
        except web.HTTPException as err:
            return self._refusal(_translated(err, request))
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return self._refusal(ServiceError(Fault.ServerError, "the hub failed; its log says why"))

    def _refusal(self, err: ServiceError) -> web.Response:
        body = err.body(self._entropy.identifier(), wire_time(self._switchboard.now()))
        return answer(body, err.status, err.reason, {"iothub-errorcode": err.fault.name})


def _translated(err: web.HTTPException, request: web.Request) -> ServiceError:
    """What the HTTP library itself refuses, in the service's words."""
    if err.status == 405:
        return ServiceError(Fault.MethodNotAllowed, f"{request.method} is not for {request.path}")
    if err.status == 413:
        return ServiceError(Fault.MessageTooLarge, f"the body is larger than {BODY_BYTES_MAX} bytes")
    if err.status == 404:
        return ServiceError(Fault.RouteNotFound, f"the simulated hub has no {request.path}")
    return ServiceError(Fault.ArgumentInvalid, err.reason)
