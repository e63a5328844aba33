"""File uploads as a device asks for them, and the notifications that services get.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-file-upload.
"""

from typing import Any
from urllib.parse import quote

from aiohttp import web

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.uploads import ACCOUNT, CONTAINER, Upload
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.device_access import device_of
from simulators.iothub.server.rest_api.routing import Route, answer, body_of
from simulators.iothub.server.switchboard import Switchboard


async def begin_upload(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = device_of(switchboard, request).device_id
    uploads = switchboard.hub.uploads
    upload = uploads.begin(device_id, await body_of(request), switchboard.now())
    return answer(
        {
            "correlationId": upload.correlation_id,
            # With the account in the path, as storage emulators have it; SDKs put it before the container.
            "hostName": _storage_host(request),
            "containerName": CONTAINER,
            "blobName": upload.blob_name,
            "sasToken": uploads.sas_token(upload),
        }
    )


async def end_upload(switchboard: Switchboard, request: web.Request) -> web.Response:
    device_id = device_of(switchboard, request).device_id
    body = await body_of(request)
    if not isinstance(body, dict) or not isinstance(body.get("isSuccess"), bool):
        raise ServiceError(Fault.ArgumentInvalid, "the body has no isSuccess that is true or false")
    correlation_id = request.match_info.get("correlation") or body.get("correlationId")
    upload = switchboard.hub.uploads.end(device_id, correlation_id, switchboard.now())
    if body["isSuccess"]:
        _notify(switchboard, upload, _storage_host(request))
    return web.Response(status=204)


def _notify(switchboard: Switchboard, upload: Upload, storage_host: str) -> None:
    blob = switchboard.blobs.find(upload.blob_name) if switchboard.blobs else None
    if blob is None:
        return
    now = switchboard.now()
    notification: dict[str, Any] = {
        "deviceId": upload.device_id,
        "blobUri": f"https://{storage_host}/{CONTAINER}/{quote(upload.blob_name)}",
        "blobName": upload.blob_name,
        "lastUpdatedTime": wire_time(blob.modified_at),
        "blobSizeInBytes": blob.size_bytes,
        "enqueuedTimeUtc": wire_time(now),
    }
    switchboard.hub.file_notifications.post(notification, now)


def _storage_host(request: web.Request) -> str:
    return f"{request.host}/{ACCOUNT}"


_FILES = "/devices/{device}/files"

ROUTES = (
    Route("POST", _FILES, None, begin_upload),
    Route("POST", f"{_FILES}/notifications", None, end_upload),
    # Older SDKs name the upload in the path.
    Route("POST", f"{_FILES}/notifications/{{correlation}}", None, end_upload),
)
