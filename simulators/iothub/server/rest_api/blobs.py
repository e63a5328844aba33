"""The storage that devices upload to: as much of the Blob service as azure-storage-blob needs to write a block blob.

Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from xml.sax.saxutils import escape

from aiohttp import web

from simulators.iothub.core.uploads import ACCOUNT, CONTAINER, STORAGE_VERSION
from simulators.iothub.server.blob_store import COPY_BYTES, Blob, BlobStore, Draft, StoreFullError, content_md5
from simulators.iothub.server.rest_api.routing import Route
from simulators.iothub.server.switchboard import Switchboard

# 50,000 blocks with the longest id, and the tags around each.
BLOCK_LIST_BYTES_MAX = 8 * 1024 * 1024
_BLOCK = re.compile(r"<(Latest|Uncommitted|Committed)>([A-Za-z0-9+/=]{1,88})</\1>")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class StorageRefusal(Exception):  # noqa: N818  it is an answer of the protocol
    """A request that storage refuses, with its status and code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


Handler = Callable[[Switchboard, web.Request, BlobStore, str], Awaitable[web.StreamResponse]]


def _guarded(handler: Handler, permission: str) -> Callable[[Switchboard, web.Request], Awaitable[web.StreamResponse]]:
    """Check the signature in the URL, and word refusals as storage does."""

    async def handle(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
        name = request.match_info["blob"]
        try:
            blobs = _admit(switchboard, request, name, permission)
            return await handler(switchboard, request, blobs, name)
        except StoreFullError as err:
            return _refusal(StorageRefusal(413, "RequestBodyTooLarge", str(err)))
        except StorageRefusal as err:
            return _refusal(err)

    return handle


def _admit(switchboard: Switchboard, request: web.Request, name: str, permission: str) -> BlobStore:
    if switchboard.blobs is None:
        raise StorageRefusal(503, "ServerBusy", "this hub keeps no files")
    if not switchboard.hub.uploads.check_sas(name, request.query, permission, switchboard.now()):
        raise StorageRefusal(403, "AuthenticationFailed", "the signature in the URL is not good for this, or has ended")
    return switchboard.blobs


def _refusal(err: StorageRefusal) -> web.Response:
    error = f"<Error><Code>{err.code}</Code><Message>{escape(err.message)}</Message></Error>"
    body = f'<?xml version="1.0" encoding="utf-8"?>{error}'
    headers = {"x-ms-error-code": err.code, "x-ms-version": STORAGE_VERSION, "Content-Type": "application/xml"}
    return web.Response(status=err.status, body=body.encode(), headers=headers)


async def put_blob(switchboard: Switchboard, request: web.Request, blobs: BlobStore, name: str) -> web.StreamResponse:
    match request.query.get("comp"):
        case None:
            return await _put_whole(switchboard, request, blobs, name)
        case "block":
            return await _put_block(request, blobs, name)
        case "blocklist":
            return await _put_block_list(switchboard, request, blobs, name)
        case other:
            raise StorageRefusal(400, "InvalidQueryParameterValue", f"comp={other} is not simulated")


async def _put_whole(switchboard: Switchboard, request: web.Request, blobs: BlobStore, name: str) -> web.StreamResponse:
    if request.headers.get("x-ms-blob-type") != "BlockBlob":
        raise StorageRefusal(400, "InvalidHeaderValue", "x-ms-blob-type is not BlockBlob, the only kind there is here")
    _check_condition(request, blobs, name)
    draft = await _receive(request, blobs)
    content_type = request.headers.get("x-ms-blob-content-type") or request.content_type
    return _created(blobs.put(name, draft, content_type, switchboard.now()), draft.content_md5)


async def _put_block(request: web.Request, blobs: BlobStore, name: str) -> web.StreamResponse:
    block_id = request.query.get("blockid", "")
    if not re.fullmatch(r"[A-Za-z0-9+/=]{1,88}", block_id):
        raise StorageRefusal(400, "InvalidQueryParameterValue", "blockid is not base64 of 1 to 64 bytes")
    draft = await _receive(request, blobs)
    try:
        blobs.stage(name, block_id, draft)
    except StoreFullError:
        draft.discard()
        raise
    return web.Response(status=201, headers=_common() | {"Content-MD5": draft.content_md5})


async def _put_block_list(
    switchboard: Switchboard, request: web.Request, blobs: BlobStore, name: str
) -> web.StreamResponse:
    _check_condition(request, blobs, name)
    text = await _read_bounded(request, BLOCK_LIST_BYTES_MAX)
    wanted = _BLOCK.findall(text.decode(errors="replace"))
    if any(kind == "Committed" for kind, _ in wanted):
        raise StorageRefusal(400, "InvalidBlockList", "only blocks that were put since can be listed here")
    blocks = blobs.take_blocks(name, [block_id for _, block_id in wanted])
    if blocks is None:
        raise StorageRefusal(400, "InvalidBlockList", "the list names a block that was not put")
    draft = await _assemble(blobs, blocks)
    content_type = request.headers.get("x-ms-blob-content-type") or "application/octet-stream"
    blob = blobs.put(name, draft, content_type, switchboard.now())
    # The digest in the answer is that of the request, which clients compare: here that of the list.
    return _created(blob, content_md5(text))


async def _assemble(blobs: BlobStore, blocks: list[Draft]) -> Draft:
    """One draft of all blocks, which are gone then."""
    draft = blobs.draft()
    try:
        for block in blocks:
            for data in block.read():
                draft.write(data)
                # A large blob is put together in pieces, so that devices are not kept waiting.
                await asyncio.sleep(0)
    except BaseException:
        draft.discard()
        raise
    finally:
        for block in set(blocks):
            block.discard()
    return draft


async def get_blob(_switchboard: Switchboard, request: web.Request, blobs: BlobStore, name: str) -> web.StreamResponse:
    blob = blobs.find(name)
    if blob is None:
        raise StorageRefusal(404, "BlobNotFound", "no blob of this name was written")
    first, last, is_part = _read_range(request, blob)
    headers = _description(blob) | {"Content-Length": str(last + 1 - first)}
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{last}/{blob.size_bytes}"
    response = web.StreamResponse(status=206 if is_part else 200, headers=headers)
    # Opened first: whoever replaces the blob meanwhile leaves these bytes to us.
    with blobs.path_of(name).open("rb") as file:
        file.seek(first)
        left = last + 1 - first
        await response.prepare(request)
        while request.method != "HEAD" and left > 0 and (data := file.read(min(COPY_BYTES, left))):
            await response.write(data)
            left -= len(data)
    await response.write_eof()
    return response


def _read_range(request: web.Request, blob: Blob) -> tuple[int, int, bool]:
    text = request.headers.get("x-ms-range") or request.headers.get("Range")
    parsed = _RANGE.fullmatch(text) if text and request.method != "HEAD" else None
    if parsed is None:
        return 0, blob.size_bytes - 1, False
    first = int(parsed[1])
    last = min(int(parsed[2]) if parsed[2] else blob.size_bytes - 1, blob.size_bytes - 1)
    if first > last:
        raise StorageRefusal(416, "InvalidRange", f"the blob has {blob.size_bytes} bytes")
    return first, last, True


def _check_condition(request: web.Request, blobs: BlobStore, name: str) -> None:
    if request.headers.get("If-None-Match") == "*" and blobs.find(name) is not None:
        raise StorageRefusal(409, "BlobAlreadyExists", "there is a blob of this name; overwrite=True replaces it")


async def _receive(request: web.Request, blobs: BlobStore) -> Draft:
    """The body of a request as a draft; a body that is not what its digest says is refused."""
    draft = blobs.draft()
    try:
        async for chunk in request.content.iter_chunked(COPY_BYTES):
            draft.write(chunk)
        _check_digest(draft, request.headers.get("Content-MD5"))
    except BaseException:
        draft.discard()
        raise
    return draft


def _check_digest(draft: Draft, expected: str | None) -> None:
    if expected and expected != draft.content_md5:
        raise StorageRefusal(400, "Md5Mismatch", f"the body has MD5 {draft.content_md5}, not {expected}")


async def _read_bounded(request: web.Request, size_bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > size_bytes_max:
            raise StorageRefusal(413, "RequestBodyTooLarge", f"the body is more than {size_bytes_max} bytes")
    return bytes(body)


def _created(blob: Blob, request_md5: str) -> web.Response:
    return web.Response(status=201, headers=_common() | _version(blob) | {"Content-MD5": request_md5})


def _version(blob: Blob) -> dict[str, str]:
    return {"ETag": f'"{blob.etag}"', "Last-Modified": formatdate(blob.modified_at, usegmt=True)}


def _description(blob: Blob) -> dict[str, str]:
    kind = {"Content-Type": blob.content_type, "x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes"}
    return _common() | _version(blob) | kind | {"x-ms-blob-content-md5": blob.content_md5}


def _common() -> dict[str, str]:
    return {"x-ms-version": STORAGE_VERSION, "x-ms-request-server-encrypted": "false"}


_BLOB = f"/{ACCOUNT}/{CONTAINER}/{{blob:.+}}"

ROUTES = (
    Route("PUT", _BLOB, None, _guarded(put_blob, "w")),
    Route("GET", _BLOB, None, _guarded(get_blob, "r")),
    Route("HEAD", _BLOB, None, _guarded(get_blob, "r")),
)
