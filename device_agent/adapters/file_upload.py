"""Files to the cloud: by the hub's file upload for device identities, or into a blob container for everybody else.

The hub knows file uploads of devices only, not of modules: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-file-upload.
A module may put blobs into a container instead, for which it is given a URL with a shared access signature; the blob
storage module of IoT Edge is one.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import requests
from azure.iot.device.exceptions import ClientError, OperationCancelled, OperationTimeout, ServiceError

from device_agent.errors import LinkError

CONNECT_TIMEOUT_S = 10.0
# Of silence; a slow line may take as long as it needs.
ANSWER_TIMEOUT_S = 60.0
HUB_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 5.0


class HubUpload:
    """Satisfies `ports.FileSink` for a device identity. Needs no MQTT connection: these calls are HTTPS."""

    def __init__(self, make_client: Callable[[], Any], ca_file: Path | None) -> None:
        self._make_client = make_client
        self._ca_file = ca_file

    async def upload(self, name: str, path: Path) -> None:
        client = await asyncio.to_thread(self._make_client)
        try:
            place = await _answered(client.get_storage_info_for_blob(name), "asking the hub for a place to upload to")
            address = f"https://{place['hostName']}/{place['containerName']}/{quote(place['blobName'])}"
            try:
                await asyncio.to_thread(put_blob, address + place["sasToken"], path, self._ca_file)
            except LinkError as err:
                # Without this the hub would count it as under way for an hour, and ten are all that it allows.
                told = client.notify_blob_upload_status(place["correlationId"], False, 500, err.message)
                await _answered(told, "telling the hub of a failed upload")
                raise
            done = client.notify_blob_upload_status(place["correlationId"], True, 200, "uploaded")
            await _answered(done, "telling the hub of an upload")
        finally:
            await _closed(client)


class ContainerUpload:
    """Satisfies `ports.FileSink` with a container's URL and its signature, which may create and write blobs."""

    def __init__(self, container_url: str, prefix: str, ca_file: Path | None) -> None:
        self._parts = urlsplit(container_url)
        self._prefix = prefix
        self._ca_file = ca_file

    async def upload(self, name: str, path: Path) -> None:
        place = f"{self._parts.path.rstrip('/')}/{quote(self._prefix)}/{quote(name)}"
        await asyncio.to_thread(put_blob, urlunsplit(self._parts._replace(path=place)), path, self._ca_file)


def put_blob(url: str, path: Path, ca_file: Path | None) -> None:
    """Write a file as one block blob, checked by its digest at the other end; raises LinkError.

    https://learn.microsoft.com/rest/api/storageservices/put-blob: a blob is there as a whole or not at all.
    """
    with path.open("rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        file.seek(0)
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "Content-MD5": digest,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
        }
        try:
            response = requests.put(
                url,
                data=file,
                headers=headers,
                timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S),
                verify=str(ca_file) if ca_file else True,
            )
        except (requests.RequestException, OSError) as err:
            # Not its words: they hold the URL, which holds the signature.
            raise LinkError(f"Uploading {path.name} failed: {type(err).__name__}.") from None
    if response.status_code != 201:
        code = response.headers.get("x-ms-error-code", response.reason)
        raise LinkError(
            f"Uploading {path.name} was answered {response.status_code} {code}.",
            hint="Check that the container exists and that its signature has not expired."
            if response.status_code in (403, 404)
            else "",
        )


async def _answered(call: Awaitable[Any], doing: str) -> Any:
    try:
        async with asyncio.timeout(HUB_TIMEOUT_S):
            return await call
    except (ServiceError, ClientError, OperationCancelled, OperationTimeout, TimeoutError) as err:
        reason = str(err.__cause__ or err).rstrip(".") or type(err).__name__
        raise LinkError(f"{doing[0].upper()}{doing[1:]} failed: {reason}.") from err


async def _closed(client: Any) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await client.shutdown()
    except (ClientError, OperationCancelled, OperationTimeout, TimeoutError, RuntimeError):
        # It was never connected; what it leaves are threads that end by themselves.
        return
