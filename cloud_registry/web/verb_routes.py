"""The API: a route for each row of the table of verbs."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec
from anyio import CapacityLimiter, to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cloud_registry.core.storage_urls import shown_url
from cloud_registry.errors import UsageError
from cloud_registry.service.verbs import VERBS, Verb
from cloud_registry.service.wire_form import Shape, convert, encode, path_value, shape_of
from cloud_registry.web.access import Door, Visit
from cloud_registry.web.answers import ServerParts, body_of, problem_seen

API_ROOT = "/api/v1"
STATE_FORM = "application/vnd.slipway.state+json"
EVENT_FORM = "application/x-ndjson"
# Each request takes a thread while it is worked on; what takes long takes one of fewer.
THREADS_MAX = 16
LONG_THREADS_MAX = 4
# Whoever is not let in hears so at once, however much is under way.
DOOR_THREADS_MAX = 8
# So that whoever stands in between does not take a quiet line for a dead one.
KEEP_ALIVE_S = 10.0
# An answer may hold a new key, and whoever stands in between is not to keep it.
_UNKEPT = {"Cache-Control": "no-store"}
FOLDER_FILES_MAX = 1000
NAME_BYTES_MAX = 255


def verb_routes(parts: ServerParts, door: Door) -> list[Route]:
    short, long, at_door = map(CapacityLimiter, (THREADS_MAX, LONG_THREADS_MAX, DOOR_THREADS_MAX))

    def route(verb: Verb) -> Route:
        runner = VerbRunner(parts, door, verb, long if shape_of(verb).listeners else short, at_door)
        return Route(API_ROOT + verb.path, runner.answer, methods=[verb.method], name=verb.id)

    # A path without parameters is looked for before one that would take its last word for a parameter.
    return [route(verb) for verb in sorted(VERBS, key=lambda verb: verb.path.count("{"))]


class VerbRunner:
    """Answers the requests for one verb."""

    def __init__(
        self, parts: ServerParts, door: Door, verb: Verb, limiter: CapacityLimiter, at_door: CapacityLimiter
    ) -> None:
        self._parts = parts
        self._door = door
        self._verb = verb
        self._shape: Shape = shape_of(verb)
        self._limiter = limiter
        self._at_door = at_door
        if verb.protocol not in parts.services.keys() | parts.services_by_caller.keys():
            raise KeyError(f"nothing answers {verb.id}")

    async def answer(self, request: Request) -> Response:
        visit = self._door.visit(self._verb.id, request, **request.path_params)
        try:
            # Who is not let in is not listened to either: his body stays unread.
            await to_thread.run_sync(self._door.let_in, visit, self._verb.role, limiter=self._at_door)
            body = await body_of(request) if self._verb.method not in ("GET", "DELETE") else b""
            if self._shape.is_streamed:
                return await to_thread.run_sync(self._streamed, visit, body, limiter=self._limiter)
            if self._shape.listeners and EVENT_FORM in request.headers.get("accept", ""):
                return StreamingResponse(self._told(visit, body), media_type=EVENT_FORM, headers=_UNKEPT)
            content = await to_thread.run_sync(self._done, visit, body, {}, limiter=self._limiter)
            return Response(content, media_type="application/json", headers=_UNKEPT)
        except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
            return await to_thread.run_sync(self._door.refuse, visit, err, limiter=self._at_door)

    # --- in a thread ---------------------------------------------------------

    def _done(self, visit: Visit, body: bytes, listeners: dict[str, Callable[..., None]]) -> bytes:
        """Do it and write it down; the JSON of its result."""
        with _Uploads(self._parts, visit.principal.id) as uploads:
            arguments = self._arguments(visit.request, body, uploads)
            visit.on |= _arguments_told(arguments)
            result = getattr(self._service(visit), self._verb.name)(**arguments, **listeners)
            uploads.forget()
        if self._verb.noted is not None:
            visit.on |= self._verb.noted(result)
        is_state = STATE_FORM in visit.request.headers.get("accept", "") or bool(listeners)
        viewed = result if is_state or self._verb.view is None else self._verb.view(result)
        content = encode(viewed)
        self._door.note(visit, 200)
        return content

    def _streamed(self, visit: Visit, body: bytes) -> Response:
        arguments = self._arguments(visit.request, body, None)
        values: Iterator[Any] = getattr(self._service(visit), self._verb.name)(**arguments)
        # What fails does so at the first value, while there is still an answer to tell it with.
        first = list(islice(values, 1))
        self._door.note(visit, 200)
        return StreamingResponse(
            iterate_in_threadpool(encode(value) + b"\n" for value in chain(first, values)), media_type=EVENT_FORM
        )

    def _service(self, visit: Visit) -> Any:
        by_caller = self._parts.services_by_caller.get(self._verb.protocol)
        return self._parts.services[self._verb.protocol] if by_caller is None else by_caller(visit.principal)

    def _arguments(self, request: Request, body: bytes, uploads: "_Uploads | None") -> dict[str, Any]:
        given = _object(body)
        arguments: dict[str, Any] = {}
        for parameter in self._shape.parameters:
            name = parameter.wire_name
            if parameter.place == "path":
                arguments[parameter.name] = path_value(request.path_params[parameter.name], parameter.type)
            elif parameter.place == "query" and name in request.query_params:
                value: Any = request.query_params[name]
                arguments[parameter.name] = convert(value, parameter.type, what=f"{name} in the query", strict=False)
            elif parameter.place == "body" and name in given:
                path_of = uploads.path_of if uploads is not None else None
                arguments[parameter.name] = convert(given[name], parameter.type, path_of, what=f"{name!r} in the body")
            elif parameter.is_required:
                raise UsageError(f"the request lacks {name!r}", hint="The server's /openapi.json describes it.")
        return arguments

    # --- while it goes on ----------------------------------------------------

    async def _told(self, visit: Visit, body: bytes) -> AsyncIterator[bytes]:
        """Events as they come, then the result or the problem. Whoever goes away does not stop what he began."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()
        is_gone = threading.Event()

        def tell(line: bytes | None) -> None:
            if not is_gone.is_set():
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def listener(name: str) -> Callable[..., None]:
            return lambda *values: tell(b'{"event":"%b","values":%b}\n' % (name.encode(), encode(values)))

        def work() -> None:
            try:
                content = self._done(visit, body, {name: listener(name) for name in self._shape.listeners})
                tell(b'{"result":%b}\n' % content)
            except Exception as err:  # noqa: BLE001  (the answer has begun, so that the problem is its last line)
                status, problem = problem_seen(err)
                self._door.note(visit, status, str(err))
                tell(msgspec.json.encode({"problem": problem}) + b"\n")
            finally:
                tell(None)

        working = asyncio.ensure_future(to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True))
        try:
            while True:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        line = await lines.get()
                except TimeoutError:
                    yield b"\n"
                    continue
                if line is None:
                    return
                yield line
        finally:
            is_gone.set()
            working.add_done_callback(lambda done: done.cancelled() or done.exception())


