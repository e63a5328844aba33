"""The artifact server: model files by their target, whole or in part, with validators that never lie.

``GET|HEAD /artifacts/{target}`` and ``GET /healthz``. An artifact never changes under its target and its ETag is its
digest, so a device resumes a download with ``Range`` and ``If-Range``.
"""

from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cloud_registry.core.http_ranges import answer
from cloud_registry.errors import NotFoundError, RegistryError
from cloud_registry.ports import ArtifactStore, ModelCatalogStore

# An artifact's bytes are fixed for ever; whether a version was deleted is asked again each time.
CACHE_CONTROL = "no-cache"
TARGET_LENGTH_MAX = 128


def create_app(catalog: ModelCatalogStore, artifacts: ArtifactStore) -> Starlette:
    async def artifact(request: Request) -> Response:
        return await run_in_threadpool(_artifact, catalog, artifacts, request)

    return Starlette(
        routes=[
            Route("/artifacts/{target:path}", artifact, methods=["GET"]),
            Route("/healthz", _health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_problem, RegistryError: _registry_problem},
    )


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _artifact(catalog: ModelCatalogStore, artifacts: ArtifactStore, request: Request) -> Response:
    # The target is looked up, never joined to a path, so that nothing outside the catalog can be named.
    target = str(request.path_params["target"])
    file = catalog.file(target) if len(target) <= TARGET_LENGTH_MAX else None
    if file is None:
        raise NotFoundError(f"there is no artifact {target[:TARGET_LENGTH_MAX]!r}")
    stored_bytes = artifacts.size_bytes(file.digest)
    if stored_bytes != file.size_bytes:
        seen = "nothing" if stored_bytes is None else f"{stored_bytes} bytes"
        raise RegistryError(f"the store holds {seen} for {target}; the catalog says {file.size_bytes} bytes")
    said = answer(request.headers, file.digest, file.size_bytes)
    headers = {
        "ETag": f'"{file.digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE_CONTROL,
        "Content-Length": str(said.stop - said.start),
    }
    content_range = said.content_range(file.size_bytes)
    if content_range is not None:
        headers["Content-Range"] = content_range
    if said.status == 304:
        del headers["Content-Length"]
        return Response(status_code=304, headers=headers)
    if said.status == 416 or request.method == "HEAD":
        return Response(status_code=said.status, headers=headers)
    body: Iterator[bytes] = artifacts.read(file.digest, said.start, said.stop)
    return StreamingResponse(body, said.status, headers, media_type="application/octet-stream")


async def _http_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return JSONResponse({"error": err.detail}, err.status_code, headers=dict(err.headers or {}))


async def _registry_problem(_request: Request, err: Exception) -> Response:
    assert isinstance(err, RegistryError)
    status = 404 if isinstance(err, NotFoundError) else 500
    return JSONResponse({"error": err.message}, status)
