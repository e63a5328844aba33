"""The provisioning service over HTTPS: enrollments and registrations for the cloud side, and registering for devices.

As https://learn.microsoft.com/rest/api/iot-dps/ has it (service 2021-10-01, device 2021-06-01; any is accepted),
on the hub's own host and port.
"""

import functools
import re
from typing import Any

from aiohttp import web

from simulators.iothub.core.access import Right
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.provisioning import RETRY_AFTER_S, Proof
from simulators.iothub.core.provisioning.enrollments import Enrollments
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.entropy import SystemEntropy
from simulators.iothub.server.rest_api.routing import Handler, Route, answer, body_of, count_of, tagged_answer
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.server.tls import CLIENT_CERTIFICATES

PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX = 100, 1000
_QUERY = re.compile(r"\s*SELECT\s+\*(\s+FROM\s+\w+)?\s*;?\s*", re.IGNORECASE)
_ENTROPY = SystemEntropy()


def in_its_words(handler: Handler) -> Handler:
    """Word refusals as the provisioning service does, which is not as the hub does."""

    @functools.wraps(handler)
    async def handle(switchboard: Switchboard, request: web.Request) -> web.StreamResponse:
        try:
            return await handler(switchboard, request)
        except ServiceError as err:
            body = err.device_body(_ENTROPY.identifier(), wire_time(switchboard.now()))
            return answer(body, err.status, err.reason, {"x-ms-error-code": err.fault.name})

    return handle


def enrollments_of(switchboard: Switchboard, request: web.Request) -> Enrollments:
    provisioning = switchboard.hub.provisioning
    return provisioning.groups if request.path.startswith("/enrollmentGroups") else provisioning.enrollments


@in_its_words
async def get_enrollment(switchboard: Switchboard, request: web.Request) -> web.Response:
    return tagged_answer(enrollments_of(switchboard, request).get(request.match_info["id"]).document())


@in_its_words
async def put_enrollment(switchboard: Switchboard, request: web.Request) -> web.Response:
    enrollment = enrollments_of(switchboard, request).put(
        request.match_info["id"], await body_of(request), request.headers.get("If-Match"), switchboard.now()
    )
    return tagged_answer(enrollment.document(with_keys=True))


@in_its_words
async def delete_enrollment(switchboard: Switchboard, request: web.Request) -> web.Response:
    enrollments_of(switchboard, request).delete(request.match_info["id"], request.headers.get("If-Match"))
    return web.Response(status=204)


@in_its_words
async def show_attestation(switchboard: Switchboard, request: web.Request) -> web.Response:
    enrollment = enrollments_of(switchboard, request).get(request.match_info["id"])
    return answer(enrollment.attestation.document(with_keys=True))


@in_its_words
async def change_enrollments(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(enrollments_of(switchboard, request).change_many(await body_of(request), switchboard.now()))


@in_its_words
async def query_enrollments(switchboard: Switchboard, request: web.Request) -> web.Response:
    _check_query(await body_of(request))
    rows = [enrollment.document() for enrollment in enrollments_of(switchboard, request)]
    return _page(request, rows, "enrollmentGroup" if request.path.startswith("/enrollmentGroups") else "enrollment")


@in_its_words
async def query_registrations(switchboard: Switchboard, request: web.Request) -> web.Response:
    if request.can_read_body:
        _check_query(await body_of(request))
    rows = switchboard.hub.provisioning.registrations_of(request.match_info["id"])
    return _page(request, rows, "registration")


@in_its_words
async def get_registration(switchboard: Switchboard, request: web.Request) -> web.Response:
    return tagged_answer(switchboard.hub.provisioning.registration(request.match_info["id"]))


@in_its_words
async def delete_registration(switchboard: Switchboard, request: web.Request) -> web.Response:
    provisioning = switchboard.hub.provisioning
    provisioning.delete_registration(request.match_info["id"], request.headers.get("If-Match"))
    return web.Response(status=204)


# --- for devices ----------------------------------------------------------------------------------------------------


@in_its_words
async def register(switchboard: Switchboard, request: web.Request) -> web.Response:
    operation = switchboard.hub.provisioning.register(
        request.match_info["scope"], _proof_of(request), await request.read(), switchboard.now()
    )
    return answer(operation, 202, headers={"Retry-After": str(RETRY_AFTER_S)})


@in_its_words
async def get_operation(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(
        switchboard.hub.provisioning.operation(
            request.match_info["scope"], _proof_of(request), request.match_info["operation"], switchboard.now()
        )
    )


@in_its_words
async def get_own_registration(switchboard: Switchboard, request: web.Request) -> web.Response:
    return answer(
        switchboard.hub.provisioning.state_for(request.match_info["scope"], _proof_of(request), switchboard.now())
    )


# --- within ---------------------------------------------------------------------------------------------------------


def _proof_of(request: web.Request) -> Proof:
    credential = request.headers.get("Authorization", "")
    certificates: tuple[bytes, ...] = ()
    if not credential and request.transport is not None:
        certificates = request.transport.get_extra_info(CLIENT_CERTIFICATES, ())
    return Proof(request.match_info["id"], credential, certificates)


def _check_query(body: Any) -> None:
    text = body.get("query") if isinstance(body, dict) else None
    if not isinstance(text, str) or not _QUERY.fullmatch(text):
        raise ServiceError(Fault.ArgumentInvalid, f"the query is {text!r}; the simulator answers SELECT * and no other")


def _page(request: web.Request, rows: list[dict[str, Any]], item_type: str) -> web.Response:
    count = count_of(request.headers.get("x-ms-max-item-count"), "the page size", PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX)
    continuation = request.headers.get("x-ms-continuation") or "0"
    if not (continuation.isascii() and continuation.isdigit() and len(continuation) <= 9):
        raise ServiceError(Fault.ArgumentInvalid, f"the continuation {continuation!r} is none of ours")
    start = int(continuation)
    headers = {"x-ms-item-type": item_type}
    if start + count < len(rows):
        headers["x-ms-continuation"] = str(start + count)
    return answer(rows[start : start + count], headers=headers)


_DEVICE = "/{scope}/registrations/{id}"

ROUTES = (
    *(
        route
        for path in ("/enrollments", "/enrollmentGroups")
        for route in (
            Route("POST", path, Right.PROVISIONING, change_enrollments),
            Route("POST", f"{path}/query", Right.PROVISIONING, query_enrollments),
            Route("GET", f"{path}/{{id}}", Right.PROVISIONING, get_enrollment),
            Route("PUT", f"{path}/{{id}}", Right.PROVISIONING, put_enrollment),
            Route("DELETE", f"{path}/{{id}}", Right.PROVISIONING, delete_enrollment),
            Route("POST", f"{path}/{{id}}/attestationmechanism", Right.PROVISIONING, show_attestation),
        )
    ),
    Route("POST", "/registrations/{id}/query", Right.PROVISIONING, query_registrations),
    Route("GET", "/registrations/{id}", Right.PROVISIONING, get_registration),
    Route("DELETE", "/registrations/{id}", Right.PROVISIONING, delete_registration),
    Route("PUT", f"{_DEVICE}/register", None, register),
    Route("GET", f"{_DEVICE}/operations/{{operation}}", None, get_operation),
    Route("POST", _DEVICE, None, get_own_registration),
)