def _arguments_told(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the audit log tells of a request: plain values and lists of words, but never a URL's password."""
    told: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, str):
            told[name] = shown_url(value) if "://" in value else value
        elif isinstance(value, int | bool):
            told[name] = value
        elif isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
            told[name] = ", ".join(value)
    return told


class _Uploads:
    """The uploads that a request names, under the names that it gives them, in a folder of this request alone."""

    def __init__(self, parts: ServerParts, owner: str) -> None:
        self._staging = parts.staging
        self._owner = owner
        self._ids: list[str] = []
        self._folders: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def path_of(self, given: Any) -> Path:
        """A file or a folder of the request; raises UsageError for what names none, NotFoundError for no upload."""
        place = self._staging.scratch_folder()
        self._folders.append(place)
        if isinstance(given, dict) and isinstance(given.get("upload"), str):
            return self._placed(place, given, depth_max=1)
        if isinstance(given, dict) and isinstance(given.get("files"), list):
            folder = place / _segments(given.get("folder"), 1).name
            if len(given["files"]) > FOLDER_FILES_MAX:
                raise UsageError(f"a folder of at most {FOLDER_FILES_MAX} files is taken")
            folder.mkdir()
            for file in given["files"]:
                if not isinstance(file, dict):
                    break
                self._placed(folder, file, depth_max=16)
            else:
                return folder
        raise UsageError("a file is named by its upload", hint='Write {"upload": id, "name": name}.')

    def forget(self) -> None:
        """What was taken over need not be sent again."""
        for upload_id in set(self._ids):
            self._staging.remove(self._owner, upload_id)

    def _placed(self, folder: Path, given: dict[str, Any], depth_max: int) -> Path:
        path = folder / _segments(given.get("name"), depth_max)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UsageError(f"two files have the name {given.get('name')!r}")
        self._staging.place(self._owner, str(given.get("upload")), path)
        self._ids.append(str(given["upload"]))
        return path


def _segments(name: Any, depth_max: int) -> PurePosixPath:
    """A name as a path below a folder; raises UsageError for one that would leave it."""
    segments = str(name).split("/") if isinstance(name, str) else []
    is_good = 1 <= len(segments) <= depth_max and all(
        segment not in ("", ".", "..") and "\0" not in segment and len(segment.encode()) <= NAME_BYTES_MAX
        for segment in segments
    )
    if not is_good:
        raise UsageError(f"{str(name)[:80]!r} is no name of a file")
    return PurePosixPath(*segments)


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as err:
        raise UsageError(f"the request's body is no JSON that is read here: {err}") from err
    if not isinstance(given, dict):
        raise UsageError("the request's body is no JSON object")
    return given
