"""Scheduled jobs: one twin update or one method call for each device that a condition selects, over time.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-jobs.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.methods import MethodRequest, MethodResult
from simulators.iothub.core.query.expressions import Document
from simulators.iothub.core.query.grammar import Target, parse_target
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError

HISTORY_S = 30 * 24 * 3600.0
EXECUTION_S_DEFAULT = 3600
EXECUTION_S_MAX = 10 * 24 * 3600
# Calls of one job that wait for their devices at the same time.
CALLS_MAX = 100
UPDATE_TWIN, DEVICE_METHOD = "scheduleUpdateTwin", "scheduleDeviceMethod"
_ID = re.compile(r"[A-Za-z0-9\-]{1,64}")

_JOB_RECORD = ("kind", "query_condition", "body", "created_at", "start_at", "execution_s", "status", "ended_at")
_ROW_RECORD = ("place", "updated_at", "status", "started_at", "ended_at", "response", "error")

# What becomes of a job; an event that is not listed for a status changes nothing.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("scheduled", "due"): "queued",
    ("scheduled", "cancel"): "cancelled",
    ("queued", "start"): "running",
    ("queued", "cancel"): "cancelled",
    ("running", "done"): "completed",
    ("running", "every device failed"): "failed",
    ("running", "cancel"): "cancelled",
}
ACTIVE = ("scheduled", "queued", "running")


class Workplace(Protocol):
    """What jobs work on."""

    def targets(self, target: Target, now: float) -> list[IdentityId]: ...

    def write_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> None: ...

    def invoke_method(self, identity_id: IdentityId, request: MethodRequest, now: float) -> str: ...


@dataclass(slots=True)
class Row:
    """What a job did to one device; `place` orders the rows of all jobs."""

    place: int
    identity_id: IdentityId
    updated_at: float
    status: str = "pending"
    started_at: float | None = None
    ended_at: float | None = None
    response: dict[str, Any] | None = None
    error: dict[str, str] | None = None


@dataclass(slots=True)
class Job:
    """A scheduled job. `waiting` holds the devices whose turn has not come, `calls` the methods under way."""

    id: str
    kind: str
    query_condition: str
    target: Target
    body: dict[str, Any]
    created_at: float
    start_at: float
    execution_s: int
    status: str = "scheduled"
    ended_at: float | None = None
    rows: dict[IdentityId, Row] = field(default_factory=dict)
    waiting: deque[IdentityId] = field(default_factory=deque)
    calls: dict[str, IdentityId] = field(default_factory=dict)

    def happen(self, event: str) -> None:
        self.status = TRANSITIONS.get((self.status, event), self.status)

    def count(self, *statuses: str) -> int:
        return sum(row.status in statuses for row in self.rows.values())

    def document(self) -> dict[str, Any]:
        """The job as the REST API shows it."""
        is_update = self.kind == UPDATE_TWIN
        return {
            "jobId": self.id,
            "queryCondition": self.query_condition,
            "createdTime": wire_time(self.created_at),
            "startTime": wire_time(self.start_at),
            "endTime": wire_time(self.ended_at) if self.ended_at is not None else None,
            "maxExecutionTimeInSeconds": self.execution_s,
            "type": self.kind,
            "updateTwin": {**self.body, "etag": "*"} if is_update else None,
            "cloudToDeviceMethod": None if is_update else self.body,
            "status": self.status,
            "failureReason": "no device could be reached" if self.status == "failed" else None,
            "statusMessage": None,
            "deviceJobStatistics": {
                "deviceCount": len(self.rows),
                "failedCount": self.count("failed", "cancelled"),
                "succeededCount": self.count("completed"),
                "runningCount": self.count("running"),
                "pendingCount": self.count("pending"),
            },
        }

    def row_document(self, row: Row) -> Document:
        """One device's part, as a query over devices.jobs shows it."""
        module = {"moduleId": row.identity_id.module_id} if row.identity_id.module_id else {}
        return {
            "deviceId": row.identity_id.device_id,
            **module,
            "jobId": self.id,
            "jobType": self.kind,
            "status": row.status,
            "startTimeUtc": None if row.started_at is None else wire_time(row.started_at),
            "endTimeUtc": None if row.ended_at is None else wire_time(row.ended_at),
            "createdDateTimeUtc": wire_time(self.created_at),
            "lastUpdatedDateTimeUtc": wire_time(row.updated_at),
            "outcome": {"deviceMethodResponse": row.response},
            **({"error": row.error} if row.error else {}),
        }


