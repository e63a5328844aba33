"""Scheduled jobs, and imports and exports of the registry."""

import base64
import binascii

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.query.engine import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.routing import Route, answer, body_of, count_of
from simulators.iothub.server.switchboard import Switchboard


async def create_job(switchboard: Switchboard, request: web.Request) -> web.Response:
    document = switchboard.hub.jobs.create(request.match_info["job"], await body_of(request), switchboard.now())
    switchboard.start_work()
    return answer(document)


async def get_job(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(switchboard.hub.jobs.get(request.match_info["job"]).document())


async def cancel_job(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(switchboard.hub.jobs.cancel(request.match_info["job"], switchboard.now()))


async def query_jobs(switchboard: Switchboard, request: web.Request) -> web.Response:
    """A page of jobs, newest first: a bare array, as the service gives it, with the continuation in a header."""
    count = count_of(request.headers.get("x-ms-max-item-count"), "the page size", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX)
    first = _read_continuation(request.headers.get("x-ms-continuation"))
    jobs = switchboard.hub.jobs.documents(request.query.get("jobType"), request.query.get("jobStatus"))
    headers = {"x-ms-item-type": "JobResponse"}
    if len(jobs) > first + count:
        headers["x-ms-continuation"] = base64.b64encode(str(first + count).encode()).decode()
    return answer(jobs[first : first + count], headers=headers)


def _read_continuation(token: str | None) -> int:
    try:
        return int(base64.b64decode(token, validate=True)) if token else 0
    except (binascii.Error, ValueError) as err:
        raise ServiceError(Fault.ArgumentInvalid, "the continuation token is not one of this hub's") from err


async def create_exchange(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(switchboard.hub.exchange.create(await body_of(request), switchboard.now()))


async def list_exchanges(switchboard: Switchboard, _request: web.Request) -> web.Response:
    return answer(switchboard.hub.exchange.documents())


async def get_exchange(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(switchboard.hub.exchange.get(request.match_info["job"]).document())


async def cancel_exchange(switchboard: Switchboard, request: web.Request) -> web.Response:
    switchboard.hub.exchange.cancel(request.match_info["job"], switchboard.now())
    return web.Response(status=204)


_JOB = "/jobs/v2/{job}"

ROUTES = (
    Route("POST", "/jobs/create", Right.REGISTRY_WRITE, create_exchange),
    Route("GET", "/jobs", Right.REGISTRY_READ, list_exchanges),
    Route("GET", "/jobs/{job}", Right.REGISTRY_READ, get_exchange),
    Route("DELETE", "/jobs/{job}", Right.REGISTRY_WRITE, cancel_exchange),
    Route("GET", "/jobs/v2/query", Right.SERVICE_CONNECT, query_jobs),
    Route("PUT", _JOB, Right.SERVICE_CONNECT, create_job),
    Route("GET", _JOB, Right.SERVICE_CONNECT, get_job),
    Route("POST", f"{_JOB}/cancel", Right.SERVICE_CONNECT, cancel_job),
)
