"""What happened to a rollout, in the order in which it was decided. The log of these is the truth. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from cloud_registry.core.gate import Decision
from cloud_registry.core.rollout.documents import ReleaseContent, RolloutPlan
from manifests.document import Document
from manifests.errors import ManifestError
from manifests.identity import Generation
from manifests.twin import Phase, TrialEvidence, UpdateProblem

Outcome = Literal["pending", "offered", "committed", "failed", "reverted", "rejected", "lost"]
DECIDED_OUTCOMES = frozenset({"committed", "failed", "reverted", "rejected", "lost"})
FAILED_OUTCOMES = DECIDED_OUTCOMES - {"committed"}

StopCause = Literal["operator", "gate"]


class DeviceReport(Document, frozen=True, kw_only=True):
    """What a device was seen to say about one offer, judged. `version` and `digest` are what its engine holds.

    `deferred_until` is the instant up to which the device says that it waits, with the offer in its hands.
    """

    outcome: Outcome
    phase: Phase | None = None
    loaded_version: int | None = None
    loaded_digest: str | None = None
    error: UpdateProblem | None = None
    trial: TrialEvidence | None = None
    deferred_until: str | None = None


class RolloutPlanned(Document, frozen=True, kw_only=True, tag="rolloutPlanned"):
    plan: RolloutPlan


class RolloutStarted(Document, frozen=True, kw_only=True, tag="rolloutStarted"):
    pass


class WaveOpened(Document, frozen=True, kw_only=True, tag="waveOpened"):
    """The intent to offer the release to every device of the wave; stored before the first twin is written."""

    wave: int


class OffersWritten(Document, frozen=True, kw_only=True, tag="offersWritten"):
    """These devices' twins ask for the offer. Their deadlines count from here."""

    devices: tuple[str, ...]


class DevicesReported(Document, frozen=True, kw_only=True, tag="devicesReported"):
    """What changed in the reported sections, by device, about the offer now in force."""

    reports: dict[str, DeviceReport]


class DevicesLost(Document, frozen=True, kw_only=True, tag="devicesLost"):
    """These devices gave no last word before their deadline."""

    devices: tuple[str, ...]


class SoakStarted(Document, frozen=True, kw_only=True, tag="soakStarted"):
    wave: int


class SoakEnded(Document, frozen=True, kw_only=True, tag="soakEnded"):
    wave: int


class WaveDecided(Document, frozen=True, kw_only=True, tag="waveDecided"):
    wave: int
    decision: Decision


class RolloutPaused(Document, frozen=True, kw_only=True, tag="rolloutPaused"):
    cause: StopCause
    reason: str


class RolloutResumed(Document, frozen=True, kw_only=True, tag="rolloutResumed"):
    """Goes on where it was. `forgiven` are failed devices that a person accepts; they stay in the evidence."""

    reason: str = ""
    forgiven: tuple[str, ...] = ()


class AbortRequested(Document, frozen=True, kw_only=True, tag="abortRequested"):
    """No more offers; devices that have one finish it."""

    reason: str


class RolloutAborted(Document, frozen=True, kw_only=True, tag="rolloutAborted"):
    pass


class RollbackStarted(Document, frozen=True, kw_only=True, tag="rollbackStarted"):
    """Every device that was offered the release gets older content at a higher generation.

    `targets` names the key of a content by device, null for none, and replaces what the plan restores; `contents` holds
    what the plan does not know yet.
    """

    cause: StopCause
    reason: str
    generation: Generation
    epoch: int
    targets: dict[str, str | None]
    contents: dict[str, ReleaseContent] = {}


class RestoresWritten(Document, frozen=True, kw_only=True, tag="restoresWritten"):
    """These devices' twins ask for the older content."""

    devices: tuple[str, ...]


class DevicesSpared(Document, frozen=True, kw_only=True, tag="devicesSpared"):
    """These devices were in an open wave, but the offer never reached their twins: nothing to take back."""

    devices: tuple[str, ...]


class RollbackEnded(Document, frozen=True, kw_only=True, tag="rollbackEnded"):
    """Each device runs the older content again, but for those named here."""

    not_restored: tuple[str, ...] = ()


class RolloutCompleted(Document, frozen=True, kw_only=True, tag="rolloutCompleted"):
    pass


RolloutEvent = (
    RolloutPlanned
    | RolloutStarted
    | WaveOpened
    | OffersWritten
    | DevicesReported
    | DevicesLost
    | SoakStarted
    | SoakEnded
    | WaveDecided
    | RolloutPaused
    | RolloutResumed
    | AbortRequested
    | RolloutAborted
    | RollbackStarted
    | RestoresWritten
    | DevicesSpared
    | RollbackEnded
    | RolloutCompleted
)


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as the log holds it: numbered from 1 within its rollout, at the controller's time."""

    sequence: int
    at: datetime
    event: RolloutEvent


def event_from_wire(value: Any) -> RolloutEvent:
    """Read an event; raises ManifestError for one that this version does not know."""
    try:
        event: RolloutEvent = msgspec.convert(value, RolloutEvent)
    except msgspec.ValidationError as err:
        raise ManifestError(f"the log holds an event that cannot be read: {err}") from err
    return event