class Jobs:
    """All scheduled jobs of a hub.

    Args:
        active_max: how many may be scheduled or running at once, as the tier allows; None for any number.
        touch: is told the key of what changed: ``job/<id>`` or ``row/<id>/<device>[/<module>]``.
    """

    def __init__(self, workplace: Workplace, touch: Callable[[str], None] = lambda _key: None) -> None:
        self.active_max: int | None = None
        # Whether another device may be done now, as the tier allows.
        self.has_turn: Callable[[float], bool] = lambda _now: True
        self._workplace = workplace
        self._touch = touch
        self._jobs: dict[str, Job] = {}
        self._calls: dict[str, Job] = {}
        # Rows that came back from a restart before their job.
        self._homeless: dict[str, list[Row]] = {}
        self._rows = 0
        self._now = 0.0

    def create(self, job_id: str, body: Any, now: float) -> dict[str, Any]:
        """Schedule a job.

        Raises:
            ServiceError: 400 for a bad document, 409 where the id is taken, 429 where too many jobs are active.
        """
        job = read_job(job_id, body, now)
        if job_id in self._jobs:
            raise ServiceError(Fault.JobAlreadyExists, f"job {job_id} exists already")
        active = sum(other.status in ACTIVE for other in self._jobs.values())
        if self.active_max is not None and active >= self.active_max:
            raise ServiceError(
                Fault.ThrottlingMaxActiveJobCountExceeded, f"{active} jobs are active, which is as many as may be"
            )
        self._jobs[job_id] = job
        if job.start_at <= now:
            job.happen("due")
        self._touch(f"job/{job_id}")
        return job.document()

    def get(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise ServiceError(Fault.JobNotFound, f"job {job_id} does not exist")
        return job

    def cancel(self, job_id: str, now: float) -> dict[str, Any]:
        """Stop a job where it is; one that has ended stays as it ended."""
        job = self.get(job_id)
        if job.status in ACTIVE:
            job.happen("cancel")
            job.ended_at = now
            self._give_up(job, "cancelled", "the job was cancelled", now)
            self._touch(f"job/{job_id}")
        return job.document()

    def documents(self, kind: str | None, status: str | None) -> list[dict[str, Any]]:
        """The jobs of a type and a status, newest first; None for any."""
        return [
            job.document()
            for job in sorted(self._jobs.values(), key=lambda item: (item.created_at, item.id), reverse=True)
            if (not kind or job.kind == kind) and (not status or job.status == status)
        ]

    def rows(self, after: int) -> Iterator[tuple[int, Document]]:
        """The rows of devices.jobs that come after a place."""
        found = [(row.place, job, row) for job in self._jobs.values() for row in job.rows.values() if row.place > after]
        for place, job, row in sorted(found, key=lambda entry: entry[0]):
            yield place, job.row_document(row)

    # --- over time --------------------------------------------------------------------------------------------------

    def advance(self, now: float, count: int) -> bool:
        """Do what is due, at most `count` devices of a job; returns whether more could be done at once."""
        self._now = now
        is_more = False
        for job in list(self._jobs.values()):
            if job.ended_at is not None:
                if job.ended_at + HISTORY_S <= now:
                    self._forget(job)
                continue
            if job.start_at <= now:
                job.happen("due")
            if job.status == "queued":
                self._start(job, now)
            if job.status == "running":
                is_more |= self._run(job, now, count)
        return is_more

    def method_ended(self, result: MethodResult) -> None:
        """Take the end of a method call, if it was a job's."""
        job = self._calls.pop(result.request_id, None)
        if job is None:
            return
        row = job.rows[job.calls.pop(result.request_id)]
        if result.error:
            self._fail(job, row, result.error, self._now)
        else:
            row.response = result.document()
            self._end(job, row, "completed", self._now)

    def _start(self, job: Job, now: float) -> None:
        job.happen("start")
        for identity_id in self._workplace.targets(job.target, now):
            self._rows += 1
            job.rows[identity_id] = Row(self._rows, identity_id, now)
            self._touch_row(job, identity_id)
        job.waiting.extend(job.rows)
        self._touch(f"job/{job.id}")

    def _run(self, job: Job, now: float, count: int) -> bool:
        if now >= job.start_at + job.execution_s:
            self._give_up(job, "failed", f"the job ended after {job.execution_s} s", now)
        room = count if job.kind == UPDATE_TWIN else min(count, CALLS_MAX - len(job.calls))
        for _ in range(min(room, len(job.waiting))):
            if not self.has_turn(now):
                return False
            self._do(job, job.rows[job.waiting.popleft()], now)
        if job.waiting or job.calls:
            return bool(job.waiting) and len(job.calls) < CALLS_MAX
        job.happen("every device failed" if job.rows and job.count("failed") == len(job.rows) else "done")
        job.ended_at = now
        self._touch(f"job/{job.id}")
        return False

    def _do(self, job: Job, row: Row, now: float) -> None:
        row.started_at = now
        try:
            if job.kind == UPDATE_TWIN:
                self._workplace.write_twin(row.identity_id, job.body, None, now)
                self._end(job, row, "completed", now)
            else:
                request = MethodRequest.read(job.body)
                request_id = self._workplace.invoke_method(row.identity_id, request, now)
                job.calls[request_id] = row.identity_id
                self._calls[request_id] = job
                row.status, row.updated_at = "running", now
        except ServiceError as err:
            self._fail(job, row, err, now)

    def _fail(self, job: Job, row: Row, err: ServiceError, now: float) -> None:
        row.error = {"code": err.fault.name, "description": err.message}
        self._end(job, row, "failed", now)

    def _end(self, job: Job, row: Row, status: str, now: float) -> None:
        row.status, row.updated_at, row.ended_at = status, now, now
        self._touch_row(job, row.identity_id)

    def _give_up(self, job: Job, status: str, why: str, now: float) -> None:
        for row in job.rows.values():
            if row.status in ("pending", "running"):
                row.error = {"code": "JobCancelled", "description": why}
                self._end(job, row, status, now)
        job.waiting.clear()
        for request_id in job.calls:
            self._calls.pop(request_id, None)
        job.calls.clear()

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        self._touch(f"job/{job.id}")
        for identity_id in job.rows:
            self._touch_row(job, identity_id)

    # --- durable ----------------------------------------------------------------------------------------------------

    def _touch_row(self, job: Job, identity_id: IdentityId) -> None:
        self._touch(f"row/{job.id}/{identity_id.client_id}")

    def record(self, key: str) -> Any | None:
        """What is to be kept under a key that was touched, as JSON types; None where it is gone."""
        kind, job_id, *identity = key.split("/")
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if kind == "job":
            return {name: getattr(job, name) for name in _JOB_RECORD}
        row = job.rows.get(IdentityId(*identity))
        if row is None:
            return None
        return {name: getattr(row, name) for name in _ROW_RECORD}

    def restore(self, key: str, record: Any) -> None:
        """Take back what was kept, in any order."""
        kind, job_id, *identity = key.split("/")
        if kind == "job":
            self._jobs[job_id] = Job(job_id, target=parse_target(record["query_condition"]), **record)
        else:
            row = Row(identity_id=IdentityId(*identity), **record)
            self._rows = max(self._rows, row.place)
            self._homeless.setdefault(job_id, []).append(row)
        job = self._jobs.get(job_id)
        for row in self._homeless.pop(job_id, ()) if job else ():
            self._take_back(self._jobs[job_id], row)

    def _take_back(self, job: Job, row: Row) -> None:
        if row.status == "running":
            # The call was under way, and nobody will hear its answer.
            row.status, row.error = "failed", {"code": "JobCancelled", "description": "the hub stopped meanwhile"}
        if row.status == "pending" and job.status in ACTIVE:
            job.waiting.append(row.identity_id)
        job.rows[row.identity_id] = row


def read_job(job_id: str, body: Any, now: float) -> Job:
    """Read the body of a new job; raises ServiceError ArgumentInvalid."""
    if not _ID.fullmatch(job_id):
        raise ServiceError(Fault.ArgumentInvalid, f"{job_id!r} is no id of a job: use 1 to 64 letters, digits and -")
    if not isinstance(body, dict) or body.get("jobId") not in (None, job_id):
        raise ServiceError(Fault.ArgumentInvalid, f"the body is not a job with the id {job_id}")
    kind, condition = body.get("type"), body.get("queryCondition")
    if kind not in (UPDATE_TWIN, DEVICE_METHOD):
        raise ServiceError(Fault.ArgumentInvalid, f"type is {kind!r}; {UPDATE_TWIN} and {DEVICE_METHOD} exist")
    part = "updateTwin" if kind == UPDATE_TWIN else "cloudToDeviceMethod"
    content = body.get(part)
    if not isinstance(content, dict):
        raise ServiceError(Fault.ArgumentInvalid, f"a job of type {kind} needs {part}")
    if kind == DEVICE_METHOD:
        MethodRequest.read(content)
    execution_s = body.get("maxExecutionTimeInSeconds") or EXECUTION_S_DEFAULT
    if type(execution_s) is not int or not 0 < execution_s <= EXECUTION_S_MAX:
        raise ServiceError(
            Fault.ArgumentInvalid, f"maxExecutionTimeInSeconds is {execution_s!r}; 1 to {EXECUTION_S_MAX} are allowed"
        )
    target = parse_target(condition)
    return Job(job_id, kind, str(condition), target, content, now, _instant(body.get("startTime"), now), execution_s)


def _instant(text: Any, now: float) -> float:
    if not text:
        return now
    try:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError) as err:
        raise ServiceError(Fault.ArgumentInvalid, f"startTime {text!r} is not a time of ISO 8601") from err
