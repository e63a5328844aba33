"""Twins, queries over them, and direct methods."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.query.engine import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from simulators.iothub.server.rest_api.module_invoke import check_caller
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, count_of, identity_id_of, tagged_answer
from simulators.iothub.server.switchboard import Switchboard


async def get_twin(switchboard: Switchboard, request: web.Request) -> web.Response:
    return tagged_answer(switchboard.hub.twin_document(identity_id_of(request)))


async def patch_twin(switchboard: Switchboard, request: web.Request) -> web.Response:
    return await _write_twin(switchboard, request, switchboard.hub.patch_twin)


async def replace_twin(switchboard: Switchboard, request: web.Request) -> web.Response:
    return await _write_twin(switchboard, request, switchboard.hub.replace_twin)


async def _write_twin(
    switchboard: Switchboard, request: web.Request, write: Callable[..., dict[str, Any]]
) -> web.Response:
    body, if_match = await body_of(request), request.headers.get("If-Match")
    return tagged_answer(write(identity_id_of(request), body, if_match, switchboard.now()))


async def query(switchboard: Switchboard, request: web.Request) -> web.Response:
    body = await body_of(request)
    count = count_of(request.headers.get("x-ms-max-item-count"), "the page size", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX)
    text = body.get("query") if isinstance(body, dict) else None
    page = switchboard.hub.query(text, request.headers.get("x-ms-continuation"), count, switchboard.now())
    headers = {"x-ms-item-type": page.item_type}
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    return answer(page.rows, headers=headers)


async def invoke_method(switchboard: Switchboard, request: web.Request) -> web.Response:
    check_caller(switchboard, request)
    method = MethodRequest.read(await body_of(request))
    result = await switchboard.invoke(identity_id_of(request), method)
    if result.error:
        raise result.error
    return answer(result.document())


ROUTES = (
    Route("POST", "/devices/query", Right.SERVICE_CONNECT, query),
    *(
        route
        for path in ("/twins/{device}", "/twins/{device}/modules/{module}")
        for route in (
            Route("GET", path, Right.SERVICE_CONNECT, get_twin),
            Route("PATCH", path, Right.SERVICE_CONNECT, patch_twin),
            Route("PUT", path, Right.SERVICE_CONNECT, replace_twin),
            Route("POST", f"{path}/methods", None, invoke_method),
        )
    ),
)
