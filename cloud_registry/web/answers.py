"""What every handler of the server shares: its parts, errors as answers, bodies with a bound."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cloud_registry.core.request_rate import RequestRate
from cloud_registry.core.wire_problems import Problem, problem_of
from cloud_registry.errors import BodyTooLargeError, RegistryError, UsageError
from cloud_registry.ports import ArtifactStore, AuditLog, ModelCatalogStore, Principal, UploadStaging
from cloud_registry.service.keys import KeyService
from cloud_registry.web.metrics import Metrics
from manifests.errors import ManifestError

# A registration with ten thousand labels is the largest request; files travel as uploads.
BODY_BYTES_MAX = 16 * 1024 * 1024
# A body that stands still for so long is given up.
BODY_TIMEOUT_S = 30.0
TOLD_LENGTH_MAX = 200

logger = logging.getLogger("slipway.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """What the server is put together from.

    Attributes:
        services: the object that satisfies each protocol of verbs.
        services_by_caller: of protocols whose verbs depend on who asks, what makes that object for him.
        offers: the targets that a device's key may fetch, asked anew for each request.
        is_public: artifacts and metadata are for everybody, whoever has keys.
        metadata: folder of the signed metadata, where there is any.
    """

    services: Mapping[type, Any]
    catalog: ModelCatalogStore
    artifacts: ArtifactStore
    keys: KeyService
    staging: UploadStaging
    offers: Callable[[Principal, str], bool]
    audit: AuditLog
    now: Callable[[], Any]
    monotonic_s: Callable[[], float]
    rate: RequestRate
    is_public: bool = False
    metadata: Path | None = None
    services_by_caller: Mapping[type, Callable[[Principal], Any]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)


class TooOftenError(RegistryError):
    """Somebody asks more often than he may; `delay_s` is when he may again."""

    def __init__(self, delay_s: float) -> None:
        super().__init__("too many requests", hint=f"Try again in {delay_s:.1f} s.")
        self.delay_s = delay_s


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, dict(headers or {}), "application/json")


def problem_answer(err: Exception) -> Response:
    """An error as its answer; what nobody foresaw is logged, and its words stay here."""
    if isinstance(err, TooOftenError):
        retry_after = {"Retry-After": str(max(1, round(err.delay_s + 0.5)))}
        return json_answer(Problem(error=err.message, hint=err.hint), 429, retry_after)
    if isinstance(err, HTTPException):
        return json_answer(Problem(error=err.detail), err.status_code, err.headers)
    status, problem = problem_seen(err)
    headers = {"WWW-Authenticate": 'Bearer realm="slipway"'} if status == 401 else None
    return json_answer(problem, status, headers)


def problem_seen(err: Exception) -> tuple[int, Problem]:
    if isinstance(err, RegistryError | ManifestError):
        return problem_of(err)
    if isinstance(err, OSError):
        logger.error("the operating system refused: %s", err)
        return problem_of(RegistryError(f"the server's operating system refused: {err.strerror or type(err).__name__}"))
    logger.error("a request failed in a way that nobody foresaw", exc_info=err)
    return problem_of(RegistryError("the server failed", hint="Its log says why."))


async def body_of(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body; raises BodyTooLargeError before more than the bound is in memory."""
    parts = [part async for part in body_parts(request, bytes_max)]
    return b"".join(parts)


async def body_parts(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > bytes_max:
        raise BodyTooLargeError(f"the body has {int(said):,} bytes; at most {bytes_max:,} are taken")
    seen_bytes = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                part = await anext(stream, None)
        except TimeoutError as err:
            raise UsageError(f"the body stood still for {BODY_TIMEOUT_S:g} s") from err
        except ClientDisconnect as err:
            raise UsageError("the line was cut in the middle of the body") from err
        if part is None:
            return
        seen_bytes += len(part)
        if seen_bytes > bytes_max:
            raise BodyTooLargeError(f"the body has more than {bytes_max:,} bytes")
        if part:
            yield part
