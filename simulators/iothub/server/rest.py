"""The service's HTTPS API, as azure-iot-hub calls it (api-version 2021-04-12; any is accepted)."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.json_text import dump_json, parse_json
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.query.engine import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.entropy import SystemEntropy
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.telemetry_stream import stream_events

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 1024 * 1024
DEVICES_LISTED_MAX = 1000


class RestApi:
    """One handler per route; each takes a request that has been let in, and returns its answer."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._entropy = SystemEntropy()

    @property
    def _hub(self) -> Hub:
        return self._switchboard.hub

    def application(self) -> web.Application:
        """The routes behind one middleware that authorizes and words errors."""
        application = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES_MAX)
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._authorized(route))
        return application

    def _authorized(self, route: "Route") -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            path = tuple(request.path.strip("/").split("/"))
            authorization = request.headers.get("Authorization")
            self._hub.gatekeeper.check_service(authorization, route.right, path, self._switchboard.now())
            response = await route.handler(self, request)
            self._switchboard.settle()
            return response

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
        return _answer(body, err.status, err.reason, {"iothub-errorcode": err.fault.name})

    # --- identities -------------------------------------------------------------------------------------------------

    async def get_identity(self, request: web.Request) -> web.Response:
        return _identity_answer(self._hub.registry.get(_identity_id(request)).document())

    async def put_identity(self, request: web.Request) -> web.Response:
        document = self._hub.put_identity(
            _identity_id(request), await _body(request), request.headers.get("If-Match"), self._switchboard.now()
        )
        return _identity_answer(document)

    async def delete_identity(self, request: web.Request) -> web.Response:
        self._hub.delete_identity(_identity_id(request), request.headers.get("If-Match"))
        return web.Response(status=204)

    async def list_devices(self, request: web.Request) -> web.Response:
        top = _count(request.query.get("top"), "top", DEVICES_LISTED_MAX, DEVICES_LISTED_MAX)
        documents = [device.document() for device in self._hub.registry.devices()]
        return _answer(documents[:top])

    async def list_modules(self, request: web.Request) -> web.Response:
        modules = self._hub.registry.modules_of(request.match_info["device"])
        return _answer([module.document() for module in modules])

    async def device_statistics(self, _request: web.Request) -> web.Response:
        return _answer(self._hub.registry.statistics())

    async def service_statistics(self, _request: web.Request) -> web.Response:
        return _answer(self._hub.service_statistics())

    # --- twins, queries and methods ---------------------------------------------------------------------------------

    async def get_twin(self, request: web.Request) -> web.Response:
        return _identity_answer(self._hub.twin_document(_identity_id(request)))

    async def patch_twin(self, request: web.Request) -> web.Response:
        return await self._write_twin(request, self._hub.patch_twin)

    async def replace_twin(self, request: web.Request) -> web.Response:
        return await self._write_twin(request, self._hub.replace_twin)

    async def _write_twin(self, request: web.Request, write: Callable[..., dict[str, Any]]) -> web.Response:
        body, if_match = await _body(request), request.headers.get("If-Match")
        return _identity_answer(write(_identity_id(request), body, if_match, self._switchboard.now()))

    async def query(self, request: web.Request) -> web.Response:
        body = await _body(request)
        count = _count(request.headers.get("x-ms-max-item-count"), "the page size", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX)
        text = body.get("query") if isinstance(body, dict) else None
        page = self._hub.query(text, request.headers.get("x-ms-continuation"), count)
        headers = {"x-ms-item-type": page.item_type}
        if page.continuation:
            headers["x-ms-continuation"] = page.continuation
        return _answer(page.rows, headers=headers)

    async def invoke_method(self, request: web.Request) -> web.Response:
        method = MethodRequest.read(await _body(request))
        result = await self._switchboard.invoke(_identity_id(request), method)
        if result.error:
            raise result.error
        return _answer(result.document())

    async def telemetry_events(self, request: web.Request) -> web.StreamResponse:
        return await stream_events(self._switchboard, request)


@dataclass(frozen=True, slots=True)
class Route:
    """A route and the right that a caller's policy must grant."""

    method: str
    path: str
    right: Right
    handler: Callable[[RestApi, web.Request], Awaitable[web.StreamResponse]]


_DEVICE = "/devices/{device}"
_MODULE = "/devices/{device}/modules/{module}"
_TWIN = "/twins/{device}"
_MODULE_TWIN = "/twins/{device}/modules/{module}"

ROUTES = (
    Route("GET", "/devices", Right.REGISTRY_READ, RestApi.list_devices),
    Route("POST", "/devices/query", Right.SERVICE_CONNECT, RestApi.query),
    Route("GET", _DEVICE, Right.REGISTRY_READ, RestApi.get_identity),
    Route("PUT", _DEVICE, Right.REGISTRY_WRITE, RestApi.put_identity),
    Route("DELETE", _DEVICE, Right.REGISTRY_WRITE, RestApi.delete_identity),
    Route("GET", "/devices/{device}/modules", Right.REGISTRY_READ, RestApi.list_modules),
    Route("GET", _MODULE, Right.REGISTRY_READ, RestApi.get_identity),
    Route("PUT", _MODULE, Right.REGISTRY_WRITE, RestApi.put_identity),
    Route("DELETE", _MODULE, Right.REGISTRY_WRITE, RestApi.delete_identity),
    Route("GET", "/statistics/devices", Right.REGISTRY_READ, RestApi.device_statistics),
    Route("GET", "/statistics/service", Right.SERVICE_CONNECT, RestApi.service_statistics),
    *(
        route
        for path in (_TWIN, _MODULE_TWIN)
        for route in (
            Route("GET", path, Right.SERVICE_CONNECT, RestApi.get_twin),
            Route("PATCH", path, Right.SERVICE_CONNECT, RestApi.patch_twin),
            Route("PUT", path, Right.SERVICE_CONNECT, RestApi.replace_twin),
            Route("POST", f"{path}/methods", Right.SERVICE_CONNECT, RestApi.invoke_method),
        )
    ),
    Route("GET", "/telemetry/events", Right.SERVICE_CONNECT, RestApi.telemetry_events),
)


def _identity_id(request: web.Request) -> IdentityId:
    return IdentityId(request.match_info["device"], request.match_info.get("module", ""))


async def _body(request: web.Request) -> Any:
    return parse_json(await request.read(), "the body")


def _count(text: str | None, what: str, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise ServiceError(Fault.ArgumentInvalid, f"{what} is {text!r}; 1 to {most} are allowed")
    return int(text)


def _identity_answer(document: dict[str, Any]) -> web.Response:
    return _answer(document, headers={"ETag": f'"{document["etag"]}"'})


def _answer(
    document: Any, status: int = 200, reason: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=dump_json(document),
        status=status,
        reason=reason,
        headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})},
    )


def _translated(err: web.HTTPException, request: web.Request) -> ServiceError:
    """What the HTTP library itself refuses, in the service's words."""
    if err.status == 405:
        return ServiceError(Fault.MethodNotAllowed, f"{request.method} is not for {request.path}")
    if err.status == 413:
        return ServiceError(Fault.MessageTooLarge, f"the body is larger than {BODY_BYTES_MAX} bytes")
    if err.status == 404:
        return ServiceError(Fault.RouteNotFound, f"the simulated hub has no {request.path}")
    return ServiceError(Fault.ArgumentInvalid, err.reason)
