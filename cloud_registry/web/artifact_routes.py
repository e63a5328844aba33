"""Model files by their target, whole or in part, with validators that never lie; and the signed metadata about them.

``GET|HEAD /artifacts/{target}``, ``GET /metadata/{file}``. An artifact never changes under its target and its ETag is
its digest, so a device resumes a download with ``Range`` and ``If-Range``.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cloud_registry.core.access import may
from cloud_registry.core.http_ranges import answer
from cloud_registry.core.model_directory import PATH_LENGTH_MAX
from cloud_registry.errors import AccessDeniedError, NotFoundError, RegistryError
from cloud_registry.ports import Principal, Role
from cloud_registry.web.access import NOBODY, Door
from cloud_registry.web.answers import TOLD_LENGTH_MAX, ServerParts

# An artifact's bytes are fixed for ever; whether a version was deleted is asked again each time.
CACHE_CONTROL = "no-cache"
# A file of a registered directory: name/version/source/path.
TARGET_LENGTH_MAX = 128 + PATH_LENGTH_MAX
BEGINNING_THREADS_MAX = 40
METADATA_BYTES_MAX = 64 * 1024 * 1024
# As TUF names them: ``12.root.json``, ``timestamp.json``, ``3.digits.json``.
_METADATA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,120}\.json")


def artifact_routes(parts: ServerParts, door: Door) -> list[Route]:
    routes = ArtifactRoutes(parts, door)
    return [
        Route("/artifacts/{target:path}", routes.artifact, methods=["GET"], name="artifact"),
        Route("/metadata/{file}", routes.metadata, methods=["GET"], name="metadata"),
    ]


_Handler = Callable[[Request, Principal], Response]


class ArtifactRoutes:
    def __init__(self, parts: ServerParts, door: Door) -> None:
        self._parts = parts
        self._door = door
        # Downloads under way read their next chunk in other threads, so that no slow beginning holds them up.
        self._beginning = CapacityLimiter(BEGINNING_THREADS_MAX)

    async def artifact(self, request: Request) -> Response:
        return await to_thread.run_sync(self._answered, request, "artifact", self._artifact, limiter=self._beginning)

    async def metadata(self, request: Request) -> Response:
        return await to_thread.run_sync(self._answered, request, "metadata", self._metadata, limiter=self._beginning)

    def _answered(self, request: Request, what: str, handler: _Handler) -> Response:
        visit = self._door.visit(what, request, **request.path_params)
        try:
            principal = self._door.let_in_public(visit)
            given = handler(request, principal)
        except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
            return self._door.refuse(visit, err)
        if what == "artifact":
            self._door.note(visit, given.status_code)
        return given

    def _artifact(self, request: Request, principal: Principal) -> Response:
        # The target is looked up, never joined to a path, so that nothing outside the catalog can be named.
        target = str(request.path_params["target"])
        self._check_offered(principal, target)
        file = self._parts.catalog.file(target) if len(target) <= TARGET_LENGTH_MAX else None
        if file is None:
            raise NotFoundError(f"there is no artifact {target[:TOLD_LENGTH_MAX]!r}")
        stored_bytes = self._parts.artifacts.size_bytes(file.digest)
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
        chunks = self._parts.artifacts.read(file.digest, said.start, said.stop)
        return StreamingResponse(self._sent(chunks), said.status, headers, media_type="application/octet-stream")

    async def _sent(self, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The bytes, counted. A reader that goes away closes the file at once."""
        metrics = self._parts.metrics
        metrics.downloads.inc()
        try:
            while True:
                chunk = await run_in_threadpool(next, chunks, b"")
                if not chunk:
                    return
                metrics.sent.inc(len(chunk))
                yield chunk
        finally:
            metrics.downloads.dec()
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def _check_offered(self, principal: Principal, target: str) -> None:
        """A device's key opens what its fleet is offered; it does not tell what else there is."""
        if principal is NOBODY or may(principal, Role.READER):
            return
        if not self._parts.offers(principal, target):
            raise AccessDeniedError(
                f"{principal.name!r} is not offered {target[:TOLD_LENGTH_MAX]!r}",
                hint="A device fetches what a rollout, or its module twin, offers to its fleet.",
            )

    def _metadata(self, request: Request, _principal: Principal) -> Response:
        name, folder = str(request.path_params["file"]), self._parts.metadata
        path = folder / name if folder is not None and _METADATA_NAME.fullmatch(name) else None
        if path is None or path.is_symlink() or not path.is_file() or path.stat().st_size > METADATA_BYTES_MAX:
            raise NotFoundError(f"there is no metadata {name[:TOLD_LENGTH_MAX]!r}")
        content = path.read_bytes()
        # A stale timestamp would keep a device from what was published.
        return Response(content, media_type="application/json", headers={"Cache-Control": CACHE_CONTROL})
