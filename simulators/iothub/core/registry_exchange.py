"""Import and export of the whole registry: jobs that carry identities and twins between the hub and a blob container.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-bulk-identity-mgmt. A blob holds one ExportImportDevice
document a line.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from simulators.iothub.core.bulk import Identities, run_line
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.ports import Entropy
from simulators.iothub.core.registry import Identity, IdentityId, Registry
from simulators.iothub.core.twins import Twin
from simulators.iothub.errors import Fault, ServiceError

DEVICES_BLOB, ERRORS_BLOB = "devices.txt", "importErrors.log"
KINDS = ("export", "import")
HISTORY_MAX = 100

# What becomes of a job; an event that is not listed for a status changes nothing.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("enqueued", "start"): "running",
    ("enqueued", "cancel"): "cancelled",
    ("running", "done"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelled",
}
ACTIVE = ("enqueued", "running")


class Holder(Identities, Protocol):
    """The hub as this sees it."""

    @property
    def registry(self) -> Registry: ...

    def twin(self, identity_id: IdentityId) -> Twin: ...


@dataclass(slots=True)
class ExchangeJob:
    """One import or export; `body` is what the caller asked for."""

    id: str
    kind: str
    body: dict[str, Any]
    started_at: float
    status: str = "enqueued"
    progress: int = 0
    ended_at: float | None = None
    failure: str | None = None

    def happen(self, event: str) -> None:
        self.status = TRANSITIONS.get((self.status, event), self.status)

    @property
    def source(self) -> tuple[str, str]:
        """Container and name of the blob that an import reads."""
        return self.body["inputBlobContainerUri"], self.body.get("inputBlobName") or DEVICES_BLOB

    @property
    def destination(self) -> tuple[str, str]:
        """Container and name of the blob that is written: the export, or the errors of an import."""
        name = ERRORS_BLOB if self.kind == "import" else self.body.get("outputBlobName") or DEVICES_BLOB
        return self.body["outputBlobContainerUri"], name

    def document(self) -> dict[str, Any]:
        """The job as the REST API shows it."""
        names = (
            *("inputBlobContainerUri", "inputBlobName", "outputBlobContainerUri", "outputBlobName"),
            *("excludeKeysInExport", "storageAuthenticationType"),
        )
        return {
            "jobId": self.id,
            "startTimeUtc": wire_time(self.started_at),
            "endTimeUtc": None if self.ended_at is None else wire_time(self.ended_at),
            "type": self.kind,
            "status": self.status,
            "progress": self.progress,
            **{name: self.body.get(name) for name in names},
            "failureReason": self.failure,
        }


class RegistryExchange:
    """The import and export jobs of a hub, of which one is active at a time.

    Args:
        launch: is told the id of a job that is to be carried out.
        touch: is told the id of a job that changed.
    """

    def __init__(
        self,
        holder: Holder,
        entropy: Entropy,
        launch: Callable[[str], None],
        touch: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self._holder = holder
        self._entropy = entropy
        self._launch = launch
        self._touch = touch
        self._jobs: dict[str, ExchangeJob] = {}

    def create(self, body: Any, now: float) -> dict[str, Any]:
        """Begin a job; raises ServiceError 400 for a bad document, 403 while another is active."""
        _check_body(body)
        if any(job.status in ACTIVE for job in self._jobs.values()):
            raise ServiceError(Fault.JobQuotaExceeded, "another import or export is active; one may be at a time")
        job = ExchangeJob(self._entropy.identifier(), body["type"], body, now)
        self._jobs[job.id] = job
        while len(self._jobs) > HISTORY_MAX:
            oldest = next(iter(self._jobs))
            del self._jobs[oldest]
            self._touch(oldest)
        self._touch(job.id)
        self._launch(job.id)
        return job.document()

    def get(self, job_id: str) -> ExchangeJob:
        job = self._jobs.get(job_id)
        if job is None:
            raise ServiceError(Fault.JobNotFound, f"job {job_id} does not exist")
        return job

    def documents(self) -> list[dict[str, Any]]:
        return [job.document() for job in sorted(self._jobs.values(), key=lambda item: item.started_at)]

    def cancel(self, job_id: str, now: float) -> None:
        """Stop a job; what an import has done by then stays done. One that has ended stays as it ended."""
        self._end(self.get(job_id), "cancel", now, None)

    def start(self, job_id: str) -> ExchangeJob | None:
        """The job, from now on running; None where it was cancelled before."""
        job = self._jobs.get(job_id)
        if job is None or job.status != "enqueued":
            return None
        job.happen("start")
        self._touch(job_id)
        return job

    def finish(self, job_id: str, now: float, failure: str | None = None) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            self._end(job, "fail" if failure else "done", now, failure)

    def _end(self, job: ExchangeJob, event: str, now: float, failure: str | None) -> None:
        if job.status not in ACTIVE:
            return
        job.happen(event)
        job.ended_at, job.failure = now, failure
        job.progress = 100 if job.status == "completed" else job.progress
        self._touch(job.id)

    def exported(self, *, exclude_keys: bool) -> Iterator[bytes]:
        """All devices and modules with their twins, each as a line."""
        registry = self._holder.registry
        for identity in [*registry.devices(), *registry.modules()]:
            if registry.find(identity.id) is not None:
                document = _line(identity, self._holder.twin(identity.id), exclude_keys=exclude_keys)
                yield json.dumps(document, separators=(",", ":")).encode() + b"\r\n"

    def imported(self, lines: bytes, now: float) -> Iterator[bytes | None]:
        """Carry out the lines of a blob one by one: an error's line for each that was refused, None for the others."""
        for line in lines.removeprefix(b"\xef\xbb\xbf").splitlines():
            if not line.strip():
                continue
            error = run_line(self._holder, line, now)
            yield None if error is None else json.dumps(error, separators=(",", ":")).encode() + b"\r\n"

    # --- durable ----------------------------------------------------------------------------------------------------

    def record(self, key: str) -> Any | None:
        """A job as JSON types; None where it is gone."""
        job = self._jobs.get(key)
        return None if job is None else {name: getattr(job, name) for name in _RECORD}

    def restore(self, key: str, record: Any) -> None:
        """Take back what was kept. A job that was under way has lost its stream."""
        job = self._jobs[key] = ExchangeJob(key, **record)
        if job.status in ACTIVE:
            job.happen("start")
            job.happen("fail")
            job.ended_at, job.failure = job.started_at, "the hub stopped while the job ran"


