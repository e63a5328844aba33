"""The server: the API, model files, signed metadata, metrics and health, behind one door.

``/api/v1/…`` is described by ``GET /openapi.json``. Nothing is answered without a key but health and the description;
model files are open while nobody has a key, or by wish of who runs the server.
"""

from importlib.metadata import version

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloud_registry.core.wire_problems import Problem
from cloud_registry.ports import Role
from cloud_registry.service.verbs import RolloutVerbs
from cloud_registry.web.access import Door
from cloud_registry.web.answers import TOLD_LENGTH_MAX, ServerParts, json_answer, problem_answer
from cloud_registry.web.artifact_routes import artifact_routes
from cloud_registry.web.openapi import openapi_document
from cloud_registry.web.upload_routes import upload_routes
from cloud_registry.web.verb_routes import verb_routes


def create_app(parts: ServerParts) -> Starlette:
    door = Door(parts)

    async def metrics(request: Request) -> Response:
        return await run_in_threadpool(_metrics, parts, door, request)

    async def description(_request: Request) -> Response:
        return json_answer(openapi_document(version("slipway")))

    app = Starlette(
        routes=[
            *artifact_routes(parts, door),
            *upload_routes(parts, door),
            *verb_routes(parts, door),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", description, methods=["GET"]),
            Route("/healthz", _health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_problem},
    )
    # A redirect would lead to whatever host the request names.
    app.router.redirect_slashes = False
    return app


async def _health(_request: Request) -> Response:
    return json_answer({"status": "ok"})


def _metrics(parts: ServerParts, door: Door, request: Request) -> Response:
    visit = door.visit("metrics", request)
    try:
        door.let_in(visit, Role.READER)
        parts.metrics.set_rollouts(each.state.value for each in parts.services[RolloutVerbs].rollouts())
    except Exception as err:  # noqa: BLE001  (a sentence and a line in the log for whatever it is)
        return door.refuse(visit, err)
    return Response(parts.metrics.text(), media_type=parts.metrics.content_type)


async def _http_problem(request: Request, err: Exception) -> Response:
    if isinstance(err, HTTPException) and err.status_code in (404, 405):
        # No NotFoundError: to a script that would say that there is no such model.
        asked = f"{request.method} {request.url.path[:TOLD_LENGTH_MAX]}"
        problem = Problem(
            error=f"this server answers no {asked}",
            hint="GET /openapi.json describes what it answers; it may be older than who asks.",
        )
        return json_answer(problem, err.status_code, err.headers)
    return problem_answer(err)
