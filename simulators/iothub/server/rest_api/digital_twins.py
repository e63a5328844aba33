"""Digital twins: reading, patching, and commands."""

from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.digital_twins import command_name, desired_patch, digital_twin_document
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.registry import IdentityId, check_etag
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.entropy import SystemEntropy
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard

_entropy = SystemEntropy()


async def get_digital_twin(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = request.match_info["device"]
    twin = switchboard.hub.twin(IdentityId(device_id))
    return answer(digital_twin_document(device_id, twin), headers={"ETag": f'"{twin.etag}"'})


async def patch_digital_twin(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id, body = IdentityId(request.match_info["device"]), await body_of(request)
    twin = switchboard.hub.twin(device_id)
    check_etag(request.headers.get("If-Match"), twin.etag, "the digital twin")
    patch = desired_patch(twin, body)
    if patch:
        switchboard.hub.write_twin(device_id, {"properties": {"desired": patch}}, None, switchboard.now())
    headers = {"ETag": f'"{twin.etag}"', "Location": f"https://{request.host}/digitaltwins/{device_id.device_id}"}
    return web.Response(status=202, headers=headers)


async def invoke_command(switchboard: Switchboard, request: web.Request) -> web.Response:
    name = command_name(request.match_info["command"], request.match_info.get("component", ""))
    call: dict[str, Any] = {"methodName": name, "payload": await body_of(request) if await request.read() else None}
    for key in ("connectTimeoutInSeconds", "responseTimeoutInSeconds"):
        call[key] = _seconds(key, request.query.get(key))
    result = await switchboard.invoke(IdentityId(request.match_info["device"]), MethodRequest.read(call))
    if result.error:
        raise result.error
    headers = {"x-ms-command-statuscode": str(result.status), "x-ms-request-id": _entropy.identifier()}
    return answer(result.payload, headers=headers)


def _seconds(key: str, text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ServiceError(Fault.ArgumentInvalid, f"{key} is {text!r}, not a number of seconds")
    return None if text is None else int(text)


_TWIN = "/digitaltwins/{device}"

ROUTES = (
    Route("GET", _TWIN, Right.SERVICE_CONNECT, get_digital_twin),
    Route("PATCH", _TWIN, Right.SERVICE_CONNECT, patch_digital_twin),
    Route("POST", f"{_TWIN}/commands/{{command}}", Right.SERVICE_CONNECT, invoke_command),
    Route("POST", f"{_TWIN}/components/{{component}}/commands/{{command}}", Right.SERVICE_CONNECT, invoke_command),
)
