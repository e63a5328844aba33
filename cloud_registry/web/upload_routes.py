"""Uploads that go on where they were cut: begun with digest and size, sent in pieces, whole when the digest is right.

``POST /api/v1/uploads`` begins one, or finds the one that was begun; ``GET /api/v1/uploads/{id}`` tells how far it is;
``PATCH`` with ``Upload-Offset`` sends the next piece.
"""

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_registry.errors import UsageError
from cloud_registry.ports import Role, StagedUpload
from cloud_registry.web.access import Door, Visit
from cloud_registry.web.answers import ServerParts, body_of, body_parts, json_answer
from manifests.model import Digest

API_ROOT = "/api/v1"
PIECE_BYTES_MAX = 64 * 1024 * 1024
_BEGIN_BYTES_MAX = 4096


class UploadBegun(msgspec.Struct, frozen=True):
    digest: Digest
    size: int


def upload_routes(parts: ServerParts, door: Door) -> list[Route]:
    routes = UploadRoutes(parts, door)
    return [
        Route(f"{API_ROOT}/uploads", routes.begin, methods=["POST"], name="uploads.begin"),
        Route(f"{API_ROOT}/uploads/{{id}}", routes.find, methods=["GET"], name="uploads.find"),
        Route(f"{API_ROOT}/uploads/{{id}}", routes.send, methods=["PATCH"], name="uploads.send"),
    ]


class UploadRoutes:
    def __init__(self, parts: ServerParts, door: Door) -> None:
        self._parts = parts
        self._door = door

    async def begin(self, request: Request) -> Response:
        visit = self._door.visit("uploads.begin", request)
        try:
            await run_in_threadpool(self._door.let_in, visit, Role.PUBLISHER)
            begun = _read(await body_of(request, _BEGIN_BYTES_MAX))
            visit.on["digest"] = begun.digest
            upload = await run_in_threadpool(self._parts.staging.begin, visit.principal.id, begun.digest, begun.size)
        except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
            return await run_in_threadpool(self._door.refuse, visit, err)
        return await self._told(visit, upload, 201)

    async def find(self, request: Request) -> Response:
        visit = self._door.visit("uploads.find", request, **request.path_params)
        try:
            await run_in_threadpool(self._door.let_in, visit, Role.PUBLISHER)
            upload = await run_in_threadpool(self._parts.staging.find, visit.principal.id, request.path_params["id"])
        except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
            return await run_in_threadpool(self._door.refuse, visit, err)
        return await self._told(visit, upload)

    async def send(self, request: Request) -> Response:
        visit = self._door.visit("uploads.send", request, **request.path_params)
        try:
            await run_in_threadpool(self._door.let_in, visit, Role.PUBLISHER)
            upload = await self._append(request, visit.principal.id, request.path_params["id"])
        except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
            return await run_in_threadpool(self._door.refuse, visit, err)
        return await self._told(visit, upload)

    async def _append(self, request: Request, owner: str, upload_id: str) -> StagedUpload:
        offset = request.headers.get("upload-offset", "")
        if not offset.isascii() or not offset.isdigit() or len(offset) > 18:
            raise UsageError(
                "the request lacks Upload-Offset", hint="Ask for it with GET; it is where the upload stands."
            )
        staging = self._parts.staging
        appending = staging.appending(owner, upload_id, int(offset))
        writer = await run_in_threadpool(appending.__enter__)
        try:
            async for part in body_parts(request, PIECE_BYTES_MAX):
                await run_in_threadpool(writer.write, part)
                self._parts.metrics.received.inc(len(part))
        except BaseException as err:
            # What came so far stays: the next piece begins behind it. In this thread, so that no cancellation skips it.
            appending.__exit__(type(err), err, err.__traceback__)
            raise
        await run_in_threadpool(appending.__exit__, None, None, None)
        return await run_in_threadpool(staging.find, owner, upload_id)

    async def _told(self, visit: Visit, upload: StagedUpload, status: int = 200) -> Response:
        value: dict[str, Any] = {
            "id": upload.id,
            "digest": upload.digest,
            "size": upload.size_bytes,
            "offset": upload.offset_bytes,
            "isWhole": upload.is_whole,
        }
        # Pieces and looks are counted, and only the ends of an upload are written down.
        if status == 201 or upload.is_whole:
            await run_in_threadpool(self._door.note, visit, status)
        headers = {"Upload-Offset": str(upload.offset_bytes), "Location": f"{API_ROOT}/uploads/{upload.id}"}
        return json_answer(value, status, headers)


def _read(body: bytes) -> UploadBegun:
    try:
        return msgspec.json.decode(body, type=UploadBegun)
    except (msgspec.DecodeError, RecursionError) as err:
        raise UsageError(f"an upload is begun with its digest and size: {err}") from err