_RECORD = ("kind", "body", "started_at", "status", "progress", "ended_at", "failure")


def _check_body(body: Any) -> None:
    if not isinstance(body, dict) or body.get("type") not in KINDS:
        raise ServiceError(Fault.ArgumentInvalid, f"the body is not a job of type {' or '.join(KINDS)}")
    if body.get("storageAuthenticationType") == "identityBased":
        raise ServiceError(Fault.ArgumentInvalid, "the simulated hub has no identity; give a URI with a SAS token")
    needed = ["outputBlobContainerUri"] + (["inputBlobContainerUri"] if body["type"] == "import" else [])
    for name in needed:
        uri = body.get(name)
        if not isinstance(uri, str) or not uri.startswith(("https://", "http://")):
            raise ServiceError(Fault.ArgumentInvalid, f"{name} is {uri!r}, not the URI of a container")
    for name in ("inputBlobName", "outputBlobName"):
        if body.get(name) is not None and not (isinstance(body[name], str) and body[name]):
            raise ServiceError(Fault.ArgumentInvalid, f"{name} is {body[name]!r}")


def _line(identity: Identity, twin: Twin, *, exclude_keys: bool) -> dict[str, Any]:
    document = identity.document()
    authentication = document["authentication"]
    if exclude_keys:
        authentication = {**authentication, "symmetricKey": {"primaryKey": None, "secondaryKey": None}}
    module = {"moduleId": identity.id.module_id, "managedBy": identity.managed_by} if identity.id.module_id else {}
    names = ("status", "statusReason", "capabilities", "deviceScope", "parentScopes")
    return {
        "id": identity.id.device_id,
        **module,
        "eTag": identity.etag,
        **{name: document[name] for name in names if name in document},
        "authentication": authentication,
        "twinETag": twin.etag,
        "tags": twin.tags,
        "properties": {"desired": twin.desired.document(), "reported": twin.reported.document()},
    }
