"""The door of the server: who asks, whether he may, how often, and the line in the audit log."""

import base64
import binascii
import threading
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cloud_registry.core.access import may
from cloud_registry.errors import AccessDeniedError, TrustError
from cloud_registry.ports import Principal, Role
from cloud_registry.web.answers import TOLD_LENGTH_MAX, ServerParts, TooOftenError, problem_answer

NOBODY = Principal("nobody", "", frozenset())


@dataclass(slots=True)
class Visit:
    """One request as the audit log tells it."""

    what: str
    request: Request
    principal: Principal = NOBODY
    on: dict[str, Any] = field(default_factory=dict)
    started_s: float = 0.0

    @property
    def address(self) -> str:
        return self.request.client.host if self.request.client else "unix"


def credential_of(request: Request) -> str | None:
    """What the request shows: a bearer token, or the password of a device's URL. None where it shows nothing."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return "?"
    return None


class Door:
    """Lets requests in. Its methods run in a thread of a request."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts
        self._counting = threading.Lock()

    def visit(self, what: str, request: Request, **on: Any) -> Visit:
        return Visit(what, request, on=on, started_s=self._parts.monotonic_s())

    def let_in(self, visit: Visit, role: Role | None) -> Principal:
        """Recognise who asks and check the role; None lets everybody in who is known.

        Raises:
            TrustError: no good key. AccessDeniedError: his role does not include it. TooOftenError.
        """
        try:
            visit.principal = self._parts.keys.recognise(credential_of(visit.request))
        except TrustError:
            # Before anybody is recognised, the address has to answer for how often it asks.
            self._take_token(f"address:{visit.address}")
            self._parts.metrics.refused.labels("credential").inc()
            raise
        self._take_token(visit.principal.id)
        if role is not None and not may(visit.principal, role):
            self._parts.metrics.refused.labels("role").inc()
            own = " and ".join(sorted(visit.principal.roles))
            raise AccessDeniedError(
                f"{visit.principal.name!r} is {own}, and this takes the role {role}",
                hint=f"Ask who runs the server for a key with --role {role}.",
            )
        return visit.principal

    def let_in_public(self, visit: Visit) -> Principal:
        """For what is open while nobody has a key, or by wish of who runs the server."""
        if self._parts.is_public or not self._parts.keys.is_asked_for:
            self._take_token(f"address:{visit.address}")
            return NOBODY
        return self.let_in(visit, None)

    def note(self, visit: Visit, status: int, error: str = "") -> None:
        """Count the visit and write it down."""
        metrics = self._parts.metrics
        elapsed_s = self._parts.monotonic_s() - visit.started_s
        metrics.requests.labels(visit.what, str(status)).inc()
        metrics.duration.labels(visit.what).observe(elapsed_s)
        entry = {
            "at": self._parts.now().isoformat(timespec="milliseconds"),
            "who": visit.principal.id,
            "name": visit.principal.name,
            "from": visit.address,
            "what": visit.what,
            "on": {key: str(value)[:TOLD_LENGTH_MAX] for key, value in visit.on.items()},
            "status": status,
            "ms": round(elapsed_s * 1000),
        }
        self._parts.audit.write({**entry, "error": error[:TOLD_LENGTH_MAX]} if error else entry)

    def refuse(self, visit: Visit, err: Exception) -> Response:
        """The answer to what went wrong, written down."""
        answer = problem_answer(err)
        # Whoever asks too often is counted; a line for each of his requests would fill the disk for him.
        if answer.status_code == 429:
            self._parts.metrics.refused.labels("rate").inc()
        else:
            self.note(visit, answer.status_code, str(err))
        return answer

    def _take_token(self, caller: str) -> None:
        with self._counting:
            delay_s = self._parts.rate.delay_s(caller, self._parts.monotonic_s())
        if delay_s > 0:
            raise TooOftenError(delay_s)
